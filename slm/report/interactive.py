"""Interactive figures that a page draws without a network, with switches and a text for each mark.

Notable:
- Bokeh draws, because its JavaScript comes in its wheel: 1.27 MB, of which 0.47 MB remain in a page. Plotly's, 4.7 MB,
  does not fit into a page of 2 MB. Only Bokeh's core is embedded; the switches are plain HTML, which a keyboard
  reaches, and interactive.js connects them.
- A view or a series has tags, such as the family that it shows. It is visible while the switches named by its tags
  have these options on.
- The library is packed by gzip and unpacked by the browser when the page opens. A browser that cannot do this, a page
  without scripts and a printed page show the static figure.
- Bokeh is imported only to write a page, because this takes about a second.
"""

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from slm.report.style import log_ticks

Tags = Mapping[str, str]
"""Key of a switch -> the option that must be on."""
MARKERS = {
    "o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "inverted_triangle", "P": "plus", "X": "x",
}  # fmt: skip
"""Marker of `slm.report.style` -> the marker of Bokeh."""
SYMBOLS = dict(zip(MARKERS, "●■▲◆▼✚✖", strict=True))
MIDDLE_GREY = {"#4D4D4D": "#7F7F7F"}  # the only colour of the palette that a dark page would hide
HEIGHT = 380  # pixels
_STYLE = """
@media screen {
  :root .interactive { display: none; } :root .interactive + .static { display: block; }
  :root .interactive.drawn { display: block; } :root .interactive.drawn + .static { display: none; }
}
.interactive .switches { display: flex; flex-wrap: wrap; gap: .4rem 1.1rem; margin: 1rem 0 .4rem; font-size: .875rem; }
.interactive .switches > * { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem .7rem; max-width: 100%; }
.interactive .switches > label { flex-wrap: nowrap; }
.interactive select { min-width: 0; max-width: 20rem; font: inherit; color: inherit; background: var(--paper); }
.interactive label { white-space: nowrap; max-width: 100%; overflow: hidden; }
.interactive .plot { display: block; }
.interactive [data-figure] { display: block; position: relative; } .interactive [hidden] { display: none; }
.interactive .hint { display: block; color: var(--quiet); font-size: .8rem; text-align: right; }
.interactive output { position: absolute; z-index: 2; max-width: 15rem; padding: .4rem .6rem; pointer-events: none;
  white-space: pre-line; overflow-wrap: anywhere; font-size: .8rem; line-height: 1.4; background: var(--paper);
  border: 1px solid var(--line); border-radius: 6px; box-shadow: 0 2px 8px rgb(0 0 0 / 20%); }
.interactive .ring { position: absolute; width: 18px; height: 18px; margin: -9px; border: 2px solid var(--ink);
  border-radius: 50%; pointer-events: none; }
@media print { .interactive { display: none; } }
"""
# Counts such as 100k, and powers of ten from 10^15 on, as the static figures write them.
_TICK_TEXT = """
const power = Math.floor(Math.log10(tick) + 1e-9)
if (power >= first_power) {
  const raised = String(power).replace(/./g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])
  const factor = Number((tick / 10 ** power).toPrecision(3))
  return (factor === 1 ? "" : factor + "×") + "10" + raised
}
const unit = Math.max(0, Math.min(4, Math.floor(power / 3)))
return Number((tick / 1000 ** unit).toPrecision(3)) + ["", "k", "M", "B", "T"][unit]
"""


@dataclass(frozen=True)
class Option:
    """One choice of a switch. It is offered while the switches before it have one of the options in `needs` on."""

    value: str
    text: str
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    colour: str = ""
    marker: str = ""


@dataclass(frozen=True)
class Switch:
    """A control above a figure: one option is on, or if `several`, any number, at first all."""

    key: str
    label: str
    options: Sequence[Option]
    several: bool = False


@dataclass(frozen=True)
class Points:
    """Marks. `texts` maps what a reader sees for a mark (`loss`) to the column that holds it as text."""

    data: Mapping[str, Any]
    x: str
    y: str
    colour: str
    marker: str
    texts: Mapping[str, str]
    tags: Tags


@dataclass(frozen=True)
class Curve:
    """A line, dashed except where `inside` has its value and not NaN, with a band if there are `low` and `high`."""

    data: Mapping[str, Any]  # x, centre, inside; low and high
    colour: str
    tags: Tags


@dataclass(frozen=True)
class View:
    """One pair of axes. `x` is logarithmic, and so is `y` if it has limits; else `y` follows what is shown."""

    x_label: str
    y_label: str
    x_limits: tuple[float, float]
    y_limits: tuple[float, float] | None
    series: Sequence[Points | Curve]
    tags: Tags
    counts: bool = True  # whether values of x are written as 10M


def head() -> str:
    """HTML that a page with fragments needs once: styles, the packed library, and the script that connects both."""
    script = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    library = f'<script type="text/plain" id="packed-library">{_packed_library()}</script>'
    return f"<style>{_STYLE}</style>\n{library}\n<script>{script}</script>\n"


@cache
def _packed_library() -> str:
    from bokeh.resources import Resources

    (code,) = Resources(mode="inline", components=["bokeh"], minified=True).js_raw[:1]
    return base64.b64encode(gzip.compress(code.encode(), 9, mtime=0)).decode()


