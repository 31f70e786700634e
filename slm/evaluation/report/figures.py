"""The figures of an evaluation: quality against size and speed, gain of doubling N, tasks. Error bars are 2 se."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from slm.evaluation.report.quality import target_error
from slm.evaluation.report.results import Entry, Results, average, common_tasks, number, tasks_of, unique_labels
from slm.evaluation.report.scaling import Gain, gains
from slm.evaluation.report.speed import conditions, usual_conditions
from slm.evaluation.report.study import published_points
from slm.report.style import GREY, INK, PALE, Axes, Figure, Margins, colours, log_axis, markers, panels, short_name
from slm.runtime.words import TARGET_UNITS, is_number, plural
from slm.scaling.allocation import pareto_front
from slm.scaling.describe import exponent_text, has_complete_lists, is_identified

WIDTH_INCHES = 6.8
DASHES = ("-", "--", ":", "-.")
TASK_COLUMNS = 2


def _one_panel(title: str, names: Sequence[str], height: float = 4.0, **margins: float) -> tuple[Figure, Axes]:
    """A figure with one panel and a legend of `names`."""
    room = Margins(**{"left": 0.8, "right": 0.25, "top": 0.15, "bottom": 0.5} | margins)
    figure, (axis,) = panels(1, title, columns=1, width=WIDTH_INCHES, height=height, margins=room, families=names)
    return figure, axis


def _mark(axis: Axes, names: Sequence[str], name: str, x: float, y: float, **bars: Any) -> None:
    axis.errorbar(x, y, marker=markers(names)[name], ms=5.5, color=colours(names)[name], mec="white", mew=0.5,
                  capsize=2.5, elinewidth=1.1, ls="", **bars)  # fmt: skip


def _bar(se: float | None) -> float | None:
    """Half the length of an error bar."""
    return None if se is None else 2 * se


def size_figure(results: Results) -> Figure | None:
    """Loss, or bits per byte where tokenizers differ, against N, with the power law of each family of three sizes."""
    target = results.fit_target
    rows = [(e, score) for e, score in results.scored(results.primary) if is_number(score.get(target))]
    published = published_points(results)
    if len(rows) + len(published) < 2 or not rows or results.primary is None:
        return None
    names = [results.labels[entry["name"]] for entry, _ in rows]
    title = f"{target.replace('_', ' ').capitalize()} against N on {results.primary.title}{_exponents(results.laws)}"
    figure, axis = _one_panel(title, names)
    N = [entry["params_total"] for entry, _ in rows] + [x for x, _ in published]
    y = [score[target] for _, score in rows] + [value for _, value in published]
    laws = [entry for entry in results.laws if has_complete_lists(entry.get("curve"), "x", "centre")]
    spans = [_law(axis, entry, max(N), DASHES[place % len(DASHES)]) for place, entry in enumerate(laws)]
    if published:
        axis.plot(*zip(*published, strict=True), ls="", marker="D", ms=9, mfc="none", mec=GREY, label="published")
    for name, (entry, score) in zip(names, rows, strict=True):
        _mark(axis, names, name, entry["params_total"], score[target], yerr=_bar(target_error(score, target)))
    if published or len(laws) > 1:
        axis.legend(loc="lower left", frameon=False, fontsize=8)
    lows, highs = zip(*[_ends(score, target) for _, score in rows], *spans, (min(y), max(y)), strict=True)
    log_axis(axis.xaxis, min(N) / 1.25, max(N) * 1.25)
    log_axis(axis.yaxis, min(lows) / 1.03, max(highs) * 1.03, counts=False)
    axis.set_xlabel("N (all parameters)")
    axis.set_ylabel(TARGET_UNITS[target])
    return figure


def _exponents(fits: Sequence[Entry]) -> str:
    """The exponents of one or two identified laws, for the title."""
    identified = [entry for entry in fits if is_identified(entry, "alpha")]
    words = [f"{short_name(entry['family'])} alpha = {exponent_text(entry, 'alpha')}" for entry in identified]
    return ": " + "; ".join(words) if 0 < len(words) <= 2 else ""


def _ends(score: Entry, target: str) -> tuple[float, float]:
    """The ends of an error bar."""
    reach = 2 * (target_error(score, target) or 0.0)
    value = float(score[target])
    return max(value - reach, value / 2), value + reach


def _law(axis: Axes, entry: Entry, largest: float, dashes: Any) -> tuple[float, float]:
    """Draw a family's law and its band over its sizes; returns the lowest and highest value of the law."""
    x, centre = np.array(entry["curve"]["x"]), np.array(entry["curve"]["centre"], float)
    inside = x <= largest * 1.3
    label = f"law of {short_name(entry['family'])}"
    axis.plot(x[inside], centre[inside], color=GREY, lw=1.4, ls=dashes, zorder=1.5, label=label)
    if has_complete_lists(entry["curve"], "low", "high"):
        low, high = (np.array(entry["curve"][end], float)[inside] for end in ("low", "high"))
        # The band is not in the span: that of three sizes is so wide that it would flatten the points.
        axis.fill_between(x[inside], low, high, color=PALE, alpha=0.5, lw=0, zorder=1)
    return float(centre[inside].min()), float(centre[inside].max())


