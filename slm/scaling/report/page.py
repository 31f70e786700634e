"""The report of an analysis directory: report.md for any reader of text, report.html with its figures inside."""

from __future__ import annotations

from pathlib import Path

from slm.scaling.report import compare, compute, fits, methods, overlay, rates
from slm.scaling.report.directory import Directory, write_whole
from slm.scaling.report.html import page
from slm.scaling.report.text import Section
from slm.scaling.report.wording import plainly

SECTIONS = (
    compare.verdict_section,
    compare.analysed_section,
    compare.audit_section,
    compare.published_section,
    fits.exponents_section,
    fits.references_section,
    fits.curves_section,
    overlay.overlay_section,
    compare.paired_section,
    compare.comparison_section,
    compare.power_section,
    fits.selection_section,
    fits.predictions_section,
    fits.given_section,
    fits.doubling_section,
    compute.compute_section,
    rates.rates_section,
    methods.methods_section,
    methods.reproduce_section,
    fits.certificates_section,
)


def write_report(directory: Path) -> None:
    """Write report.md and report.html from the JSON files and the figures in `directory`, and from nothing else."""
    of = Directory.read(directory)
    name = of.comparison["table"]
    title = "Scaling analysis" + (f" of {name}" if name else "")
    sections = [section for make in SECTIONS if (section := make(of)) and section.blocks]
    text = "\n\n".join([f"# {plainly(title)}", *map(Section.markdown, sections)]) + "\n"
    write_whole(directory / "report.md", text.encode())
    write_whole(directory / "report.html", page(title, text, directory).encode())
