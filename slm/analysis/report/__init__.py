"""Figures and report of an analysis directory, from its files alone."""

from slm.analysis.report.page import draw_figures, write_report

__all__ = ["draw_figures", "write_report"]
