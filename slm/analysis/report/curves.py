"""The figure of the curves on which the verdict is based."""

import math

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.style import GREY, Axes, Figure, draw_law, label_left, log_axis, panels, plot_runs, short_name
from slm.runtime.words import amount, axis_name, format_number, interval, target_label
from slm.scaling.describe import Entry, has_complete_lists, is_identified, moved_points
from slm.scaling.sample import column_of

MAX_REFERENCE_RATIO = 2.0
"""A published law that differs from the fit by a larger factor is not drawn, because it would flatten the curves."""


def curves_figure(analysis: Directory) -> Figure | None:
    """Points and fitted curves: a large panel with all families if they are comparable, and bands in one per family."""
    entries = [entry for entry in analysis.verdict_fits if has_complete_lists(entry.get("curve"), "x", "centre")]
    entries = [entry for entry in entries if has_complete_lists(entry.get("points"), "value", "residual")]
    if not entries:
        return None
    several_families = len(entries) > 1
    # Curves of different families compare only if each holds the other variables at the same values.
    same_held_values = len({_held_values(entry) for entry in entries}) == 1
    num_shared_panels = 1 if several_families and same_held_values else 0
    width, height = (3.15, 2.7) if several_families else (6.8, 4.2)
    title = _title(analysis, entries, same_held_values)
    figure, axes = panels(
        len(entries), title, ncols=3, width=width, height=height, lead_height=3.9 * num_shared_panels,
        families=analysis.families,
    )  # fmt: skip
    for axis, entry in zip(axes[num_shared_panels:], entries, strict=True):
        _draw_bands(axis, analysis, entry)
        _draw_line_and_points(axis, analysis, entry)
        _draw_published_laws(axis, analysis, entry)
        _draw_floor(axis, analysis, entry)
        if several_families:
            name = short_name(entry["family"]) + ("" if same_held_values else f" at {_held_values(entry)}")
            axis.set_title(name, color=analysis.colour(entry["family"]), fontweight="bold")
    if num_shared_panels:
        axes[0].set_title("all families")
        for entry in entries:
            _draw_line_and_points(axes[0], analysis, entry)
    _set_same_limits(axes, analysis, entries)
    return figure


def _title(analysis: Directory, entries: list[Entry], same_held_values: bool) -> str:
    target, first = analysis.target_name.capitalize(), entries[0]
    variable, held_values = first["curve"]["variable"], _held_values(first)
    if len(entries) > 1:
        answer = analysis.comparison["verdict"].get("distinguishable")
        answers = {True: ": the families scale differently", False: ": exponents are not distinguishable"}
        title = f"{target} against {variable}{answers.get(answer, '')}"
    else:
        name = first["exponents"][0]
        value = f" = {format_number(first['params'][name])} {interval(first['ci95'][name])}"
        outcome = value if is_identified(first, name) else " not identified"
        title = f"{target} of {short_name(first['family'])} against {variable}: {name}{outcome}"
    title += f", under {verdict_equation(analysis)}"
    moved_to = held_values if same_held_values else "values that differ by family, so compare only slopes"
    return f"{title} (points moved along the law to {moved_to})" if held_values else title


def _held_values(entry: Entry) -> str:
    """The variables that a curve holds fixed, with their values: `D = 1B`; empty for a law of one variable."""
    values = entry["curve"].get("held") or {}
    return ", ".join(f"{variable} = {amount(variable, value)}" for variable, value in values.items())


def verdict_equation(analysis: Directory) -> str:
    """The equation of the verdict's law, on one line wherever a title is wrapped."""
    return analysis.equation(analysis.verdict_basis["law"]).replace(" ", "\u00a0")  # no-break spaces


def _draw_bands(axis: Axes, analysis: Directory, entry: Entry) -> None:
    curve = entry["curve"]
    for prefix, alpha in (("run_", 0.12), ("", 0.28)):  # the interval of a new run, then of the law
        low, high = (np.array(curve[prefix + end], float) for end in ("low", "high"))  # NaN where there is no band
        axis.fill_between(curve["x"], low, high, color=analysis.colour(entry["family"]), alpha=alpha, lw=0)


def _draw_line_and_points(axis: Axes, analysis: Directory, entry: Entry) -> None:
    curve, colour = entry["curve"], analysis.colour(entry["family"])
    x, y = np.array(curve["x"]), np.array(curve["centre"], float)
    largest_fitted = max(entry["points"][curve["variable"]])
    draw_law(axis, x, y, x <= largest_fitted * 1.001, colour)
    plot_runs(axis, *_points(analysis, entry), colour, analysis.marker(entry["family"]))


