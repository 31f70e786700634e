"""What a table says of a run beyond its data: the range that all laws allow which the data do not reject."""

from __future__ import annotations

import math
from collections.abc import Mapping

from slm.scaling.entries import Entry, Fitted

SAME = 1e-6
"""Largest relative difference of two values of a variable that are one."""


def envelopes(fitted: Mapping[str, Mapping[str, Fitted]], weighed: Mapping[str, Entry], law: str) -> list[Entry]:
    """For each family and each predicted point, the union of the prediction intervals of all tenable laws.

    `fitted` is law -> family -> fit, `weighed` is law -> `tenable` and `why` (`slm.scaling.selection.weigh`). A point
    is what any of them was asked about (`predictions`), if it has the first variable of `law`, the verdict's (of the
    first of `weighed` if that is not among them). A law speaks about a point that has all its variables.

    Keys: `family`, `at` (variable -> value), `low`, `high`, `laws`, `excluded` (law -> why). An end is None, open,
    where a tenable law sets no bound there; where no law is tenable `laws` is empty and both ends are None.
    """
    if not weighed:
        return []
    families = fitted[law if law in weighed else next(iter(weighed))]
    variable = next(iter(next(iter(families.values())).entry["range"]))
    found = []
    for family in families:
        entries = {law: of[family].entry for law, of in fitted.items() if law in weighed}
        for at in _points(entries, variable):
            found.append({"family": family, "at": at} | _envelope(entries, at, weighed))
    return found


def _points(entries: Mapping[str, Entry], variable: str) -> list[dict[str, float]]:
    """Points that any law was asked about, without those that are part of another: it says where more is held."""
    every: list[dict[str, float]] = []
    for entry in entries.values():
        for row in entry.get("predictions") or []:
            point = {name: row[name] for name in entry["range"]}
            if variable in point and not any(_covers(one, point) for one in every):
                every = [one for one in every if not _covers(point, one)] + [point]
    return sorted(every, key=lambda point: point[variable])


def _covers(point: Mapping[str, float], part: Mapping[str, float]) -> bool:
    """Whether all variables of `part` have in `point` the values they have there."""
    return all(name in point and math.isclose(point[name], value, rel_tol=SAME) for name, value in part.items())


def _envelope(entries: Mapping[str, Entry], at: Mapping[str, float], weighed: Mapping[str, Entry]) -> Entry:
    lows, highs, laws, excluded = [], [], [], {}
    for law, entry in entries.items():
        if not weighed[law]["tenable"]:
            excluded[law] = weighed[law]["why"]
        elif not entry["fitted"] or not entry["converged"]:
            excluded[law] = entry["notes"][0] if entry["notes"] else "the fit did not converge"
        elif not set(entry["range"]) <= set(at):
            excluded[law] = "it needs more than what is said of this point"
        else:
            rows = [row for row in entry.get("predictions") or [] if _covers(at, {v: row[v] for v in entry["range"]})]
            laws.append(law)
            lows.append(rows[0]["low"] if rows else math.nan)
            highs.append(rows[0]["high"] if rows else math.nan)
    return {
        "low": min(lows) if laws and all(map(math.isfinite, lows)) else None,
        "high": max(highs) if laws and all(map(math.isfinite, highs)) else None,
        "laws": laws,
        "excluded": excluded,
    }
