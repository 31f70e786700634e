"""Figures of the fits themselves: curves, residuals, profiles, extrapolation, gain of doubling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from slm.analysis.report.directory import Directory
from slm.report.style import GREY, INK, Margins, colours, log_axis, markers, panels, short, tick_label
from slm.runtime.words import TARGET_UNITS, amount, axis_name, interval, is_number, percent, plural, sig
from slm.scaling.describe import Entry, has_complete_lists, is_identified, laws_of, variable_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 2.0
"""A published law off by this factor, as at a budget far from its own, would leave the runs a strip of the panel."""


def curves(analysis: Directory) -> Figure | None:
    """Points and fitted curves: all families in one panel, and each in a panel of its own with its bands."""
    entries = [
        e
        for e in analysis.own
        if has_complete_lists(e.get("curve"), "x", "centre")
        and has_complete_lists(e.get("points"), "value", "residual")
    ]
    if not entries:
        return None
    several = len(entries) > 1
    together = several and _same_held(entries)
    wide = 3.15 if several else 6.8
    figure, axes = panels(
        len(entries) + together,
        _curves_title(analysis, entries),
        columns=3,
        width=wide,
        height=2.7 if several else 4.2,
        families=analysis.families if several else (),
    )
    for axis, entry in zip(axes[together:], entries, strict=True):
        _bands(axis, analysis, entry)
        _points(axis, analysis, entry)
        _references(axis, analysis, entry)
        _floor(axis, analysis, entry)
        if several:
            axis.set_title(
                short(entry["family"]) + ("" if together else f" at {_held(entry)}"),
                color=colours(analysis.families)[entry["family"]],
                fontweight="bold",
            )
    if together:
        axes[0].set_title("all families")
        for entry in entries:
            _line(axes[0], analysis, entry)
            _points(axes[0], analysis, entry)
    _same_axes(axes, analysis, entries)
    return figure


def _curves_title(analysis: Directory, entries: list[Entry]) -> str:
    law, target = analysis.primary["law"], analysis.primary["target"].replace("_", " ")
    first = entries[0]
    variable = first["curve"]["variable"]
    held = _held(first)
    if len(entries) > 1:
        answer = analysis.comparison["verdict"].get("distinguishable")
        said = {True: "the families scale differently", False: "exponents are not distinguishable"}.get(answer)
        title = f"{target.capitalize()} against {variable}" + (f": {said}" if said else "")
    else:
        name = first["exponents"][0]
        title = f"{target.capitalize()} of {short(first['family'])} against {variable}: " + (
            f"{name} = {sig(first['params'][name])} {interval(first['ci95'][name])}"
            if is_identified(first, name)
            else f"{name} not identified"
        )
    title += f", under {equation(analysis, law)}"
    at = held if _same_held(entries) else "values that differ by family, so compare slopes only"
    return title + (f" (points moved along the law to {at})" if held else "")


def _held(entry: Entry) -> str:
    """Where a law's other variables are held in its curve."""
    return ", ".join(f"{name} = {amount(name, at)}" for name, at in (entry["curve"].get("held") or {}).items())


def _same_held(entries: list[Entry]) -> bool:
    """Whether all curves hold the other variables at the same values, so that they may share axes."""
    return len({_held(entry) for entry in entries}) == 1


def equation(analysis: Directory, law: str) -> str:
    """A law as people write it, not to be broken into lines."""
    return analysis.equation(law).replace(" ", "\u00a0")


def _bands(axis: Axes, analysis: Directory, entry: Entry) -> None:
    curve, colour = entry["curve"], colours(analysis.families)[entry["family"]]
    x = np.array(curve["x"])
    for start, end, alpha in (("run_low", "run_high", 0.12), ("low", "high", 0.28)):
        low, high = np.array(curve[start], float), np.array(curve[end], float)  # NaN where there is no band
        axis.fill_between(x, low, high, color=colour, alpha=alpha, lw=0)
    _line(axis, analysis, entry)


