"""The interactive figure of a report: every run against N, D or C, with the curves or residuals of every law.

It shows rows of results.csv and curves of fits.json, and computes nothing but the place of the solid part of a curve.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from slm.analysis.report.directory import Directory
from slm.report.interactive import Curve, Option, Points, Switch, View, arrays, fragment, head
from slm.report.style import short_name
from slm.runtime.words import amount, count, format_number, is_number, shape_text
from slm.scaling.describe import Entry, fitted_laws, has_complete_lists
from slm.scaling.sample import column_of

AXES = {"N": "N", "C": "compute C", "D": "tokens D"}
FIGURE = "curves"  # the static figure in whose place the interactive one stands


def interactive_figures(analysis: Directory) -> tuple[str, dict[str, str]]:
    """HTML for the head of the page, and fragments by the name of the figure that each replaces on a screen."""
    axes = _axes(analysis)
    if not axes:
        return "", {}
    laws = _laws(analysis, axes)
    runs = {family: _runs(analysis, family, axes) for family in analysis.families}
    views = [_loss_view(analysis, axis, runs, laws) for axis in axes]
    views += [_residual_view(analysis, axis, laws) for axis in axes if _laws_of(axis, laws)]
    title = f"{analysis.target_name} of every run, with the laws fitted to them"
    note = f"Bands: {analysis.level:.0%} intervals of the law."
    return head(), {FIGURE: fragment(FIGURE, title, note, _switches(analysis, axes, laws), views)}


def _axes(analysis: Directory) -> list[str]:
    """The variables against which runs are shown: those that the table has in every row, and that vary.

    The variable of the verdict's law is first. There are none if the law has another one, or without the losses.
    """
    rows, axes = analysis.results, []
    first = next((entry["curve"]["variable"] for entry in analysis.verdict_fits if entry.get("curve")), None)
    if first not in AXES or not {analysis.verdict_basis[key] for key in ("target", "size")} <= set(rows):
        return []
    for variable in AXES:
        column = column_of(variable, analysis.verdict_basis["size"])
        if column in rows and rows[column].gt(0).all() and rows[column].max() > 1.001 * rows[column].min():
            axes.append(variable)
    return sorted(axes, key=lambda variable: variable != first)


def _laws(analysis: Directory, axes: Sequence[str]) -> dict[str, list[Entry]]:
    """The fits with a curve along one of `axes`, by law; the law of the verdict is first."""
    fits = [entry for entry in analysis.entries() if has_complete_lists(entry.get("curve"), "x", "centre")]
    fits = [entry for entry in fits if entry["curve"]["variable"] in axes]
    fits = [fit for fit in fits if has_complete_lists(fit.get("points"), fit["curve"]["variable"], "value", "residual")]
    main_law = analysis.verdict_basis["law"]
    names = sorted(fitted_laws(fits), key=lambda law: law != main_law)
    return {name: [entry for entry in fits if entry["law"] == name] for name in names}


def _laws_of(axis: str, laws: Mapping[str, list[Entry]]) -> list[str]:
    return [law for law, entries in laws.items() if entries[0]["curve"]["variable"] == axis]


def _switches(analysis: Directory, axes: Sequence[str], laws: Mapping[str, list[Entry]]) -> list[Switch]:
    with_laws = [axis for axis in axes if _laws_of(axis, laws)]
    law_options = [
        Option(law, _law_text(analysis, law, entries), {"axis": [entries[0]["curve"]["variable"]]})
        for law, entries in laws.items()
    ]
    families = [
        Option(family, short_name(family), colour=analysis.colour(family), marker=analysis.marker(family))
        for family in analysis.families
    ]
    return [
        Switch("axis", "against", [Option(axis, AXES[axis]) for axis in axes]),
        Switch("law", "law", law_options),
        Switch(
            "show",
            "show",
            [Option("runs", analysis.target_name), Option("residuals", "residuals", {"axis": with_laws})],
        ),
        Switch("family", "families", families, several=True),
    ]


def _law_text(analysis: Directory, law: str, entries: Sequence[Entry]) -> str:
    """A law in the list of laws, with what its curves hold fixed: `chinchilla: L = ..., at D = 1B`."""
    held = {tuple((entry["curve"].get("held") or {}).items()) for entry in entries}
    values = ", ".join(f"{variable} = {amount(variable, value)}" for variable, value in next(iter(held)))
    at = (f", at {values}" if len(held) == 1 else ", each family at its median") if values else ""
    verdict = " (law of the verdict)" if law == analysis.verdict_basis["law"] else ""
    return f"{law}: {analysis.equation(law)}{at}{verdict}"


def _runs(analysis: Directory, family: str, axes: Sequence[str]) -> dict[str, Any]:
    """The rows of a family: numbers as in results.csv, and texts for the reader."""
    rows, target = analysis.family_rows(family), analysis.verdict_basis["target"]
    columns = {axis: rows[column_of(axis, analysis.verdict_basis["size"])] for axis in axes}
    texts = {
        "run": [_text(name) for name in _first_column(rows, "name", "run_id", "family")],
        "family": [short_name(family)] * len(rows),
        "shape": [shape_text(row.get("width"), row.get("depth")) for _, row in rows.iterrows()],
        "size": [count(value) for value in rows[analysis.verdict_basis["size"]]],
        "tokens": [count(value) if is_number(value) else "" for value in _first_column(rows, "tokens")],
        "seed": [_text(value) for value in _first_column(rows, "seed")],
        "text": [format_number(value) for value in rows[target]],
    }
    return {**arrays(**columns, value=rows[target]), **texts}


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:g}" if is_number(value) else str(value)


def _first_column(rows: pd.DataFrame, *names: str) -> Sequence[Any]:
    """The first of these columns that the table has; empty texts if it has none."""
    return next((list(rows[name]) for name in names if name in rows), [""] * len(rows))


def _loss_view(analysis: Directory, axis: str, runs: Mapping[str, Any], laws: Mapping[str, list[Entry]]) -> View:
    label = analysis.target_name
    texts = {"run": "run", "family": "family", "shape": "shape", "N": "size", "tokens": "tokens", "seed": "seed",
             label: "text"}  # fmt: skip
    series: list[Points | Curve] = [
        Points(data, axis, "value", analysis.colour(family), analysis.marker(family), texts, {"family": family})
        for family, data in runs.items()
    ]
    curves = [entry for law in _laws_of(axis, laws) for entry in laws[law]]
    series += [_curve(analysis, entry) for entry in curves]
    x = np.concatenate([data[axis] for data in runs.values()] + [entry["curve"]["x"] for entry in curves])
    y = np.concatenate([data["value"] for data in runs.values()] + [entry["curve"]["centre"] for entry in curves])
    limits = (x.min() / 1.1, x.max() * 1.1), (y.min() / 1.02, y.max() * 1.02)
    return View(
        analysis.axis_name(axis), analysis.target_label, *limits, series, {"axis": axis, "show": "runs"}, axis != "C"
    )


def _curve(analysis: Directory, entry: Entry) -> Curve:
    """The curve of a fit, solid up to the largest fitted value, with the interval of the law if it is known."""
    curve = entry["curve"]
    x, centre = np.array(curve["x"], float), np.array(curve["centre"], float)
    largest = max(entry["points"][curve["variable"]])
    data = arrays(x=x, centre=centre, inside=np.where(x <= largest * 1.001, centre, np.nan))
    if has_complete_lists(curve, "low", "high"):
        data |= arrays(low=curve["low"], high=curve["high"])
    return Curve(data, analysis.colour(entry["family"]), {"family": entry["family"], "law": entry["law"]})


def _residual_view(analysis: Directory, axis: str, laws: Mapping[str, list[Entry]]) -> View:
    series = [_residuals(analysis, axis, entry) for law in _laws_of(axis, laws) for entry in laws[law]]
    x = np.concatenate([one.data["x"] for one in series])
    limits = (x.min() / 1.2, x.max() * 1.2)
    return View(
        analysis.axis_name(axis), "residual (%)", limits, None, series, {"axis": axis, "show": "residuals"}, axis != "C"
    )


def _residuals(analysis: Directory, axis: str, entry: Entry) -> Points:
    """The points of a fit: single runs, or means over the seeds of a cell."""
    family, points = entry["family"], entry["points"]
    unit = "mean over seeds" if entry["unit"] == "cell" else "run"
    texts = {
        "family": [short_name(family)] * len(points[axis]),
        "unit": [unit] * len(points[axis]),
        "at": [amount(axis, value) for value in points[axis]],
        "text": [format_number(value) for value in points["value"]],
        "residual": [f"{100 * value:+.2f}%" for value in points["residual"]],
    }
    data = {**arrays(x=points[axis], y=[100 * value for value in points["residual"]]), **texts}
    labels = {"family": "family", "mark": "unit", axis: "at", analysis.target_name: "text", "residual": "residual"}
    tags = {"family": family, "law": entry["law"]}
    return Points(data, "x", "y", analysis.colour(family), analysis.marker(family), labels, tags)
