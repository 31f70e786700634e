"""The style of figures: colours that colour-blind readers can tell apart, plain axes, ticks such as 10M."""

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.runtime.files import write_atomically
from slm.runtime.pool import map_in_processes
from slm.runtime.words import SUPERSCRIPTS, count, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:
    Axes = Figure = Any  # matplotlib is imported only to draw

# Okabe & Ito 2008, darkest first; yellow is left out (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE, INK = "#8C8C8C", "#D9D9D9", "#222222"
DPI = 160
MAX_NAME_CHARACTERS = 24
MAX_TICK_CHARACTERS = 6
TITLE_CHARACTERS_PER_INCH = 10.6
LEGEND_ROW_INCHES = 0.19  # height of a row in the legend: 9 points of text, and half as much space
TICK_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), np.arange(1, 10, 0.5), np.arange(1, 10, 0.1))
"""Sets of ticks within a decade, coarse to fine; an axis uses the first set that gives it three ticks."""
_SVG_SURPLUS = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|(?<=>)\s+(?=<)", re.DOTALL)
_SVG_PLACES = re.compile(r'(?<= d=")[^"]*| [xy]="[^"]*"|translate\([^)]*\)')  # what has six decimals
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
    "svg.hashsalt": "slm",  # fixed ids, so that the same figure gives the same file
    "svg.fonttype": "path",
    "path.simplify": True,
}


def style() -> AbstractContextManager[None]:
    """Return a context in which figures have this style."""
    import matplotlib

    return matplotlib.rc_context(RC)


def colours(families: Sequence[str]) -> dict[str, str]:
    """Return one fixed colour per family."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(families)}


def markers(families: Sequence[str]) -> dict[str, str]:
    """Return one fixed marker per family. Families that share a colour have different markers."""
    return {name: MARKERS[(i + i // len(PALETTE)) % len(MARKERS)] for i, name in enumerate(families)}


@dataclass(frozen=True)
class Margins:
    """Space around the axes of a panel, in inches."""

    left: float = 0.68
    right: float = 0.2
    bottom: float = 0.5
    top: float = 0.3


def short_name(family: str) -> str:
    """Return a family's name for a legend or label; if it is long, an ellipsis replaces its middle."""
    if len(family) <= MAX_NAME_CHARACTERS:
        return family
    num_end = (MAX_NAME_CHARACTERS - 1) // 2  # characters kept at the end; the ellipsis takes one place
    num_start = MAX_NAME_CHARACTERS - 1 - num_end
    return f"{family[:num_start]}…{family[-num_end:]}"


def blank_figure(title: str, width: float, body_height: float, families: Sequence[str] = ()) -> tuple[Figure, float]:
    """Return a figure with a title, a legend if there are several families, and `body_height` blank inches below.

    The second result is the height of title and legend together, in inches.
    """
    import matplotlib.figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    wrapped_title = textwrap.fill(title, int(width * TITLE_CHARACTERS_PER_INCH))
    title_height = 0.14 + 0.185 * (wrapped_title.count("\n") + 1)
    num_columns = _legend_columns(families, width) if len(families) > 1 else 0  # of the legend; 0: no legend
    legend_height = (0.08 + LEGEND_ROW_INCHES * math.ceil(len(families) / num_columns)) if num_columns else 0.05
    height = title_height + legend_height + body_height
    figure = matplotlib.figure.Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.text(0.12 / width, 1 - 0.1 / height, wrapped_title, fontsize=11, fontweight="bold", va="top", color=INK)
    if num_columns:
        _legend(figure, families, num_columns, top=title_height)
    return figure, title_height + legend_height


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes; `left` and `top` are inches from the upper left corner of the figure."""
    figure_width, figure_height = figure.get_size_inches()
    bottom = 1 - (top + height) / figure_height
    return figure.add_axes((left / figure_width, bottom, width / figure_width, height / figure_height))


def panels(
    num_panels: int,
    title: str,
    *,
    ncols: int,
    width: float = 3.7,
    height: float = 2.9,
    lead_height: float = 0.0,
    margins: Margins | None = None,
    families: Sequence[str] = (),
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels in up to `ncols` columns; each is `width` by `height` inches, margins included.

    With `lead_height`, one more panel of this height and as wide as the figure comes first.
    """
    num_rows = math.ceil(num_panels / ncols)
    ncols = math.ceil(num_panels / num_rows)  # four panels in up to three columns: two rows of two
    margins = margins or Margins()
    total_width = max(5.2, ncols * width)
    figure, head_height = blank_figure(title, total_width, lead_height + num_rows * height, families)
    side, ends = margins.left + margins.right, margins.top + margins.bottom  # inches of a panel that are no axes
    axes = []
    if lead_height:
        top = head_height + margins.top
        axes.append(axes_at(figure, margins.left, top, total_width - side, lead_height - ends))
    for index in range(num_panels):
        row, column = divmod(index, ncols)
        left, top = column * width + margins.left, head_height + lead_height + row * height + margins.top
        axes.append(axes_at(figure, left, top, width - side, height - ends))
    return figure, axes


