"""The report of an analysis directory: report.md for any reader of text, report.html with its figures inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from slm.analysis.report import (
    compare,
    compute,
    curves,
    exponents,
    isoflop,
    methods,
    overlay,
    paired,
    predictions,
    rates,
    selection,
    verdict,
)
from slm.analysis.report.directory import Directory
from slm.report.html import page
from slm.report.markdown import Section
from slm.report.style import Figure, draw
from slm.runtime.files import write_whole
from slm.runtime.words import escape_markdown

SECTIONS = (
    verdict.verdict_section,
    verdict.analysed_section,
    verdict.audit_section,
    verdict.published_section,
    exponents.exponents_section,
    exponents.references_section,
    curves.curves_section,
    overlay.overlay_section,
    paired.paired_section,
    compare.comparison_section,
    paired.power_section,
    selection.selection_section,
    predictions.predictions_section,
    predictions.given_section,
    predictions.doubling_section,
    compute.compute_section,
    rates.rates_section,
    methods.methods_section,
    methods.reproduce_section,
    selection.certificates_section,
)


def write_report(directory: Path) -> None:
    """Write report.md and report.html from the files in `directory`, and nothing else."""
    analysis = Directory.read(directory)
    name = analysis.comparison["table"]
    title = "Scaling analysis" + (f" of {name}" if name else "")
    sections = [section for make in SECTIONS if (section := make(analysis)) and section.blocks]
    text = "\n\n".join([f"# {escape_markdown(title)}", *map(Section.markdown, sections)]) + "\n"
    write_whole(directory / "report.md", text)
    write_whole(directory / "report.html", page(title, text, directory))


FIGURES: dict[str, Callable[[Directory], Figure | None]] = {
    "curves": curves.curves_figure,
    "overlay": overlay.overlay_figure,
    "residuals": curves.residuals_figure,
    "exponents": exponents.exponents_figure,
    "profiles": curves.profiles_figure,
    "extrapolation": selection.extrapolation_figure,
    "doubling": predictions.doubling_figure,
    "ratios": paired.ratios_figure,
    "differences": compare.differences_figure,
    "pareto": compute.pareto_figure,
    "isoflop": isoflop.isoflop_figure,
    "rates": rates.rates_figure,
}


def draw_figures(directory: Path) -> list[Path]:
    """Draw what results.csv, fits.json and comparison.json allow; returns the files written."""
    analysis = Directory.read(directory)
    return draw(directory, {name: partial(make, analysis) for name, make in FIGURES.items()})
