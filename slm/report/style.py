"""How figures look: colours that colour-blind readers can tell apart, plain axes, ticks such as 10M."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from slm.runtime.files import write_atomically
from slm.runtime.words import count

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

# As text, because matplotlib is imported only to draw.
Axes: TypeAlias = "matplotlib.axes.Axes"
Figure: TypeAlias = "matplotlib.figure.Figure"

# Okabe & Ito 2008, darkest first; yellow is left out (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE, INK = "#8C8C8C", "#D9D9D9", "#222222"
DPI = 160
MAX_NAME_CHARACTERS = 24
CHARACTERS_PER_INCH = 10.6
"""Of a figure's title."""
LEGEND_ROW_INCHES = 0.19
"""A row of the legend of families: 9 points, and half as much between rows."""
TICK_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), np.arange(1, 10, 0.5), np.arange(1, 10, 0.1))
"""Ticks within a decade, of which the first that gives three ticks is taken."""
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a family may be called a$b
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.grid": True,
    "grid.color": "#ECECEC",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.hashsalt": "slm",  # the same figure is the same file
    "svg.fonttype": "path",
    "path.simplify": True,
}


def style() -> AbstractContextManager[None]:
    """A context in which figures have this style."""
    import matplotlib

    return matplotlib.rc_context(RC)


def colours(families: Sequence[str]) -> dict[str, str]:
    """One fixed colour a family."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(families)}


def markers(families: Sequence[str]) -> dict[str, str]:
    """One fixed marker a family, so that families can be told apart without colour."""
    return {name: MARKERS[(i + i // len(PALETTE)) % len(MARKERS)] for i, name in enumerate(families)}


@dataclass(frozen=True)
class Margins:
    """Room around the axes of a panel, in inches."""

    left: float = 0.68
    right: float = 0.2
    bottom: float = 0.5
    top: float = 0.3


def short_name(family: str) -> str:
    """A family's name for a legend or label: the middle of a long one is left out."""
    if len(family) <= MAX_NAME_CHARACTERS:
        return family
    end = (MAX_NAME_CHARACTERS - 1) // 2
    return f"{family[: MAX_NAME_CHARACTERS - 1 - end]}…{family[-end:]}"


def blank_figure(title: str, width: float, body: float, families: Sequence[str] = ()) -> tuple[Figure, float]:
    """A blank figure with a title, a legend of `families` if there are several, and `body` inches below them.

    Returns the figure and how many inches title and legend take.
    """
    import matplotlib.figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    lines = textwrap.fill(title, int(width * CHARACTERS_PER_INCH))
    above = 0.14 + 0.185 * (lines.count("\n") + 1)
    columns = _legend_columns(families, width) if len(families) > 1 else 0
    head = above + (0.08 + LEGEND_ROW_INCHES * math.ceil(len(families) / columns) if columns else 0.05)
    figure = matplotlib.figure.Figure(figsize=(width, head + body))
    FigureCanvasAgg(figure)
    figure.text(0.12 / width, 1 - 0.1 / (head + body), lines, fontsize=11, fontweight="bold", va="top", color=INK)
    if columns:
        _legend(figure, families, columns, y=above)
    return figure, head


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def panels(
    number: int,
    title: str,
    *,
    columns: int,
    width: float = 3.7,
    height: float = 2.9,
    margins: Margins | None = None,
    families: Sequence[str] = (),
) -> tuple[Figure, list[Axes]]:
    """A figure of panels, `width` by `height` inches each with their margins."""
    columns, margins = min(columns, number), margins or Margins()
    figure, head = blank_figure(title, max(5.2, columns * width), math.ceil(number / columns) * height, families)
    inner = width - margins.left - margins.right, height - margins.top - margins.bottom
    axes = []
    for place in range(number):
        row, column = divmod(place, columns)
        axes.append(axes_at(figure, column * width + margins.left, head + row * height + margins.top, *inner))
    return figure, axes


def log_axis(axis: Any, low: float, high: float, *, counts: bool = True) -> None:
    """A log axis from `low` to `high` with a few ticks that read as people write: 10M, 2.5, 10^19."""
    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")
    ticks = _ticks(low, high)
    axis.set_ticks(ticks, labels=[tick_label(t, counts=counts) for t in ticks])
    axis.set_ticks([], minor=True)
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers in a range, spaced as evenly in the logarithm as round numbers allow."""
    decades = np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in TICK_STEPS:
        ticks = [float(f"{s * 10.0**d:.6g}") for d in decades for s in steps]
        ticks = [t for t in ticks if low <= t <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / 7)] if ticks else [low, high]


def tick_label(value: float, *, counts: bool = True) -> str:
    """A number as a tick: `10M`, `2.5` or a power of ten."""
    if counts and 1e3 <= value < 1e14:
        return count(value)
    if 1e-3 <= value < 1e4:
        return f"{value:.3g}"
    power = math.floor(math.log10(value) + 1e-9)
    factor = value / 10.0**power
    raised = "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return raised if abs(factor - 1) < 1e-6 else f"{factor:.2g}×{raised}"


def draw_law(axis: Axes, x: np.ndarray, y: np.ndarray, is_inside: np.ndarray, colour: str) -> None:
    """The curve of a law: a line where `is_inside` the data, dashes beyond."""
    axis.plot(x, y, color=colour, lw=1.2, ls=(0, (4, 2)))
    axis.plot(x[is_inside], y[is_inside], color=colour, lw=1.7)


def plot_runs(axis: Axes, x: Any, y: Any, colour: str, marker: str) -> None:
    """Runs as small marks with a white edge."""
    axis.plot(x, y, ls="", marker=marker, ms=3.6, mfc=colour, mec="white", mew=0.4)


def text_beside(axis: Axes, y: float, text: str, *, x: float = 1.01, size: float = 7, **text_style: Any) -> None:
    """A text right of the axes at the height `y` of the data."""
    axis.text(x, y, text, va="center", fontsize=size, transform=axis.get_yaxis_transform(), **text_style)


def _legend(figure: Figure, names: Sequence[str], columns: int, *, y: float) -> None:
    """The legend of families, `y` inches below the top."""
    from matplotlib.lines import Line2D

    colour, mark = colours(names), markers(names)
    handles = [Line2D([], [], color=colour[n], marker=mark[n], ls="", ms=5, label=short_name(n)) for n in names]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - y / figure.get_figheight()),
        ncols=columns,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
        borderaxespad=0.3,
    )


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Columns of the legend that fit `width` inches."""
    widest = 0.36 + 0.085 * max(map(len, map(short_name, names)))
    return min(len(names), max(1, int(width // widest)))


def draw(folder: Path, figures: Mapping[str, Callable[[], Figure | None]]) -> list[Path]:
    """Draw each figure into `folder`/figures as PNG and SVG, replacing earlier ones; returns the files written.

    A function that has no data returns None, and no figure is drawn.
    """
    written: list[Path] = []
    for name, make_figure in figures.items():
        for kind in ("png", "svg"):
            (folder / "figures" / f"{name}.{kind}").unlink(missing_ok=True)
        with style():
            if figure := make_figure():
                written += save(figure, folder / "figures", name)
    return written


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write PNG and SVG; the same figure gives the same bytes."""
    paths = []
    for kind, options in (("png", {"dpi": DPI}), ("svg", {"metadata": {"Date": None}})):
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
            figure.savefig(buffer, format=kind, facecolor="white", **options)
        write_atomically(folder / f"{name}.{kind}", buffer.getvalue())
        paths.append(folder / f"{name}.{kind}")
    return paths
