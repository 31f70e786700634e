"""The report of an analysis directory: report.md for any reader of text, report.html with its figures inside."""

from __future__ import annotations

from pathlib import Path

from slm.scaling import report_compare, report_compute, report_fits, report_methods
from slm.scaling.directory import Directory, write_whole
from slm.scaling.report_html import page
from slm.scaling.report_text import Section
from slm.scaling.wording import plainly

SECTIONS = (
    report_compare.verdict_section,
    report_compare.analysed_section,
    report_compare.audit_section,
    report_compare.published_section,
    report_fits.exponents_section,
    report_fits.references_section,
    report_fits.curves_section,
    report_compare.comparison_section,
    report_compare.power_section,
    report_fits.selection_section,
    report_fits.predictions_section,
    report_fits.marginal_section,
    report_compute.compute_section,
    report_methods.methods_section,
    report_methods.reproduce_section,
    report_fits.certificates_section,
)


def write_report(directory: Path) -> None:
    """Write report.md and report.html from the JSON files and the figures in `directory`, and from nothing else."""
    of = Directory.read(directory)
    name = of.settings.get("name") or of.settings.get("runs")
    title = "Scaling analysis" + (f" of {name}" if name else "")
    sections = [section for make in SECTIONS if (section := make(of)) and section.blocks]
    text = "\n\n".join([f"# {plainly(title)}", *map(Section.markdown, sections)]) + "\n"
    write_whole(directory / "report.md", text.encode())
    write_whole(directory / "report.html", page(title, text, directory).encode())