def fragment(name: str, title: str, note: str, switches: Sequence[Switch], views: Sequence[View]) -> str:
    """HTML of one figure, in elements that may stand in a paragraph. `name` must be unique in the page.

    `title` is for readers who cannot see the figure; `note` stands below it.
    """
    from bokeh.embed import json_item
    from bokeh.layouts import column

    sources: dict[int, Any] = {}  # `id` of data -> the Bokeh source, because several views may show the same data
    figures = [_figure(view, sources) for view in views]
    item = json_item(column(*figures, sizing_mode="stretch_width"), target=f"plot-{name}")
    text = json.dumps(_renumbered(dict(item)), separators=(",", ":")).replace("<", "\\u003c")
    controls = "".join(map(_control, switches))
    name, title, note = map(html.escape, (name, title, note))
    return (
        f'<span data-figure="{name}"><span class="switches">{controls}</span>'
        f'<span class="plot" id="plot-{name}" tabindex="0" role="group" aria-label="{title}"></span>'
        f'<span class="hint">Point at a mark to read it, or step through marks with the arrow keys. {note}</span>'
        '<span class="ring" hidden></span><output aria-live="polite" hidden></output>'
        f'<script type="application/json">{text}</script></span>'
    )


def _control(switch: Switch) -> str:
    key, label = html.escape(switch.key), html.escape(switch.label)
    choices = "".join(_box(key, option) if switch.several else _item(option) for option in switch.options)
    if switch.several:
        return f'<span role="group" aria-label="{label}">{choices}</span>'
    return f'<label>{label} <select name="{key}">{choices}</select></label>'


def _box(key: str, option: Option) -> str:
    colour, symbol = MIDDLE_GREY.get(option.colour, option.colour), SYMBOLS.get(option.marker, "")
    box = f'<input type="checkbox" name="{key}" value="{html.escape(option.value)}" checked>'
    return f'<label>{box} <span style="color:{colour}">{symbol}</span> {html.escape(option.text)}</label>'


def _item(option: Option) -> str:
    value, needs = html.escape(option.value), html.escape(json.dumps(dict(option.needs)))
    return f'<option value="{value}" data-needs="{needs}">{html.escape(option.text)}</option>'


def _figure(view: View, sources: dict[int, Any]) -> Any:
    from bokeh.models import ColumnDataSource, CustomJSTickFormatter, DataRange1d, FixedTicker, Range1d, Span
    from bokeh.plotting import figure

    y_range = Range1d(*view.y_limits) if view.y_limits else DataRange1d(only_visible=True, range_padding=0.15)
    plot = figure(
        height=HEIGHT, sizing_mode="stretch_width", tools="box_zoom,pan,reset,save", x_axis_type="log",
        y_axis_type="log" if view.y_limits else "linear", x_range=Range1d(*view.x_limits), y_range=y_range,
        x_axis_label=view.x_label, y_axis_label=view.y_label, background_fill_color=None, border_fill_color=None,
        outline_line_color=None, toolbar_location="above", tags=[dict(view.tags)],
    )  # fmt: skip
    plot.toolbar.logo = None
    plot.toolbar.active_drag = None  # a finger scrolls the page
    plot.axis.axis_label_text_font_style = "normal"
    plot.xaxis.ticker = FixedTicker(ticks=log_ticks(*view.x_limits), minor_ticks=[])
    plot.xaxis.formatter = CustomJSTickFormatter(code=_TICK_TEXT, args={"first_power": 15 if view.counts else 3})
    if not view.y_limits:
        plot.add_layout(Span(location=0, dimension="width", line_width=1))
    for series in sorted(view.series, key=lambda series: isinstance(series, Points)):  # marks above curves
        source = sources.setdefault(id(series.data), ColumnDataSource(dict(series.data)))
        if isinstance(series, Points):
            _draw_points(plot, series, source)
        else:
            _draw_curve(plot, series, source)
    return plot


# Glyphs are added without the variants that `figure.scatter` and `figure.line` make, which would treble the page.


def _draw_points(plot: Any, points: Points, source: Any) -> None:
    from bokeh.models import Scatter

    colour = MIDDLE_GREY.get(points.colour, points.colour)
    edge, size = colour if points.marker == "X" else "white", 12 if points.marker == "D" else 9
    glyph = Scatter(
        x=points.x, y=points.y, marker=MARKERS[points.marker], size=size, fill_color=colour, line_color=edge
    )
    plot.add_glyph(source, glyph, tags=[dict(points.tags)], name=json.dumps(dict(points.texts)))


def _draw_curve(plot: Any, curve: Curve, source: Any) -> None:
    from bokeh.models import Line, VArea

    colour, tags = MIDDLE_GREY.get(curve.colour, curve.colour), [dict(curve.tags)]
    if "low" in curve.data:
        plot.add_glyph(source, VArea(x="x", y1="low", y2="high", fill_color=colour, fill_alpha=0.1), tags=tags)
    for column, width, dash in (("centre", 1.5, "dashed"), ("inside", 2, "solid")):
        line = Line(x="x", y=column, line_color=colour, line_width=width, line_dash=dash)
        plot.add_glyph(source, line, tags=tags)


def _renumbered(value: Any, numbers: dict[str, str] | None = None) -> Any:
    """The same document with ids counted from 1, because Bokeh's ids depend on what the process has drawn before."""
    numbers = {} if numbers is None else numbers
    if isinstance(value, list):
        return [_renumbered(item, numbers) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _renumbered(item, numbers) for key, item in value.items()}
    for key in ("id", "root_id"):
        if isinstance(changed.get(key), str):
            changed[key] = numbers.setdefault(changed[key], f"m{len(numbers) + 1}")
    return changed


def arrays(**columns: Any) -> dict[str, np.ndarray]:
    """Columns of numbers as a page stores them in the least space: exactly, as 8 bytes a number."""
    return {name: np.array(values, float) for name, values in columns.items()}
