"""The range that a result beyond the data may have under all laws that the data do not reject."""

from __future__ import annotations

import math
from collections.abc import Mapping

from slm.scaling.entries import Entry, Fitted

SAME = 1e-6
"""Largest relative difference of two values of a variable that count as equal."""


def envelopes(fitted: Mapping[str, Mapping[str, Fitted]], weighed: Mapping[str, Entry], law: str) -> list[Entry]:
    """For each family and each predicted point, the union of the prediction intervals of all tenable laws.

    `fitted` is law -> family -> fit, `weighed` is law -> `tenable` and `why` (`slm.scaling.selection.weigh`). Points
    are those in the `predictions` of any law that have the first variable of `law` (of the first of `weighed` if `law`
    is not among them). A law speaks about a point that has all its variables.

    Keys: `family`, `at` (variable -> value), `low`, `high`, `laws`, `excluded` (law -> why). An end is None, open,
    where a tenable law sets no bound there; where no law is tenable `laws` is empty and both ends are None.
    """
    if not weighed:
        return []
    families = fitted[law if law in weighed else next(iter(weighed))]
    variable = next(iter(next(iter(families.values())).entry["range"]))
    rows = []
    for family in families:
        entries = {law: fits[family].entry for law, fits in fitted.items() if law in weighed}
        rows += [{"family": family, "at": at} | _envelope(entries, at, weighed) for at in _points(entries, variable)]
    return rows


def _points(entries: Mapping[str, Entry], variable: str) -> list[dict[str, float]]:
    """The predicted points of all laws, without those of which another point gives all values and more."""
    points: list[dict[str, float]] = []
    for entry in entries.values():
        for row in entry.get("predictions") or []:
            point = {name: row[name] for name in entry["range"]}
            if variable in point and not any(_covers(other, point) for other in points):
                points = [other for other in points if not _covers(point, other)] + [point]
    return sorted(points, key=lambda point: point[variable])


def _covers(point: Mapping[str, float], part: Mapping[str, float]) -> bool:
    """Whether all variables of `part` have in `point` the values they have there."""
    return all(name in point and math.isclose(point[name], value, rel_tol=SAME) for name, value in part.items())


def _envelope(entries: Mapping[str, Entry], at: Mapping[str, float], weighed: Mapping[str, Entry]) -> Entry:
    intervals, excluded = {}, {}
    for law, entry in entries.items():
        if not weighed[law]["tenable"]:
            excluded[law] = weighed[law]["why"]
        elif not entry["fitted"] or not entry["converged"]:
            excluded[law] = entry["notes"][0] if entry["notes"] else "the fit did not converge"
        elif not set(entry["range"]) <= set(at):
            excluded[law] = "it needs variables that this point does not give"
        else:
            rows = [row for row in entry.get("predictions") or [] if _covers(at, {v: row[v] for v in entry["range"]})]
            intervals[law] = (rows[0]["low"], rows[0]["high"]) if rows else (math.nan, math.nan)
    lows, highs = zip(*intervals.values(), strict=True) if intervals else ([math.nan], [math.nan])
    return {
        "low": min(lows) if all(map(math.isfinite, lows)) else None,
        "high": max(highs) if all(map(math.isfinite, highs)) else None,
        "laws": list(intervals),
        "excluded": excluded,
    }