def _line(axis: Axes, analysis: Directory, entry: Entry) -> None:
    curve, colour = entry["curve"], colours(analysis.families)[entry["family"]]
    x, y = np.array(curve["x"]), np.array(curve["centre"], float)
    seen = x <= max(entry["points"][curve["variable"]]) * 1.001
    axis.plot(x[seen], y[seen], color=colour, lw=1.6)
    axis.plot(x[~seen], y[~seen], color=colour, lw=1.2, ls=(0, (4, 2)))


def _points(axis: Axes, analysis: Directory, entry: Entry) -> None:
    """Every run if the law has one variable; else the fitted points, moved along the law to where others are held."""
    x, y = _shown_points(analysis, entry)
    family = entry["family"]
    axis.plot(
        x,
        y,
        ls="",
        marker=markers(analysis.families)[family],
        ms=3.6,
        mfc=colours(analysis.families)[family],
        mec="white",
        mew=0.4,
    )


def _shown_points(analysis: Directory, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    variable = entry["curve"]["variable"]
    if not entry["curve"].get("held"):
        frame = analysis.results[analysis.results["family"] == entry["family"]]
        column, target = analysis.column(variable), entry["target"]
        if {column, target} <= set(frame):
            return frame[column].to_numpy(float), frame[target].to_numpy(float)
        return np.array(entry["points"][variable]), np.array(entry["points"]["value"], float)
    x = np.array(entry["points"][variable], float)
    curve = np.interp(np.log(x), np.log(entry["curve"]["x"]), np.log(entry["curve"]["centre"]))
    return x, np.exp(curve + np.array(entry["points"]["residual"], float))


def _references(axis: Axes, analysis: Directory, entry: Entry) -> None:
    """Published laws over the same sizes, only with the same target and the same N, and not where they are `FAR`."""
    if entry["curve"].get("held") or entry["curve"]["variable"] != "N":
        return
    ends: list[tuple[float, str]] = []
    for row in analysis.comparison.get("references") or []:
        alike = row["family"] == entry["family"] and row["target"] == entry["target"] and row["size"] == entry["size"]
        if not (alike and row.get("same_size_definition") and row.get("curve")):
            continue
        x = np.unique(row["curve"]["N"])
        log_y = np.log(row["curve"]["value"])
        y = np.exp([log_y[np.array(row["curve"]["N"]) == one].mean() for one in x])
        if abs(math.log(y[-1] / _fitted_at_largest(entry))) > math.log(FAR):
            continue
        axis.plot(x, y, color=GREY, lw=1, ls="--", zorder=1.5)
        ends.append((float(y[-1]), row["reference"] + (" (outside its range)" if row.get("outside_range") else "")))
    _label_references(axis, entry, sorted(ends, reverse=True))


def _label_references(axis: Axes, entry: Entry, ends: list[tuple[float, str]]) -> None:
    """Names at the right edge, on that side of the references where the fitted curve is not."""
    if not ends:
        return
    largest = max(entry["points"]["N"])
    above = ends[0][0] > _fitted_at_largest(entry)
    wide = axis.get_position().width * axis.get_figure().get_figwidth() > 4  # type: ignore[union-attr]
    for place, (_, name) in enumerate(ends):
        axis.annotate(
            name,
            (largest if wide else 0.99, ends[0][0] if above else ends[-1][0]),
            (8 if wide else 0, 8 + 9 * (len(ends) - 1 - place) if above else -12 - 9 * place),
            xycoords=("data" if wide else "axes fraction", "data"),
            textcoords="offset points",
            ha="left" if wide else "right",
            fontsize=7,
            color="#666666",
        )


def _fitted_at_largest(entry: Entry) -> float:
    """The fitted curve at the largest N of the points."""
    largest, curve = max(entry["points"]["N"]), entry["curve"]
    return float(np.exp(np.interp(np.log(largest), np.log(curve["x"]), np.log(curve["centre"]))))


def _floor(axis: Axes, analysis: Directory, entry: Entry) -> None:
    name = entry["floor"]
    floor = entry["params"].get(name)
    if not is_identified(entry, name) or not floor:
        return
    colour = colours(analysis.families)[entry["family"]]
    axis.axhline(floor, color=colour, lw=1, ls=":")
    text = f"floor {name} = {sig(floor)} {interval(entry['ci95'][name])}"
    axis.annotate(
        text, (0.02, floor), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=7.5
    )


def _same_axes(axes: list[Axes], analysis: Directory, entries: list[Entry]) -> None:
    variable, size, target = entries[0]["curve"]["variable"], analysis.primary["size"], analysis.primary["target"]
    x = np.concatenate([e["curve"]["x"] for e in entries])
    seen = [_shown_points(analysis, e)[1] for e in entries]
    within = [np.array(e["curve"]["centre"], float) for e in entries]
    floors = [
        [e["params"][e["floor"]]] for e in entries if is_identified(e, e["floor"]) and e["params"].get(e["floor"])
    ]
    published = [line.get_ydata() for axis in axes for line in axis.get_lines() if line.get_color() == GREY]
    y = np.concatenate([np.asarray(part, float) for part in (*seen, *within, *floors, *published)])
    for axis in axes:
        axis.grid(True)
        log_axis(axis.xaxis, x.min(), x.max(), counts=variable != "C")
        log_axis(axis.yaxis, np.nanmin(y) / 1.04, np.nanmax(y) * 1.04)
        axis.set_xlabel(axis_name(variable, size))
    for axis in axes[::3]:
        axis.set_ylabel(TARGET_UNITS[target])


def residuals(analysis: Directory) -> Figure | None:
    """Log residuals against N, and against what else varies."""
    entries = [entry for entry in analysis.own if has_complete_lists(entry.get("points"), "value", "residual")]
    if not entries:
        return None
    variables = [v for v in _columns_of(entries) if _varies(entries, v)]
    largest = max(entries, key=lambda entry: entry["rmse_log"] or 0.0)
    single = len(entries) == 1
    title = f"Residuals of {equation(analysis, analysis.primary['law'])}: root mean square " + (
        percent(largest["rmse_log"])
        if single
        else f"at most {percent(largest['rmse_log'])}, largest for {short(largest['family'])}"
    )
    figure, axes = panels(
        len(variables), title, columns=2, width=6.2 if len(variables) == 1 else 4.7, families=analysis.families
    )
    sigmas = [entry["sigma_log"] for entry in entries if is_number(entry.get("sigma_log"))]
    for axis, variable in zip(axes, variables, strict=True):
        if sigmas:
            axis.axhspan(-200 * max(sigmas), 200 * max(sigmas), color="#F3F3F3", lw=0, zorder=0)
        axis.axhline(0, color=INK, lw=0.8)
        for entry in entries:
            family, points = entry["family"], entry["points"]
            style: dict[str, Any] = {
                "marker": markers(analysis.families)[family],
                "color": colours(analysis.families)[family],
            }
            axis.plot(points[variable], 100 * np.array(points["residual"], float), ls="", ms=4, alpha=0.8, **style)
        x = np.concatenate([np.array(entry["points"][variable], float) for entry in entries])
        log_axis(axis.xaxis, x.min() / 1.15, x.max() * 1.15, counts=variable != "C")
        axis.set_xlabel(axis_name(variable, analysis.primary["size"]))
    axes[0].set_ylabel("measured above law (%)")
    if sigmas:
        axes[-1].text(
            1, 1.01, "grey: ±2 sigma" + ("" if single else " (the largest)"), ha="right", fontsize=7.5, color="#666666",
            transform=axes[-1].transAxes,
        )  # fmt: skip
    return figure


def _columns_of(entries: list[Entry]) -> list[str]:
    return [v for v in entries[0]["variables"] if v in entries[0]["points"]]


def _varies(entries: list[Entry], variable: str) -> bool:
    values = np.concatenate([np.array(entry["points"][variable], float) for entry in entries])
    return bool(values.max() > values.min() * 1.001)


def profiles(analysis: Directory) -> Figure | None:
    """|t| of the primary law's exponents; beside a law without a floor, also that of the law with one."""
    main = analysis.primary["law"]
    laws = [
        main,
        *(law for law in (main.replace("power", "power_floor"),) if law != main and analysis.entries(law=law)),
    ]
    found = [
        (entry, name)
        for law in laws
        for entry in analysis.entries(law=law)
        for name in entry.get("profiles") or {}
        if has_complete_lists(entry["profiles"][name], "values")
        and sum(map(is_number, entry["profiles"][name]["t"])) > 2
    ]
    if not found:
        return None
    number = plural(len({e["family"] for e, _ in found}), "family", "families")
    lost = [(entry, name) for entry, name in found if not is_identified(entry, name)]
    title = f"Profile likelihoods of exponents, {number}: " + (
        f"{len(lost)} of {len(found)} do not identify theirs" if lost else "every one is bounded on both sides"
    )
    figure, axes = panels(
        len(found),
        title,
        columns=min(4, len(found)),
        width=2.35,
        height=2.4,
        margins=Margins(left=0.5, right=0.15, top=0.45),
    )
    for axis, (entry, name) in zip(axes, found, strict=True):
        _profile(axis, analysis, entry, name)
    for axis in axes[:: min(4, len(found))]:
        axis.set_ylabel("|t|")
    return figure


def _profile(axis: Axes, analysis: Directory, entry: Entry, name: str) -> None:
    one, colour = entry["profiles"][name], colours(analysis.families)[entry["family"]]
    values, t = np.array(one["values"], float), np.abs(np.array(one["t"], float))
    values, t = values[np.isfinite(t)], t[np.isfinite(t)]
    critical = float(stats.t.ppf(0.5 + analysis.level / 2, max(1, entry.get("degrees_of_freedom") or 1)))
    near = t <= 2 * critical
    low, high = entry["ci95"][name]
    left = low if is_number(low) else values[near].min()
    right = high if is_number(high) else values[near].max()
    identified = is_identified(entry, name)
    axis.axvspan(left, right, color=colour if identified else GREY, alpha=0.15, lw=0)
    axis.plot(values, t, color=colour, lw=1.6, ls="-" if identified else "--")
    axis.axhline(critical, color=INK, lw=0.8, ls=":")
    axis.text(1, critical, f"{analysis.level:.0%}: {critical:.2f} ", ha="right", va="center", fontsize=7,
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
              transform=axis.get_yaxis_transform())  # fmt: skip
    axis.set_ylim(0, 2.2 * critical)
    centre = float(values[np.argmin(t)])
    reach = 1.6 * max(right - centre, centre - left, 1e-9)
    axis.set_xlim(max(values.min(), centre - reach), min(values.max(), centre + reach))
    axis.locator_params(axis="x", nbins=5)
    told = f"{name} {interval(entry['ci95'][name], 3)}" if identified else f"{name}: NOT IDENTIFIED"
    axis.set_title(f"{short(entry['family'])}, {entry['law']}\n{told}", fontsize=7.5)
    axis.set_xlabel(f"{name} (exponent in {variable_of(entry, name)})")


def extrapolation(analysis: Directory) -> Figure | None:
    """For each law: held-out sizes predicted from all smaller ones, errors with their prediction intervals."""
    entries = [entry for entry in analysis.entries() if _next_sizes(entry)]
    if not entries:
        return None
    laws = laws_of(entries)
    steps = [step for entry in entries for step in _next_sizes(entry)]
    title = (
        f"Next size predicted from all smaller ones: {sum(step['n_inside'] for step in steps)} of "
        f"{plural(sum(step['n_rows'] for step in steps), 'result')} in the {analysis.level:.0%} interval"
    )
    figure, axes = panels(
        len(laws), title, columns=3, width=2.6, height=2.4, margins=Margins(left=0.62), families=analysis.families
    )
    for axis, law in zip(axes, laws, strict=True):
        _extrapolation_panel(axis, analysis, [entry for entry in entries if entry["law"] == law])
        axis.set_title(law)
    for axis in axes[::3]:
        axis.set_ylabel("predicted above measured (%)")
    return figure


def _next_sizes(entry: Entry) -> list[Entry]:
    """Held-out sizes that were predicted from all sizes below them, with all their numbers."""
    steps = (entry.get("extrapolation") or {}).get("steps") or []
    return [s for s in steps if s["sizes_ahead"] == 1 and has_complete_lists(s, "errors_log", "low_log", "high_log")]


def _extrapolation_panel(axis: Axes, analysis: Directory, entries: list[Entry]) -> None:
    """Families and rows of one size stand beside each other."""
    variable, held, tall = entries[0]["extrapolation"]["variable"], [], []
    for entry in entries:
        family, colour = analysis.families.index(entry["family"]), colours(analysis.families)[entry["family"]]
        for step in _next_sizes(entry):
            for place, ends in enumerate(
                zip(*(step[f"{name}_log"] for name in ("errors", "low", "high")), strict=True)
            ):
                error, low, high = (100 * end for end in ends)
                aside = family - (len(analysis.families) - 1) / 2 + 0.5 * (place / step["n_rows"])
                x = step["held_out"] * 1.05**aside
                axis.plot([x, x], [low, high], color=colour, lw=1.2, alpha=0.7)
                axis.plot(x, error, ls="", marker=markers(analysis.families)[entry["family"]], ms=4.5, mec=colour,
                          mew=1.1, mfc=colour if low <= 0 <= high else "white")  # fmt: skip
                held.append(x)
                tall.append([abs(error), (high - low) / 2])
    axis.axhline(0, color=INK, lw=0.8)
    # An interval of one degree of freedom would leave all others a strip.
    reach = 1.25 * max(max(error for error, _ in tall), float(np.median([half for _, half in tall])))
    axis.set_ylim(-reach, reach)
    log_axis(axis.xaxis, min(held) / 1.2, max(held) * 1.2, counts=variable != "C")
    few = axis.get_xticks()[:: 1 + (len(axis.get_xticks()) > 3)]
    axis.set_xticks(few, labels=[tick_label(at, counts=variable != "C") for at in few])
    axis.grid(True)
    axis.set_xlabel(f"held-out {axis_name(variable, analysis.primary['size'])}", fontsize=8)


def doubling(analysis: Directory) -> Figure | None:
    """Gain of doubling N against N, along the law and as measured."""
    entries = [entry for entry in analysis.own if has_complete_lists(entry.get("doubling"), "x", "gain")]
    if not entries:
        return None
    target = analysis.primary["target"].replace("_", " ")
    gains = [gain for entry in entries for gain in entry["doubling"]["gain"]]
    title = f"Gain of doubling N: {target} falls by {sig(min(gains), 2)} to {sig(max(gains), 2)}, less at larger N"
    figure, (axis,) = panels(
        1,
        title if min(gains) > 0 else f"Gain of doubling N: fall of {target} along the law",
        columns=1,
        width=6.4,
        height=3.6,
        margins=Margins(left=1.05, top=0.15),
        families=analysis.families,
    )
    ends = list(gains)
    for entry in entries:
        found, colour, mark = (
            entry["doubling"],
            colours(analysis.families)[entry["family"]],
            markers(analysis.families)[entry["family"]],
        )
        x, gain, low, high, measured = (
            np.array(found[name], float) for name in ("x", "gain", "low", "high", "measured")
        )
        beyond = np.array(found["beyond"], bool)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        axis.plot(x, gain, color=colour, lw=1.6)
        for fill, chosen in ((colour, ~beyond), ("white", beyond)):
            axis.plot(x[chosen], gain[chosen], ls="", marker=mark, ms=5, mec=colour, mfc=fill, mew=1.2)
        axis.plot(x, measured, ls="", marker="x", ms=5, color=colour)
        ends += [end for end in (*low, *high, *measured) if np.isfinite(end)]
    x = np.concatenate([np.array(entry["doubling"]["x"], float) for entry in entries])
    log_axis(axis.xaxis, x.min() / 1.1, x.max() * 1.1)
    # A band that the data hardly set would leave the gains a strip.
    reach = max(gains) - min(*gains, 0)
    bottom, top = max(min(*ends, 0), min(*gains, 0) - reach), min(max(ends), max(gains) + reach)
    axis.set_ylim(bottom - 0.05 * reach, top + 0.05 * reach)
    axis.axhline(0, color=INK, lw=0.8)
    axis.grid(True)
    axis.set_xlabel(axis_name("N", analysis.primary["size"]))
    axis.set_ylabel(f"{target} at N less {target} at 2N")
    return figure
