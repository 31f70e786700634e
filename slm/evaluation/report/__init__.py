"""The report of an evaluation directory: results.csv, report.md and figures/, from the entries of results.json."""

from slm.evaluation.report.write import write_report

__all__ = ["write_report"]
