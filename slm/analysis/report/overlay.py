"""Models from elsewhere over the fitted curves: a figure, and a section on how these models differ from the runs."""

import math

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import Section, bullets, folded, table
from slm.report.style import INK, Axes, Figure, Margins, draw_law, log_axis, panels, plot_runs, short_name
from slm.runtime.words import (
    NO_VALUE,
    amount,
    axis_name,
    count,
    escape_markdown,
    format_number,
    is_number,
    plural,
    size_words,
    target_label,
    target_name,
    with_interval,
)
from slm.scaling.describe import Entry, family_name

MAX_VISIBLE_MODELS = 4  # if there are several families, longer tables are folded
WITHIN = "within"


def overlay_figure(analysis: Directory) -> Figure | None:
    """Models from elsewhere, beside the runs and laws of all families, with N up to the largest model."""
    overlay = analysis.overlay
    families = [family for family in overlay.get("families", []) if family["curve"]]
    if not families:
        return None
    models = plural(len(overlay["points"]), "model")
    title = f"{models} from elsewhere beside the laws of these runs: not a controlled comparison"
    margins = Margins(left=0.75, right=0.25, top=0.15)
    figure, (axis,) = panels(1, title, ncols=1, width=7.6, height=4.4, margins=margins, families=analysis.families)
    for family in families:
        _draw_family(axis, analysis, family)
    sizes, values = ([point[key] for point in overlay["points"]] for key in ("N", "value"))
    axis.plot(sizes, values, ls="", marker="*", ms=10, mfc="white", mec=INK, mew=1.1, zorder=4)
    for point in overlay["points"]:
        axis.annotate(short_name(point["name"]), (point["N"], point["value"]), (-7, 5), textcoords="offset points",
                      ha="right", fontsize=7.5, color=INK, zorder=4)  # fmt: skip
    curve_points = [point for family in families for point in family["curve"]]
    x = [point["N"] for point in curve_points]
    y = np.array([*values, *(point["value"] for point in curve_points), *analysis.results[overlay["target"]]], float)
    log_axis(axis.xaxis, min(x), max(x))
    log_axis(axis.yaxis, y.min() / 1.06, y.max() * 1.06)
    axis.set_xlabel(axis_name("N", overlay["size"]))
    axis.set_ylabel(target_label(overlay["target"]))
    return figure


def _draw_family(axis: Axes, analysis: Directory, family: Entry) -> None:
    name = family["family"]
    colour = analysis.colour(name)
    keys = ("N", "value", "low", "high")
    x, y, low, high = (np.array([point[key] for point in family["curve"]], float) for key in keys)
    axis.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    smallest_run, largest_run = family["range"]
    draw_law(axis, x, y, (smallest_run <= x) & (x <= largest_run), colour)
    rows = analysis.family_rows(name)
    plot_runs(axis, rows[analysis.overlay["size"]], rows[analysis.overlay["target"]], colour, analysis.marker(name))


def overlay_section(analysis: Directory) -> Section | None:
    """The prediction of each law at the size of each model, and how the models differ from the runs."""
    overlay = analysis.overlay
    if not overlay:
        return None
    tokens = next((family["held"] for family in overlay["families"] if family.get("held")), None)
    curves_at = f" Curves are drawn at D = {amount('D', tokens)}." if tokens else ""
    caption = "Stars: models from elsewhere. Other marks: runs. Line: the law, dashed beyond the runs. "
    caption += f"Band: prediction interval of a new run.{curves_at}"
    return Section("Models from elsewhere").add(
        f"The models of `{escape_markdown(overlay['source'])}` are compared by {target_name(overlay['target'])} "
        f"(column `{escape_markdown(overlay['column'])}`) with the law `{overlay['law']}`, where N counts "
        f"{size_words(overlay['size'])}. The law of a family predicts the result of a new run of this family at the "
        f"size of the model, with a {overlay['level']:.0%} interval.",
        "**This is not a controlled comparison.** What differs:",
        bullets(map(escape_markdown, overlay["caveats"])),
        analysis.figure("overlay", caption),
        bullets(map(escape_markdown, overlay["notes"])),
        *(_family_table(overlay, family) for family in overlay["families"]),
    )


def _family_table(overlay: Entry, family: Entry) -> str:
    name = family_name(family)
    if family["refused"]:
        return f"{name}: no law. {escape_markdown(family['refused'])}."
    header = ("model", "measured on", "N", "tokens", target_name(overlay["target"]), "predicted by the law",
              "measured relative to the law", "N beyond the runs")  # fmt: skip
    rows = [_cells(point, model) for point, model in zip(overlay["points"], family["models"], strict=True)]
    doubt = "" if family["identified"] else " Its exponent is **NOT IDENTIFIED**, so do not quote these predictions."
    content = table(header, rows)
    is_visible = len(overlay["families"]) == 1 or len(rows) <= MAX_VISIBLE_MODELS
    return f"{name}:{doubt}\n\n{content}" if is_visible else folded(f"{name}{doubt}", content)


def overlay_lines(analysis: Directory) -> list[str]:
    """Lines for the terminal: every model beside the law of each family, and how the models differ from the runs."""
    overlay = analysis.overlay
    if not overlay:
        return []
    lines = [f"Models from elsewhere, by {target_name(overlay['target'])}, and `{overlay['law']}` at their sizes:"]
    for family in overlay["families"]:
        if family["refused"]:
            lines.append(f"  {family['family']}: no law. {family['refused']}.")
            continue
        for point, model in zip(overlay["points"], family["models"], strict=True):
            name, _, N, _, value, predicted, deviation, beyond = _cells(point, model)
            where = f"{beyond} the runs" if beyond == WITHIN else f"{beyond} beyond the runs"
            lines.append(f"  {name}, N = {N}: {value}; {family['family']}: {predicted}, off by {deviation}, {where}")
    return lines + [f"- {sentence}" for sentence in [*overlay["caveats"], *overlay["notes"]]]


def _cells(point: Entry, model: Entry) -> list[str]:
    inside_text = {True: " (inside)", False: " (outside)"}.get(model["inside"], "")  # None: unknown
    return [
        escape_markdown(point["name"]),
        escape_markdown(point["measure"] or NO_VALUE),
        count(point["N"]),
        count(point["tokens"]) if is_number(point["tokens"]) else "unknown",
        format_number(point["value"]),
        with_interval(model["value"], [model["low"], model["high"]]),
        f"{100 * math.expm1(model['log_ratio']):+.1f}%{inside_text}",
        f"{format_number(model['times_beyond'], 3)} times" if model["times_beyond"] > 1 else WITHIN,
    ]
