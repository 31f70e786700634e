"""The report of an analysis directory: report.md for any reader of text, report.html with its figures inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from slm.analysis.report import compare, compute, figures_compare, figures_fits, fits, methods, overlay, rates
from slm.analysis.report.directory import Directory
from slm.report.html import page
from slm.report.markdown import Section
from slm.report.style import draw
from slm.runtime.files import write_whole
from slm.runtime.words import escape_markdown

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
    analysis = Directory.read(directory)
    name = analysis.comparison["table"]
    title = "Scaling analysis" + (f" of {name}" if name else "")
    sections = [section for make in SECTIONS if (section := make(analysis)) and section.blocks]
    text = "\n\n".join([f"# {escape_markdown(title)}", *map(Section.markdown, sections)]) + "\n"
    write_whole(directory / "report.md", text)
    write_whole(directory / "report.html", page(title, text, directory))


if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Directory], Figure | None]] = {
    "curves": figures_fits.curves,
    "overlay": overlay.overlay_figure,
    "residuals": figures_fits.residuals,
    "exponents": figures_compare.exponents,
    "profiles": figures_fits.profiles,
    "extrapolation": figures_fits.extrapolation,
    "doubling": figures_fits.doubling,
    "ratios": figures_compare.ratios,
    "differences": figures_compare.differences,
    "pareto": figures_compare.pareto,
    "isoflop": figures_compare.isoflop,
    "rates": rates.rates,
}


def draw_figures(directory: Path) -> list[Path]:
    """Draw what results.csv, fits.json and comparison.json allow; returns the files written."""
    analysis = Directory.read(directory)
    return draw(directory, {name: partial(make, analysis) for name, make in FIGURES.items()})
