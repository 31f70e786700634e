"""Write the report of an evaluation directory (results.csv, report.md, figures/) from the entries of results.json."""
