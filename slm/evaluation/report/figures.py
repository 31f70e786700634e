"""Draw quality against size, quality against speed, the gain per doubling of N, and tasks. Error bars are 2 se."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from slm.evaluation.report.quality import target_error
from slm.evaluation.report.results import (
    Entry,
    Results,
    average,
    common_tasks,
    number,
    task_metric,
    tasks_of,
    unique_labels,
)
from slm.evaluation.report.scaling import Gain, gains
from slm.evaluation.report.speed import conditions, usual_conditions
from slm.evaluation.report.study import published_points
from slm.report.style import GREY, INK, PALE, Axes, Figure, Margins, colours, log_axis, markers, panels, short_name
from slm.runtime.words import TARGET_UNITS, is_number, plural
from slm.scaling.allocation import pareto_front
from slm.scaling.describe import exponent_text, has_complete_lists, is_identified

WIDTH_INCHES = 6.8
DASHES = ("-", "--", ":", "-.")
NUM_TASK_COLUMNS = 2


def _one_panel(title: str, names: Sequence[str], height: float = 4.0, **changes: float) -> tuple[Figure, Axes]:
    """Return a figure with one panel and a legend of `names`. `changes` replace margins, in inches (`Margins`)."""
    margins = Margins(**{"left": 0.8, "right": 0.25, "top": 0.15, "bottom": 0.5, **changes})
    figure, (axis,) = panels(1, title, ncols=1, width=WIDTH_INCHES, height=height, margins=margins, families=names)
    return figure, axis


def _draw_point(axis: Axes, names: Sequence[str], name: str, x: float, y: float, **bars: Any) -> None:
    axis.errorbar(x, y, marker=markers(names)[name], ms=5.5, color=colours(names)[name], mec="white", mew=0.5,
                  capsize=2.5, elinewidth=1.1, ls="", **bars)  # fmt: skip


def _half_bar(se: float | None) -> float | None:
    return None if se is None else 2 * se


def size_figure(results: Results) -> Figure | None:
    """Draw loss, or bits per byte (`fit_metric`), against N, with each family's law; None for fewer than two points."""
    metric = results.fit_metric
    rows = [(e, score) for e, score in results.scores_under(results.primary) if is_number(score.get(metric))]
    published = published_points(results)
    if len(rows) + len(published) < 2 or not rows or results.primary is None:
        return None
    names = [results.labels[entry["name"]] for entry, _ in rows]
    title = f"{metric.replace('_', ' ').capitalize()} against N on {results.primary.title}{_exponents(results.laws)}"
    figure, axis = _one_panel(title, names)
    published_N = [N for N, _ in published]
    published_losses = [loss for _, loss in published]
    all_N = [entry["params_total"] for entry, _ in rows] + published_N
    laws = [entry for entry in results.laws if has_complete_lists(entry.get("curve"), "x", "centre")]
    ranges = []  # lowest and highest value of each thing drawn
    for index, law in enumerate(laws):
        ranges.append(_draw_law(axis, law, max(all_N), DASHES[index % len(DASHES)]))
    if published:
        axis.plot(published_N, published_losses, ls="", marker="D", ms=9, mfc="none", mec=GREY, label="published")
        ranges.append((min(published_losses), max(published_losses)))
    for name, (entry, score) in zip(names, rows, strict=True):
        yerr = _half_bar(target_error(score, metric))
        _draw_point(axis, names, name, entry["params_total"], score[metric], yerr=yerr)
        ranges.append(_bar_ends(score, metric))
    if published or len(laws) > 1:
        axis.legend(loc="lower left", frameon=False, fontsize=8)
    log_axis(axis.xaxis, min(all_N) / 1.25, max(all_N) * 1.25)
    log_axis(axis.yaxis, min(low for low, _ in ranges) / 1.03, max(high for _, high in ranges) * 1.03, as_counts=False)
    axis.set_xlabel("N (all parameters)")
    axis.set_ylabel(TARGET_UNITS[metric])
    return figure


def _exponents(laws: Sequence[Entry]) -> str:
    """Return the exponents of one or two identified laws for the title; empty for none, and for more than two."""
    identified = [law for law in laws if is_identified(law, "alpha")]
    exponents = [f"{short_name(law['family'])} alpha = {exponent_text(law, 'alpha')}" for law in identified]
    return ": " + "; ".join(exponents) if len(exponents) in (1, 2) else ""


def _bar_ends(score: Entry, target: str) -> tuple[float, float]:
    """Return the ends of an error bar, cut at half the value because the axis is logarithmic."""
    half_bar = 2 * (target_error(score, target) or 0.0)
    value = float(score[target])
    return max(value - half_bar, value / 2), value + half_bar


