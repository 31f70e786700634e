"""Which law the verdict is about, and how the laws compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slm.scaling.entries import Entry, Fitted
from slm.scaling.laws import LAWS


def choose_law(fitted: Mapping[str, Mapping[str, Fitted]], asked: str) -> tuple[str, str]:
    """The law of the verdict, and why that one.

    The one asked for; else of the laws in N that are identified in every family the one of the lowest AICc in total.
    Families that no law in N identifies have no say. Without any such law, the first in N that could be fitted to every
    family, to some, or at all; without N, any law.
    """
    if asked != "auto":
        return asked, "it was asked for"
    of_size = {law: of for law, of in fitted.items() if LAWS[law].variables[0] == "N"} or fitted
    voters = {name for of in of_size.values() for name, one in of.items() if one.entry["identified"]}
    identified = [law for law, of in of_size.items() if voters and all(of[name].entry["identified"] for name in voters)]
    scores = {law: sum(of_size[law][name].entry["aicc"] for name in voters) for law in identified}
    some_only = "" if all(voters >= set(of) for of in of_size.values()) else " that any law identifies"
    finite = {law: score for law, score in scores.items() if np.isfinite(score)}
    if finite:
        why = f"of the laws in N identified in every family{some_only} it has the lowest AICc"
        return min(finite, key=lambda law: finite[law]), why
    if identified:
        return identified[0], f"it is the first law in N identified in every family{some_only}; AICc needs more rows"
    whole = [law for law, of in of_size.items() if all(one.fit is not None for one in of.values())]
    some = [law for law, of in of_size.items() if any(one.fit is not None for one in of.values())]
    why = "no law in N is identified in every family, and it is the first that could be fitted"
    return next(iter([*whole, *some, *fitted])), why


def selection(fitted: Mapping[str, Mapping[str, Fitted]], families: Sequence[str]) -> list[Entry]:
    """AICc, BIC and extrapolation error of each law, by family."""
    rows = []
    for law, of in fitted.items():
        for family in families:
            entry = of[family].entry
            ahead = entry.get("extrapolation") or {}
            rows.append(
                {
                    "law": law,
                    "family": family,
                    "aicc": entry["aicc"],
                    "bic": entry["bic"],
                    "rmse_log": entry["rmse_log"],
                    "identified": entry["identified"],
                    "extrapolation_error_log": ahead.get("rms_error_log"),
                    "extrapolation_inside": ahead.get("inside_interval"),
                }
            )
    return rows
