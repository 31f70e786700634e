"""How figures look: colours that stay apart for colour-blind readers, plain axes, sizes that people write as 10M."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.scaling.directory import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, darkest first; yellow is left out (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE, INK = "#8C8C8C", "#D9D9D9", "#222222"
DPI = 160
RC = {
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
    "grid.color": "#ECECEC",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.hashsalt": "slm",  # the same figure is the same file
    "svg.fonttype": "path",
    "path.simplify": True,
}


@contextmanager
def style() -> Iterator[None]:
    """Within it, figures are made in this style."""
    import matplotlib

    with matplotlib.rc_context(RC):
        yield


def colours(families: Sequence[str]) -> dict[str, str]:
    """One fixed colour a family."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(families)}


def markers(families: Sequence[str]) -> dict[str, str]:
    """One fixed mark a family, so that colour is not needed to tell them apart."""
    return {name: MARKERS[(i + i // len(PALETTE)) % len(MARKERS)] for i, name in enumerate(families)}


def panels(
    number: int,
    title: str,
    *,
    columns: int,
    width: float = 3.4,
    height: float = 2.9,
    share: bool = False,
    families: Sequence[str] = (),
) -> tuple[Figure, list[Axes]]:
    """A figure of some panels under one title, with the marks of `families` if there are several."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, number)
    rows = math.ceil(number / columns)
    across = max(5.2, columns * width + 0.5)
    lines = wrapped(title, across)
    above = 0.12 + 0.185 * (lines.count("\n") + 1)
    head = above + 0.38 + (0.25 if len(families) > 1 else 0)
    down = rows * height + head
    figure = Figure(figsize=(across, down))
    FigureCanvasAgg(figure)
    figure.text(0.12 / across, 1 - 0.1 / down, lines, fontsize=11, fontweight="bold", va="top", color=INK)
    _key(figure, families, y=above)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.7 / across,
        right=1 - 0.25 / across,
        top=1 - head / down,
        bottom=0.5 / down,
        wspace=0.3,
        hspace=0.45,
    )
    axes: list[Axes] = []
    for place in range(number):
        first = {"sharex": axes[0], "sharey": axes[0]} if share and axes else {}
        axes.append(figure.add_subplot(grid[place // columns, place % columns], **first))
    return figure, axes


def wrapped(title: str, inches: float) -> str:
    """A title in lines that fit a width."""
    import textwrap

    return "\n".join(textwrap.wrap(title, int(inches * 10.6)))


def log_axis(axis: Any, low: float, high: float, *, counts: bool = True) -> None:
    """A log axis from `low` to `high` with a few ticks that read as people write: 10M, 2.5, 10^19."""
    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")
    ticks = _ticks(low, high)
    axis.set_ticks(ticks, labels=[tick_label(t, counts=counts) for t in ticks])
    axis.set_ticks([], minor=True)
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers in a range, as even in the logarithm as round numbers get."""
    decades = np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        tuple(np.arange(1, 10, 0.5)),
        tuple(np.arange(1, 10, 0.1)),
    ):
        ticks = [float(f"{s * 10.0**d:.6g}") for d in decades for s in steps]
        ticks = [t for t in ticks if low <= t <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / 7)] if ticks else [low, high]


def tick_label(value: float, *, counts: bool = True) -> str:
    """10M, 2.5 or 10 to a power."""
    if counts and 1e3 <= value < 1e14:
        for step, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
            if value >= step:
                return f"{value / step:.3g}{letter}"
    if 1e-3 <= value < 1e4:
        return f"{value:.3g}"
    power = math.floor(math.log10(value) + 1e-9)
    factor = value / 10.0**power
    raised = "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return raised if abs(factor - 1) < 1e-6 else f"{factor:.2g}×{raised}"


def spread_labels(at: Sequence[float], gap: float) -> list[float]:
    """Heights of labels near `at` that lie at least `gap` apart."""
    order = sorted(range(len(at)), key=lambda i: at[i])
    placed = [at[i] for i in order]
    for _ in range(200):
        moved = False
        for i in range(1, len(placed)):
            short = gap - (placed[i] - placed[i - 1])
            if short > 1e-9:
                placed[i - 1] -= short / 2
                placed[i] += short / 2
                moved = True
        if not moved:
            break
    result = [0.0] * len(at)
    for place, i in enumerate(order):
        result[i] = placed[place]
    return result


def _key(figure: Figure, names: Sequence[str], *, y: float) -> None:
    """The families' marks in one line, `y` inches below the top."""
    from matplotlib.lines import Line2D

    if len(names) < 2:
        return
    colour, mark = colours(names), markers(names)
    handles = [Line2D([], [], color=colour[n], marker=mark[n], ls="", ms=5, label=n) for n in names]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - y / figure.get_figheight()),
        ncols=min(len(names), max(2, int(figure.get_figwidth() // 1.5))),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
        borderaxespad=0.3,
    )


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write PNG and SVG; the same figure gives the same bytes."""
    paths = []
    for kind, options in (("png", {"dpi": DPI}), ("svg", {"metadata": {"Date": None}})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, facecolor="white", **options)
        write_whole(folder / f"{name}.{kind}", buffer.getvalue())
        paths.append(folder / f"{name}.{kind}")
    return paths
