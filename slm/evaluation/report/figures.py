"""The figures of an evaluation: quality against size and speed, gain per parameter, tasks. Error bars are 2 se."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.evaluation.report import figures_tasks
from slm.evaluation.report.differences import target_error
from slm.evaluation.report.fits import Gain, gains
from slm.evaluation.report.results import Entry, Results, unique_labels
from slm.evaluation.report.speed import conditions, usual_conditions
from slm.evaluation.report.study import published_points
from slm.report.style import (
    GREY,
    INK,
    PALE,
    Margins,
    colours,
    draw,
    log_axis,
    markers,
    panels,
    short,
)
from slm.runtime.words import TARGET_UNITS, interval, is_number, plural, sig
from slm.scaling.allocation import pareto_front
from slm.scaling.describe import has_complete_lists, is_identified

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.8
MARGINS = Margins(left=0.8, right=0.25, top=0.15, bottom=0.5)
DASHES = ("-", "--", ":", "-.")


def draw_figures(folder: Path, results: Results, fits: Sequence[Entry]) -> list[Path]:
    """Draw into `folder`/figures what the results allow; returns the files written."""
    figures: dict[str, Callable[[], Figure | None]] = {
        "size": lambda: size(results, fits),
        "pareto": lambda: pareto(results),
        "doubling": lambda: doubling(results, fits),
        "tasks": lambda: figures_tasks.tasks(results),
    }
    return draw(folder, figures)


def size(results: Results, fits: Sequence[Entry]) -> Figure | None:
    """Loss, or bits per byte where tokenizers differ, against N, with the power law of each family of three sizes."""
    target = results.fit_target
    rows = [(e, score) for e, score in results.scored(results.primary) if is_number(score.get(target))]
    reference = published_points(results) if target == "loss" else []
    if len(rows) + len(reference) < 2 or not rows or results.primary is None:
        return None
    names = [results.labels[entry["name"]] for entry, _ in rows]
    what = target.replace("_", " ").capitalize()
    title = f"{what} against N on {results.primary.title}" + _law_said(fits)
    figure, (axis,) = panels(1, title, columns=1, width=WIDTH, height=4.0, margins=MARGINS, families=names)
    N = [entry["params_total"] for entry, _ in rows] + [x for x, _ in reference]
    y = [score[target] for _, score in rows] + [value for _, value in reference]
    drawn = [entry for entry in fits if entry["fitted"] and has_complete_lists(entry.get("curve"), "x", "centre")]
    spans = [_law(axis, entry, max(N), DASHES[place % len(DASHES)]) for place, entry in enumerate(drawn)]
    if reference:
        axis.plot(*zip(*reference, strict=True), ls="", marker="D", ms=9, mfc="none", mec=GREY, label="published")
    for name, (entry, score) in zip(names, rows, strict=True):
        _mark(axis, names, name, entry["params_total"], score[target], yerr=target_error(score, target))
    if reference or len(drawn) > 1:
        axis.legend(loc="lower left", frameon=False, fontsize=8)
    lows, highs = zip(*[_ends(score, target) for _, score in rows], *spans, (min(y), max(y)), strict=True)
    log_axis(axis.xaxis, min(N) / 1.25, max(N) * 1.25)
    log_axis(axis.yaxis, min(lows) / 1.03, max(highs) * 1.03, counts=False)
    axis.grid(True)
    axis.set_xlabel("N (all parameters)")
    axis.set_ylabel(TARGET_UNITS[target])
    return figure


def _law_said(fits: Sequence[Entry]) -> str:
    said = [
        f"{short(entry['family'])} alpha = {sig(entry['params']['alpha'])} {interval(entry['ci95']['alpha'], 3)}"
        for entry in fits
        if is_identified(entry, "alpha")
    ]
    return ": " + "; ".join(said) if 0 < len(said) <= 2 else ""


def _ends(score: Entry, target: str) -> tuple[float, float]:
    reach = 2 * (target_error(score, target) or 0.0)
    value = float(score[target])
    return max(value - reach, value / 2), value + reach


def _law(axis: Axes, entry: Entry, largest: float, dashes: Any) -> tuple[float, float]:
    """The law of a family and the band of where it is, over its sizes; how far it reaches up and down."""
    x, centre = np.array(entry["curve"]["x"]), np.array(entry["curve"]["centre"], float)
    inside = x <= largest * 1.3
    axis.plot(
        x[inside], centre[inside], color=GREY, lw=1.4, ls=dashes, zorder=1.5, label=f"law of {short(entry['family'])}"
    )
    if has_complete_lists(entry["curve"], "low", "high"):
        low, high = (np.array(entry["curve"][end], float)[inside] for end in ("low", "high"))
        # The band of three sizes is as wide as the axes of many: it must not flatten the points.
        axis.fill_between(x[inside], low, high, color=PALE, alpha=0.5, lw=0, zorder=1)
    return float(centre[inside].min()), float(centre[inside].max())


def _mark(axis: Axes, names: Sequence[str], name: str, x: float, y: float, *, yerr: Any = None, **other: Any) -> None:
    bars = None if yerr is None else 2 * yerr
    axis.errorbar(x, y, yerr=bars, marker=markers(names)[name], ms=5.5, color=colours(names)[name], mec="white",
                  mew=0.5, capsize=2.5, elinewidth=1.1, ls="", **other)  # fmt: skip


def pareto(results: Results) -> Figure | None:
    """Quality against decode speed, of speeds measured alike; on the front is what nothing beats in both."""
    target, usual = results.target, usual_conditions(results)
    rows = [
        (entry, entry["speed"]["decode_tokens_per_second"], score)
        for entry, score in results.scored(results.primary)
        if conditions(entry) == usual
        and is_number((entry.get("speed") or {}).get("decode_tokens_per_second"))
        and is_number(score.get(target))
    ]
    comparable = target == "bits_per_byte" or results.same_tokens(results.primary)
    if len(rows) < 2 or results.primary is None or usual is None or not comparable:
        return None
    best = pareto_front(np.array([[score[target], -speed] for _, speed, score in rows]))
    names = [results.labels[entry["name"]] for entry, _, _ in rows]
    title = f"Quality against decode speed: {int(best.sum())} of {len(rows)} are on the Pareto front"
    figure, (axis,) = panels(
        1,
        title,
        columns=1,
        width=WIDTH,
        height=4.0,
        margins=Margins(left=0.8, right=0.25, top=0.15, bottom=0.65),
        families=names,
    )
    front = sorted((speed, score[target]) for (_, speed, score), on in zip(rows, best, strict=True) if on)
    axis.plot(*zip(*front, strict=True), color=INK, lw=1, alpha=0.7, zorder=1.5)
    for name, (entry, speed, score), on in zip(names, rows, best, strict=True):
        spread = (entry["speed"].get("decode_spread")) or [speed, speed]
        across = [[max(speed - spread[0], 0)], [max(spread[1] - speed, 0)]]
        yerr = target_error(score, target)
        _mark(axis, names, name, speed, score[target], yerr=yerr, xerr=across, alpha=1.0 if on else 0.35)
    speeds = [speed for _, speed, _ in rows]
    ends = [_ends(score, target) for _, _, score in rows]
    log_axis(axis.xaxis, min(speeds) / 1.25, max(speeds) * 1.25)
    log_axis(axis.yaxis, min(low for low, _ in ends) / 1.02, max(high for _, high in ends) * 1.02, counts=False)
    axis.grid(True)
    axis.set_xlabel(f"decode, tokens per second: more is better\n({usual.words})")
    axis.set_ylabel(f"{TARGET_UNITS[target]}, {short(results.primary.data)}: less is better")
    return figure


def doubling(results: Results, fits: Sequence[Entry]) -> Figure | None:
    """What doubling N gains: between neighbouring sizes with error bars, and by the law with its band."""
    steps = gains(results)
    if not steps:
        return None
    families = list(dict.fromkeys(step.family for step in steps))
    labels = dict(zip(families, unique_labels(families), strict=True))
    names = list(labels.values())
    rising = sum(step.value > 0 for step in steps)
    what = results.fit_target.replace("_", " ")
    title = f"Fall of {what} per doubling of N: {rising} of {plural(len(steps), 'step')} up in size gain"
    figure, (axis,) = panels(
        1, title, columns=1, width=WIDTH, height=3.8, margins=Margins(left=1.1, top=0.15), families=names
    )
    drawn = [entry for entry in fits if entry["fitted"] and has_complete_lists(entry.get("doubling"), "x", "gain")]
    for entry in drawn:
        _law_gain(axis, entry, colours(names)[labels[entry["family"]]])
    for step in steps:
        middle = math.sqrt(step.smaller * step.larger)
        _mark(axis, names, labels[step.family], middle, step.value, yerr=step.se,
              xerr=[[middle - step.smaller], [step.larger - middle]])  # fmt: skip
    sizes = [at for step in steps for at in (step.smaller, step.larger)]
    log_axis(axis.xaxis, min(sizes) / 1.15, max(sizes) * 1.15)
    _gain_axis(axis, steps, [gain for entry in drawn for gain in entry["doubling"]["gain"]])
    axis.grid(True)
    axis.set_xlabel("N (all parameters); each bar spans the two sizes compared")
    axis.set_ylabel(f"fall of {what} per doubling of N")
    return figure


def _law_gain(axis: Axes, entry: Entry, colour: str) -> None:
    of = entry["doubling"]
    x = math.sqrt(2) * np.array(of["x"], float)  # the middle of each doubling, as steps are drawn
    axis.plot(x, of["gain"], color=colour, alpha=0.6, lw=1.4, zorder=1.5)
    if has_complete_lists(of, "low", "high"):
        axis.fill_between(x, of["low"], of["high"], color=colour, alpha=0.12, lw=0, zorder=1)


def _gain_axis(axis: Axes, steps: Sequence[Gain], laws: Sequence[float]) -> None:
    """Logarithmic where every step gains for certain, else linear with zero in it."""
    lows, highs = ([step.value + sign * 2 * (step.se or 0.0) for step in steps] + list(laws) for sign in (-1, 1))
    if min(lows) > 0:
        log_axis(axis.yaxis, min(lows) / 1.5, max(highs) * 1.5, counts=False)
        return
    reach = max(highs) - min(*lows, 0.0) or 1.0
    axis.set_ylim(min(*lows, 0.0) - 0.08 * reach, max(*highs, 0.0) + 0.08 * reach)
    axis.axhline(0, color=INK, lw=0.8)
