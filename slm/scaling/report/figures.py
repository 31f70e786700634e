"""The figures of an analysis directory, each only where its data are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from slm.scaling.report import figures_compare, figures_fits, overlay, rates
from slm.scaling.report.directory import Directory
from slm.scaling.report.style import save, style

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


def draw(directory: Path) -> list[Path]:
    """Draw what results.csv, fits.json and comparison.json allow into `directory`/figures, as PNG and SVG.

    A figure of an earlier analysis that has no data any more is removed. Returns the files written.
    """
    of = Directory.read(directory)
    written: list[Path] = []
    for name, figure_of in FIGURES.items():
        with style():
            figure = figure_of(of)
            if figure is not None:
                written += save(figure, directory / "figures", name)
                continue
        for kind in ("png", "svg"):
            (directory / "figures" / f"{name}.{kind}").unlink(missing_ok=True)
    return written
