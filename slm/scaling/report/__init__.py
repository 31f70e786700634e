"""Figures and report of an analysis directory, from its files alone. matplotlib is imported when drawing begins."""

from slm.scaling.report.figures import draw
from slm.scaling.report.page import write_report

__all__ = ["draw", "write_report"]
