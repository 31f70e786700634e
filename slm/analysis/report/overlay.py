"""Models from elsewhere over the fitted curves: their figure, and their section with what they do not share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import Section, bullets, figure, folded, table
from slm.report.style import INK, Margins, axes_at, colours, log_axis, markers, sheet, short
from slm.runtime.words import (
    NOTHING,
    TARGET_NAMES,
    TARGET_UNITS,
    amount,
    axis_name,
    count,
    escape_markdown,
    interval,
    is_number,
    plural,
    sig,
    size_words,
)
from slm.scaling.describe import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 7.6, 4.4
"""Of the figure's panel, in inches."""
MARGINS = Margins(left=0.75, right=0.25, top=0.15)


def overlay_figure(analysis: Directory) -> Figure | None:
    """Runs and laws of all families in one panel, as far as the largest model goes, and the models by name."""
    laid = analysis.overlay
    families = [family for family in laid.get("families", []) if family["curve"]]
    if not families:
        return None
    models = plural(len(laid["points"]), "model")
    title = f"{models} from elsewhere beside the laws of these runs: not a controlled comparison"
    drawn, head = sheet(title, WIDTH, HEIGHT, analysis.families)
    inner = WIDTH - MARGINS.left - MARGINS.right, HEIGHT - MARGINS.top - MARGINS.bottom
    axis = axes_at(drawn, MARGINS.left, head + MARGINS.top, *inner)
    for family in families:
        _law(axis, analysis, family)
    x, y = ([point[key] for point in laid["points"]] for key in ("N", "value"))
    axis.plot(x, y, ls="", marker="*", ms=10, mfc="white", mec=INK, mew=1.1, zorder=4)
    for point in laid["points"]:
        axis.annotate(short(point["name"]), (point["N"], point["value"]), (-7, 5), textcoords="offset points",
                      ha="right", fontsize=7.5, color=INK, zorder=4)  # fmt: skip
    _axes(axis, analysis, families, y)
    return drawn


def _law(axis: Axes, analysis: Directory, family: Entry) -> None:
    """Runs as marks, the law within them as a line, beyond them dashed, and the band of one more run."""
    name, curve = family["family"], family["curve"]
    colour = colours(analysis.families)[name]
    x, y, low, high = (np.array([one[key] for one in curve], float) for key in ("N", "value", "low", "high"))
    seen = (family["range"][0] <= x) & (x <= family["range"][1])
    axis.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    axis.plot(x, y, color=colour, lw=1.1, ls=(0, (4, 2)))
    axis.plot(x[seen], y[seen], color=colour, lw=1.8)
    runs = analysis.results[analysis.results["family"] == name]
    axis.plot(runs[analysis.overlay["size"]], runs[analysis.overlay["target"]], ls="",
              marker=markers(analysis.families)[name], ms=3.6, mfc=colour, mec="white", mew=0.4)  # fmt: skip


def _axes(axis: Axes, analysis: Directory, families: list[Entry], values: list[float]) -> None:
    target = analysis.overlay["target"]
    x = np.array([one["N"] for family in families for one in family["curve"]])
    laws = [one["value"] for family in families for one in family["curve"]]
    y = np.array([*values, *laws, *analysis.results[target]], float)
    axis.grid(True)
    log_axis(axis.xaxis, x.min(), x.max())
    log_axis(axis.yaxis, y.min() / 1.06, y.max() * 1.06)
    axis.set_xlabel(axis_name("N", analysis.overlay["size"]))
    axis.set_ylabel(TARGET_UNITS[target])


def overlay_section(analysis: Directory) -> Section | None:
    """What each law says at the size of each model, and why the two do not compare like runs do."""
    laid = analysis.overlay
    if not laid:
        return None
    held = next((family["held"] for family in laid["families"] if family.get("held")), None)
    at = f" Curves are drawn at D = {amount('D', held)}." if held else ""
    section = Section("Models from elsewhere").add(
        f"`{escape_markdown(laid['source'])}`, laid over by {TARGET_NAMES[laid['target']]} (column "
        f"`{escape_markdown(laid['column'])}`). Each law is `{laid['law']}`, N being {size_words(laid['size'])}; it "
        f"says what "
        f"one more run of these families would reach at that size, with the {laid['level']:.0%} interval of one run.",
        "**This is no controlled comparison.** What differs:",
        bullets([escape_markdown(caveat) for caveat in laid["caveats"]]),
        figure(
            analysis.path,
            "overlay",
            "Stars: models from elsewhere. Other marks: runs. Line: the law, dashed beyond the runs; band: where one "
            f"more run would fall.{at}",
        ),
        bullets([escape_markdown(note) for note in laid["notes"]]),
    )
    for family in laid["families"]:
        section.add(_family(laid, family, alone=len(laid["families"]) == 1))
    return section


def _family(laid: Entry, family: Entry, *, alone: bool) -> str:
    """Every model beside the law of one family."""
    name = escape_markdown(family["family"])
    if family["refused"]:
        return f"{name}: no law. {escape_markdown(family['refused'])}."
    header = ("model", "measured", "N", "tokens", laid["target"].replace("_", " "), "the law", "off the law",
              "beyond the runs")  # fmt: skip
    rows = [_row(point, one) for point, one in zip(laid["points"], family["models"], strict=True)]
    doubt = "" if family["identified"] else " Its exponent is **NOT IDENTIFIED**, so take no value from it."
    content = table(header, rows)
    return f"{name}:{doubt}\n\n{content}" if alone or len(rows) <= 4 else folded(f"{name}{doubt}", content)


def _row(point: Entry, one: Entry) -> list[str]:
    off = f"{100 * math.expm1(one['log_ratio']):+.1f}%"
    inside = {True: " (inside)", False: " (outside)"}.get(one["inside"], "")
    return [
        escape_markdown(point["name"]),
        escape_markdown(point["measure"] or NOTHING),
        count(point["N"]),
        count(point["tokens"]) if is_number(point["tokens"]) else "not known",
        sig(point["value"]),
        f"{sig(one['value'])} {interval([one['low'], one['high']])}" if is_number(one["low"]) else sig(one["value"]),
        off + inside,
        f"{one['times_beyond']:.3g} times" if one["times_beyond"] > 1 else "within",
    ]
