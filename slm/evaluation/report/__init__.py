"""The report of an evaluation directory: results.csv, report.md and figures/, from the entries of results.json."""
