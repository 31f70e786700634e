"""What a table says of a run beyond its data: the range that all laws allow which the data do not reject."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from slm.scaling.entries import Entry, Fitted


SAME = 1e-6
"""Largest relative difference of two values of a variable that are one."""


def envelopes(
    fitted: Mapping[str, Mapping[str, Fitted]],
    tenable: Sequence[str],
    why_not: Mapping[str, str] | None = None,
    *,
    variable: str = "N",
) -> list[Entry]:
    """For each family and each predicted point, the union of the prediction intervals of the laws that are `tenable`.

    `fitted` is law -> family -> fit. A point is what any law was asked about (`predictions`), if it says how large
    `variable` is; a law speaks about a point that has all its variables, and laws without `variable` do not speak.
    Keys: `family`, `at` (variable -> value), `low` and `high`, `laws`, and `excluded` (law -> why). An end is None,
    open, where a tenable law sets no bound there; without any tenable law `laws` is empty and both ends are None.
    `why_not` says why a law is not tenable.
    """
    families = dict.fromkeys(name for of in fitted.values() for name in of)
    found = []
    for family in families:
        entries = {law: of[family].entry for law, of in fitted.items() if family in of}
        for at in _points(entries, variable):
            found.append({"family": family, "at": at} | _envelope(entries, at, variable, tenable, why_not or {}))
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


def _envelope(
    entries: Mapping[str, Entry],
    at: Mapping[str, float],
    variable: str,
    tenable: Sequence[str],
    why_not: Mapping[str, str],
) -> Entry:
    lows, highs, laws, excluded = [], [], [], {}
    for law, entry in entries.items():
        if variable not in entry["range"] or not set(entry["range"]) <= set(at):
            continue
        if law not in tenable:
            excluded[law] = why_not.get(law, "the data reject it")
        elif not entry["fitted"]:
            excluded[law] = entry["notes"][0]
        else:
            rows = [row for row in entry.get("predictions") or [] if _covers(at, {v: row[v] for v in entry["range"]})]
            laws.append(law)
            lows.append(rows[0]["low"] if rows else None)
            highs.append(rows[0]["high"] if rows else None)
    return {
        "low": min(lows) if laws and all(map(is_number, lows)) else None,
        "high": max(highs) if laws and all(map(is_number, highs)) else None,
        "laws": laws,
        "excluded": excluded,
    }