def pareto_figure(results: Results) -> Figure | None:
    """Quality against decode speed, of speeds measured under the same conditions; nothing beats the front in both."""
    target, usual = results.target_by(results.primary), usual_conditions(results)
    rows = [
        (entry, entry["speed"]["decode_tokens_per_second"], score)
        for entry, score in results.scored(results.primary)
        if usual is not None and conditions(entry) == usual and is_number(score.get(target))
    ]
    comparable = target == "bits_per_byte" or results.same_tokens(results.primary)
    if len(rows) < 2 or results.primary is None or usual is None or not comparable:
        return None
    on_front = pareto_front(np.array([[score[target], -speed] for _, speed, score in rows]))
    names = [results.labels[entry["name"]] for entry, _, _ in rows]
    title = f"Quality against decode speed: {int(on_front.sum())} of {len(rows)} are on the Pareto front"
    figure, axis = _one_panel(title, names, bottom=0.65)
    front = sorted((speed, score[target]) for (_, speed, score), on in zip(rows, on_front, strict=True) if on)
    axis.plot(*zip(*front, strict=True), color=INK, lw=1, alpha=0.7, zorder=1.5)
    for name, (entry, speed, score), on in zip(names, rows, on_front, strict=True):
        low, high = entry["speed"].get("decode_spread") or (speed, speed)
        xerr, yerr = [[max(speed - low, 0)], [max(high - speed, 0)]], _bar(target_error(score, target))
        _mark(axis, names, name, speed, score[target], yerr=yerr, xerr=xerr, alpha=1.0 if on else 0.35)
    speeds = [speed for _, speed, _ in rows]
    lows, highs = zip(*(_ends(score, target) for _, _, score in rows), strict=True)
    log_axis(axis.xaxis, min(speeds) / 1.25, max(speeds) * 1.25)
    log_axis(axis.yaxis, min(lows) / 1.02, max(highs) * 1.02, counts=False)
    axis.set_xlabel(f"decode, tokens per second: more is better\n({usual})")
    axis.set_ylabel(f"{TARGET_UNITS[target]}, {short_name(results.primary.data)}: less is better")
    return figure