def label_left(axes: Sequence[Axes], label: str) -> None:
    """Write the label of the y axis beside each panel at the left edge of the figure."""
    edge = min(axis.get_position().x0 for axis in axes)
    for axis in axes:
        if axis.get_position().x0 < edge + 1e-6:
            axis.set_ylabel(label)


def log_axis(axis: Any, low: float, high: float, *, as_counts: bool = True) -> None:
    """Make an axis logarithmic from `low` to `high`, with a few ticks; see `tick_label` for `as_counts`."""
    letter = axis.axis_name  # x or y
    axis.axes.set(**{f"{letter}scale": "log"})
    ticks = log_ticks(low, high)
    labels = [tick_label(tick, as_counts=as_counts) for tick in ticks]
    if letter == "x" and max(map(len, labels)) > MAX_TICK_CHARACTERS and len(ticks) > 3:  # labels such as 1.5×10¹³
        ticks, labels = ticks[::2], labels[::2]
    axis.set_ticks(ticks, labels=labels)
    axis.set_ticks([], minor=True)
    axis.axes.set(**{f"{letter}lim": (low, high)})


def log_ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers in a range, about evenly spaced on a log axis."""
    decades = np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in TICK_STEPS:
        candidates = [float(f"{step * 10.0**decade:.6g}") for decade in decades for step in steps]
        ticks = [tick for tick in candidates if low <= tick <= high]
        if len(ticks) >= 3:
            break
    stride = math.ceil(len(ticks) / 7)
    return ticks[::stride] if ticks else [low, high]


def tick_label(value: float, *, as_counts: bool = True) -> str:
    """Return the label of a tick, such as `2.5` or `10⁵`; with `as_counts`, such as `10M`."""
    if as_counts and 1e3 <= value < 1e14:
        return count(value)
    if 1e-3 <= value < 1e4:
        return f"{value:.3g}"
    power = math.floor(math.log10(value) + 1e-9)
    factor = value / 10.0**power
    power_of_ten = "10" + str(power).translate(SUPERSCRIPTS)
    return power_of_ten if abs(factor - 1) < 1e-6 else f"{factor:.2g}×{power_of_ten}"


def draw_law(axis: Axes, x: np.ndarray, y: np.ndarray, is_inside: np.ndarray, colour: str) -> None:
    """Draw the curve of a law: solid at the points inside the range of the data (`is_inside`), dashed elsewhere."""
    axis.plot(x, y, color=colour, lw=1.2, ls=(0, (4, 2)))
    axis.plot(x[is_inside], y[is_inside], color=colour, lw=1.7)


def plot_runs(axis: Axes, x: Any, y: Any, colour: str, marker: str) -> None:
    """Draw runs as small markers with a white edge."""
    axis.plot(x, y, ls="", marker=marker, ms=3.6, mfc=colour, mec="white", mew=0.4)


def draw_interval(
    axis: Axes, ends: Sequence[Any], at: float, limits: Sequence[float], *, vertical: bool = False, **line: Any
) -> None:
    """Draw an interval, along x unless `vertical`. An end that is open or beyond `limits` is an arrow at the limit."""
    low, high = limits
    is_cut = [not is_number(ends[0]) or ends[0] < low, not is_number(ends[1]) or ends[1] > high]
    shown = [limit if cut else end for end, limit, cut in zip(ends, limits, is_cut, strict=True)]
    places = ([at, at], shown) if vertical else (shown, [at, at])
    axis.plot(*places, **{"lw": 1.5, "solid_capstyle": "butt", **line})
    for x, y, cut, arrow in zip(*places, is_cut, "v^" if vertical else "<>", strict=True):
        if cut:
            axis.plot(x, y, marker=arrow, ms=4, mew=0, color=line["color"], clip_on=False)


def text_beside(axis: Axes, y: float, text: str, *, x: float = 1.01, size: float = 7, **text_style: Any) -> None:
    """Write a text to the right of the axes, at the height of the data value `y`."""
    axis.text(x, y, text, va="center", fontsize=size, transform=axis.get_yaxis_transform(), **text_style)


def _legend(figure: Figure, names: Sequence[str], num_columns: int, *, top: float) -> None:
    """Draw the legend of families, `top` inches below the upper edge."""
    from matplotlib.lines import Line2D

    colour, marker = colours(names), markers(names)
    handles = [Line2D([], [], color=colour[n], marker=marker[n], ls="", ms=5, label=short_name(n)) for n in names]
    spacing: dict[str, Any] = {"handletextpad": 0.1, "columnspacing": 1.2, "borderaxespad": 0.3}
    corner = (0.0, 1 - top / figure.get_figheight())
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=corner, ncols=num_columns, frameon=False, **spacing)


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Return how many columns of the legend fit into `width` inches."""
    longest = max(len(short_name(name)) for name in names)
    column_width = 0.36 + 0.085 * longest
    return min(len(names), max(1, int(width // column_width)))


def draw(folder: Path, figures: Mapping[str, Callable[[], Figure | None]]) -> list[Path]:
    """Write each figure that has data to `folder`/figures as PNG and SVG, replacing older files; returns the files."""
    drawn = map_in_processes(lambda name: draw_one(folder, name, figures[name]), list(figures))
    return [path for paths in drawn for path in paths]


def draw_one(folder: Path, name: str, make_figure: Callable[[], Figure | None]) -> list[Path]:
    """Write a figure if it has data: see `draw`."""
    for kind in ("png", "svg"):
        (folder / "figures" / f"{name}.{kind}").unlink(missing_ok=True)
    with style():
        made = make_figure()
        return save(made, folder / "figures", name) if made else []


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG; the same figure gives the same bytes. Returns the files."""
    paths = []
    for kind, options in (("png", {"dpi": DPI}), ("svg", {"metadata": {"Date": None}})):
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # for names in scripts that the font lacks
            figure.savefig(buffer, format=kind, facecolor="white", **options)
        content = buffer.getvalue()
        write_atomically(folder / f"{name}.{kind}", _without_surplus(content) if kind == "svg" else content)
        paths.append(folder / f"{name}.{kind}")
    return paths


def _without_surplus(svg: bytes) -> bytes:
    """Return an SVG without comments and metadata, with places to a hundredth of a point: a quarter is saved."""

    def shortened(match: re.Match[str]) -> str:
        return re.sub(r"(\.\d\d)\d+", r"\1", re.sub(r"\s*([A-Zz])\s*", r"\1", match[0]))

    text = _SVG_PLACES.sub(shortened, _SVG_SURPLUS.sub("", svg.decode()))
    return text.replace("DejaVuSans-Bold-", "b").replace("DejaVuSans-", "s").encode()  # the ids of letters