def _draw_law(axis: Axes, law: Entry, largest_N: float, dashes: str) -> tuple[float, float]:
    """Draw a family's law and its band up to 1.3 `largest_N`; return the lowest and highest value of the law."""
    curve = law["curve"]
    x, centre = np.array(curve["x"]), np.array(curve["centre"], float)
    is_shown = x <= largest_N * 1.3
    label = f"law of {short_name(law['family'])}"
    axis.plot(x[is_shown], centre[is_shown], color=GREY, lw=1.4, ls=dashes, zorder=1.5, label=label)
    if has_complete_lists(curve, "low", "high"):
        low, high = np.array(curve["low"], float)[is_shown], np.array(curve["high"], float)[is_shown]
        # The band does not set the range of the axis: for three sizes it is so wide that it would flatten the points.
        axis.fill_between(x[is_shown], low, high, color=PALE, alpha=0.5, lw=0, zorder=1)
    return float(centre[is_shown].min()), float(centre[is_shown].max())


def pareto_figure(results: Results) -> Figure | None:
    """Draw quality against decode speed, and the Pareto front, for checkpoints measured under the usual conditions."""
    metric, usual = results.metric_for(results.primary), usual_conditions(results)
    is_comparable = metric == "bits_per_byte" or results.has_same_tokens(results.primary)
    if results.primary is None or usual is None or not is_comparable:
        return None
    rows = [
        (entry, entry["speed"]["decode_tokens_per_second"], score)
        for entry, score in results.scores_under(results.primary)
        if conditions(entry) == usual and is_number(score.get(metric))
    ]
    if len(rows) < 2:
        return None
    costs = np.array([[score[metric], -speed] for _, speed, score in rows])  # lower is better in both columns
    is_on_front = pareto_front(costs)
    names = [results.labels[entry["name"]] for entry, _, _ in rows]
    title = f"Quality against decode speed: {int(is_on_front.sum())} of {len(rows)} are on the Pareto front"
    figure, axis = _one_panel(title, names, bottom=0.65)
    front, ranges = [], []
    for name, (entry, speed, score), on_front in zip(names, rows, is_on_front, strict=True):
        slowest, fastest = entry["speed"].get("decode_spread") or (speed, speed)
        xerr = [[max(speed - slowest, 0)], [max(fastest - speed, 0)]]
        yerr = _half_bar(target_error(score, metric))
        _draw_point(axis, names, name, speed, score[metric], yerr=yerr, xerr=xerr, alpha=1.0 if on_front else 0.35)
        ranges.append(_bar_ends(score, metric))
        if on_front:
            front.append((speed, score[metric]))
    front.sort()
    # The best quality at a speed or more is that of the next faster checkpoint on the front.
    axis.plot([speed for speed, _ in front], [value for _, value in front], color=INK, lw=1, drawstyle="steps-pre",
              zorder=1.5)  # fmt: skip
    speeds = [speed for _, speed, _ in rows]
    log_axis(axis.xaxis, min(speeds) / 1.25, max(speeds) * 1.25)
    log_axis(axis.yaxis, min(low for low, _ in ranges) / 1.02, max(high for _, high in ranges) * 1.02, as_counts=False)
    axis.set_xlabel(f"decode, tokens per second: more is better\n({usual})")
    axis.set_ylabel(f"{TARGET_UNITS[metric]}, {short_name(results.primary.data)}: less is better")
    return figure