def _points(analysis: Directory, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the marks: every run if the law has one variable, else the fitted points moved to the held values."""
    curve, points = entry["curve"], entry["points"]
    x = np.array(points[curve["variable"]], float)
    if curve.get("held"):
        centre = np.interp(np.log(x), np.log(curve["x"]), np.log(curve["centre"]))
        return x, moved_points(entry, np.exp(centre))
    rows = analysis.family_rows(entry["family"])
    columns = [column_of(curve["variable"], analysis.verdict_basis["size"]), entry["target"]]
    if not set(columns).issubset(rows.columns):
        return x, np.array(points["value"], float)
    return rows[columns[0]].to_numpy(float), rows[columns[1]].to_numpy(float)


def _draw_published_laws(axis: Axes, analysis: Directory, entry: Entry) -> None:
    """Draw published laws with the same target and definition of N, with their names at the right edge."""
    curve = entry["curve"]
    if curve.get("held") or curve["variable"] != "N":
        return
    largest = max(entry["points"]["N"])
    fitted_value = float(np.exp(np.interp(np.log(largest), np.log(curve["x"]), np.log(curve["centre"]))))
    ends: list[tuple[float, str]] = []  # the value at the largest size, and the name
    for row in analysis.comparison["references"]:
        is_same = all(row[key] == entry[key] for key in ("family", "target", "size"))
        if not is_same or not row["same_size_definition"] or not row["curve"]:
            continue
        sizes = np.array(row["curve"]["N"])
        log_values = np.log(row["curve"]["value"])
        x = np.unique(sizes)
        y = np.exp([log_values[sizes == size].mean() for size in x])  # runs of one size may differ in tokens
        if abs(math.log(y[-1] / fitted_value)) > math.log(MAX_REFERENCE_RATIO):
            continue
        axis.plot(x, y, color=GREY, lw=1, ls="--", zorder=1.5)
        ends.append((float(y[-1]), row["reference"] + (" (outside its range)" if row["outside_range"] else "")))
    if not ends:
        return
    ends.sort(reverse=True)
    highest, lowest = ends[0][0], ends[-1][0]
    is_above = highest > fitted_value  # the names go above or below the published laws, away from the fitted curve
    is_wide = axis.get_position().width * axis.get_figure().get_figwidth() > 4  # type: ignore[union-attr]
    if is_wide:  # the names start to the right of the curves
        text_x, x_unit, right_shift, ha = largest, "data", 8, "left"
    else:  # the names end at the right edge of the panel
        text_x, x_unit, right_shift, ha = 0.99, "axes fraction", 0, "right"
    text_y, upward_shift, va = (highest, 6, "bottom") if is_above else (lowest, -6, "top")
    axis.annotate("\n".join(name for _, name in ends), (text_x, text_y), (right_shift, upward_shift), fontsize=7,
                  xycoords=(x_unit, "data"), textcoords="offset points", ha=ha, va=va, color="#666666")  # fmt: skip


def _floor_value(entry: Entry) -> float | None:
    """The floor, or None if the data do not identify it or it is 0, which a log axis cannot show."""
    floor = entry["floor_value"] if is_identified(entry, entry["floor"]) else None
    return floor or None


def _draw_floor(axis: Axes, analysis: Directory, entry: Entry) -> None:
    name, floor = entry["floor"], _floor_value(entry)
    if floor is None:
        return
    axis.axhline(floor, color=analysis.colour(entry["family"]), lw=1, ls=":")
    text = f"floor {name} = {format_number(floor)} {interval(entry['floor_ci95'])}"
    axis.annotate(text, (0.02, floor), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  fontsize=7.5)  # fmt: skip


def _set_same_limits(axes: list[Axes], analysis: Directory, entries: list[Entry]) -> None:
    """Give all panels the same limits, which include all points, curves, floors and published laws."""
    variable, basis = entries[0]["curve"]["variable"], analysis.verdict_basis
    x = np.concatenate([entry["curve"]["x"] for entry in entries])
    y_arrays = [_points(analysis, entry)[1] for entry in entries]
    y_arrays += [np.array(entry["curve"]["centre"], float) for entry in entries]
    y_arrays += [np.array([floor]) for entry in entries if (floor := _floor_value(entry))]
    published = [line for axis in axes for line in axis.get_lines() if line.get_color() == GREY]  # nothing else is grey
    y = np.concatenate(y_arrays + [np.asarray(line.get_ydata()) for line in published])
    for axis in axes:
        log_axis(axis.xaxis, x.min(), x.max(), as_counts=variable != "C")
        log_axis(axis.yaxis, np.nanmin(y) / 1.04, np.nanmax(y) * 1.04)
        axis.set_xlabel(axis_name(variable, basis["size"]))
    label_left(axes, target_label(basis["target"]))