def doubling_figure(results: Results) -> Figure | None:
    """What doubling N gains: between neighbouring sizes with error bars, and by the law with its band."""
    steps = gains(results)
    if not steps:
        return None
    families = list(dict.fromkeys(step.family for step in steps))
    labels = dict(zip(families, unique_labels(families), strict=True))
    names = list(labels.values())
    target = results.fit_target.replace("_", " ")
    rising = sum(step.value > 0 for step in steps)
    title = f"Fall of {target} per doubling of N: {rising} of {plural(len(steps), 'step')} up in size gain"
    figure, axis = _one_panel(title, names, height=3.8, left=1.1, right=0.2)
    laws = [entry for entry in results.laws if has_complete_lists(entry.get("doubling"), "x", "gain")]
    for entry in laws:
        curve, colour = entry["doubling"], colours(names)[labels[entry["family"]]]
        x = math.sqrt(2) * np.array(curve["x"], float)  # the middle of each doubling, as steps are drawn
        axis.plot(x, curve["gain"], color=colour, alpha=0.6, lw=1.4, zorder=1.5)
        if has_complete_lists(curve, "low", "high"):
            axis.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.12, lw=0, zorder=1)
    for step in steps:
        middle = math.sqrt(step.smaller * step.larger)
        xerr = [[middle - step.smaller], [step.larger - middle]]
        _mark(axis, names, labels[step.family], middle, step.value, yerr=_bar(step.se), xerr=xerr)
    log_axis(axis.xaxis, min(s.smaller for s in steps) / 1.15, max(s.larger for s in steps) * 1.15)
    _scale_gains(axis, steps, [gain for entry in laws for gain in entry["doubling"]["gain"]])
    axis.set_xlabel("N (all parameters); each bar spans the two sizes compared")
    axis.set_ylabel(f"fall of {target} per doubling of N")
    return figure


def _scale_gains(axis: Axes, steps: Sequence[Gain], laws: Sequence[float]) -> None:
    """Make the axis logarithmic if every step gains for certain, else linear and down to zero."""
    low = min(*laws, *(step.value - 2 * (step.se or 0.0) for step in steps), math.inf)
    high = max(*laws, *(step.value + 2 * (step.se or 0.0) for step in steps), -math.inf)
    if low > 0:
        log_axis(axis.yaxis, low / 1.5, high * 1.5, counts=False)
        return
    reach = high - low or 1.0
    axis.set_ylim(low - 0.08 * reach, max(high, 0.0) + 0.08 * reach)
    axis.axhline(0, color=INK, lw=0.8)


def tasks_figure(results: Results) -> Figure | None:
    """A panel a task, a row a checkpoint, and the average of the common tasks."""
    entries = [entry for entry in results.entries if tasks_of(entry)]
    if not entries:
        return None
    common = common_tasks(entries)
    values: dict[str, dict[str, tuple[float, float | None]]] = {}
    for entry in entries:
        for task, result in tasks_of(entry).items():
            values.setdefault(task, {})[entry["name"]] = float(result["value"]), number(result, "se")
    if len(common) > 1:
        values[f"average of {len(common)}"] = {entry["name"]: average(entry, common) for entry in entries}
    names = [results.labels[entry["name"]] for entry in entries]
    left = 0.25 + 0.075 * max(map(len, names))
    figure, axes = panels(
        len(values),
        f"Tasks: values with 2 standard errors, {plural(len(names), 'checkpoint')}",
        columns=TASK_COLUMNS,
        width=left + 2.0,
        height=0.8 + 0.19 * len(names),
        margins=Margins(left=left, top=0.25, bottom=0.37),
    )
    for axis, (title, by_name) in zip(axes, values.items(), strict=True):
        _task_panel(axis, title, names, [by_name.get(entry["name"]) for entry in entries])
    return figure


def _task_panel(axis: Axes, title: str, names: list[str], values: list[tuple[float, float | None] | None]) -> None:
    for y, (name, value) in enumerate(zip(names, values, strict=True)):
        if value is None:
            axis.text(0.5, y, "not evaluated", transform=axis.get_yaxis_transform(), fontsize=7, color=GREY,
                      ha="center", va="center", style="italic")  # fmt: skip
        else:
            _mark(axis, names, name, value[0], y, xerr=_bar(value[1]))
    axis.set_title(short_name(title), fontsize=8.5)
    axis.set_yticks(range(len(names)), labels=names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=4)
    axis.margins(x=0.15)
    axis.grid(False, axis="y")


FIGURES = {"size": size_figure, "pareto": pareto_figure, "doubling": doubling_figure, "tasks": tasks_figure}