def doubling_figure(results: Results) -> Figure | None:
    """Draw the gain per doubling of N: measured points with error bars, and the curve of each law with its band."""
    all_gains = gains(results)
    if not all_gains:
        return None
    families = list(dict.fromkeys(gain.family for gain in all_gains))
    labels = dict(zip(families, unique_labels(families), strict=True))
    names = list(labels.values())
    metric = results.fit_metric.replace("_", " ")
    num_positive = sum(gain.value > 0 for gain in all_gains)
    title = f"Decrease of {metric} per doubling of N: positive in {num_positive} of {plural(len(all_gains), 'step')}"
    figure, axis = _one_panel(title, names, height=3.8, left=1.1, right=0.2)
    laws = [law for law in results.laws if has_complete_lists(law.get("doubling"), "x", "gain")]
    for law in laws:
        curve = law["doubling"]
        colour = colours(names)[labels[law["family"]]]
        # A doubling from x to 2 x is drawn at its geometric middle, as the measured gains are.
        x = math.sqrt(2) * np.array(curve["x"], float)
        axis.plot(x, curve["gain"], color=colour, alpha=0.6, lw=1.4, zorder=1.5)
        if has_complete_lists(curve, "low", "high"):
            axis.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.12, lw=0, zorder=1)
    for gain in all_gains:
        middle = math.sqrt(gain.smaller_N * gain.larger_N)
        xerr = [[middle - gain.smaller_N], [gain.larger_N - middle]]
        _draw_point(axis, names, labels[gain.family], middle, gain.value, yerr=_half_bar(gain.se), xerr=xerr)
    sizes = [size for gain in all_gains for size in (gain.smaller_N, gain.larger_N)]
    log_axis(axis.xaxis, min(sizes) / 1.15, max(sizes) * 1.15)
    _scale_gains(axis, all_gains, [value for law in laws for value in law["doubling"]["gain"]])
    axis.set_xlabel("N (all parameters); each bar spans the two sizes compared")
    axis.set_ylabel(f"decrease of {metric} per doubling of N")
    return figure


def _scale_gains(axis: Axes, all_gains: Sequence[Gain], law_gains: Sequence[float]) -> None:
    """Make the axis logarithmic if all laws and error bars lie above zero, else linear with a line at zero."""
    low = min([*law_gains, *(gain.value - 2 * (gain.se or 0.0) for gain in all_gains)])
    high = max([*law_gains, *(gain.value + 2 * (gain.se or 0.0) for gain in all_gains)])
    if low > 0:
        log_axis(axis.yaxis, low / 1.5, high * 1.5, as_counts=False)
        return
    height = high - low or 1.0
    axis.set_ylim(low - 0.08 * height, max(high, 0.0) + 0.08 * height)
    axis.axhline(0, color=INK, lw=0.8)


def tasks_figure(results: Results, metric: str = "value") -> Figure | None:
    """Draw one panel per task with one row per checkpoint, and a panel for the average of the common tasks.

    `metric` is "value", or a metric in `also`. None if no task has it. A dotted line marks chance.
    """
    entries = [entry for entry in results.entries if tasks_of(entry)]
    common = common_tasks(entries, metric)
    panel_values: dict[str, dict[str, tuple[float, float | None]]] = {}
    chances: dict[str, float | None] = {}
    for entry in entries:
        for task, result in tasks_of(entry).items():
            if measured := task_metric(result, metric):
                panel_values.setdefault(task, {})[entry["name"]] = (float(measured["value"]), number(measured, "se"))
                chances[task] = number(result, "chance") if metric == "value" else None
    if not panel_values:
        return None
    if len(common) > 1:
        title = f"average of {len(common)}"
        panel_values[title] = {entry["name"]: average(entry, common, metric) for entry in entries}
    names = [results.labels[entry["name"]] for entry in entries]
    left = 0.25 + 0.075 * max(map(len, names))
    measure = "values" if metric == "value" else "bits per byte of the right answer"
    figure, axes = panels(
        len(panel_values),
        f"Tasks: {measure} with 2 standard errors, {plural(len(names), 'checkpoint')}",
        ncols=NUM_TASK_COLUMNS,
        width=left + 2.0,
        height=0.8 + 0.19 * len(names),
        margins=Margins(left=left, top=0.25, bottom=0.37),
    )
    for axis, (title, values) in zip(axes, panel_values.items(), strict=True):
        if (chance := chances.get(title)) is not None:
            axis.axvline(chance, color=GREY, lw=1, ls=":", zorder=1)
        _draw_task(axis, title, names, [values.get(entry["name"]) for entry in entries])
    return figure


def _draw_task(axis: Axes, title: str, names: list[str], values: list[tuple[float, float | None] | None]) -> None:
    for y, (name, value_and_se) in enumerate(zip(names, values, strict=True)):
        if value_and_se is None:
            axis.text(0.5, y, "not evaluated", transform=axis.get_yaxis_transform(), fontsize=7, color=GREY,
                      ha="center", va="center", style="italic")  # fmt: skip
        else:
            value, se = value_and_se
            _draw_point(axis, names, name, value, y, xerr=_half_bar(se))
    axis.set_title(short_name(title), fontsize=8.5)
    axis.set_yticks(range(len(names)), labels=names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=4)
    axis.margins(x=0.15)
    axis.grid(False, axis="y")


FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    "size": size_figure,
    "pareto": pareto_figure,
    "doubling": doubling_figure,
    "tasks": tasks_figure,
    "task_bits": partial(tasks_figure, metric="bits_per_byte"),
}
