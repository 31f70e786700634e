"""Which law the verdict is about, which laws the data reject, and how the laws compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
from scipy import stats

from slm.scaling.entries import Entry, Fitted
from slm.scaling.fitting import Fit
from slm.scaling.likelihood import criteria

NO_SUPPORT = 10.0
"""AIC above that of the best law from which a law is called rejected (Burnham & Anderson 2002, section 2.6)."""
NESTED = 0.01
"""Level of the F test of a law against one that contains it, such as the same law with a floor."""
ByLaw = Mapping[str, Mapping[str, Fitted]]


def weigh(fitted: ByLaw) -> dict[str, Entry]:
    """The laws in N (any law, if there is none) that more than half of the families hold, by one pooled criterion.

    All are compared on the same rows: the families that every one of them holds, each with its own parameters and all
    with one scatter. Keys: `families`, `refused` (family -> why), `aicc`, `aicc_above_best`, `aic_above_best`,
    `held_out` (root mean square log error of predicting the largest size), `exact`, `tenable`, `why`. A law that holds
    fewer families has only `refused` and `why`.

    A law is rejected if both its AIC and its AICc are `NO_SUPPORT` above the best (AICc alone would reject rich laws
    for being rich where there are few rows, AIC alone simple laws for not following the noise), or by an F test at the
    level `NESTED` against a law that has all its parameters and more. Else it is tenable.
    """
    of_size = {law: of for law, of in fitted.items() if _in_size(of)}
    candidates = of_size or dict(fitted)
    held = {law: [name for name, one in of.items() if one.fit is not None] for law, of in candidates.items()}
    most = max(map(len, held.values()), default=0)
    able = [law for law, names in held.items() if names and 2 * len(names) > most]
    common = [name for name in next(iter(fitted.values())) if all(name in held[law] for law in able)] if able else []
    weighed: dict[str, Entry] = {}
    for law, of in candidates.items():
        refused = {name: one.entry["notes"][0] for name, one in of.items() if one.fit is None}
        weighed[law] = {"families": held[law], "refused": refused, "tenable": False, "why": "too few families hold it"}
        if law in able and common:
            fits = [fit for name in common if (fit := of[name].fit) is not None]
            weighed[law] |= _weights(fits) | {"held_out": _held_out([of[name].entry for name in common])}
    ranked = [one for one in weighed.values() if "aic" in one]
    for key in ("aicc", "aic"):
        best = min((one[key] for one in ranked if np.isfinite(one[key])), default=np.nan)
        for one in ranked:
            one[f"{key}_above_best"] = one[key] - best
    exact = any(one["exact"] for one in ranked)
    for one in ranked:
        above = min(one["aicc_above_best"], one["aic_above_best"])
        one["tenable"] = one["exact"] if exact else not above > NO_SUPPORT
        rejected = "other laws hold all rows exactly" if exact else f"AIC and AICc at least {above:.3g} above the best"
        one["why"] = "" if one["tenable"] else rejected
    for law, p, richer in _nested(candidates, able, common) if not exact else []:
        weighed[law] |= {"tenable": False, "why": f"an F test against {richer} has p = {p:.2g}"}
    return weighed


def _in_size(of: Mapping[str, Fitted]) -> bool:
    """Whether a law is about N first."""
    return next(iter(next(iter(of.values())).entry["range"])) == "N"


def _nested(fitted: ByLaw, able: Sequence[str], common: Sequence[str]) -> Iterator[tuple[str, float, str]]:
    """Laws that an F test rejects for one that contains them, with its p; rows must be independent."""
    fits = {law: [fit for name in common if (fit := fitted[law][name].fit) is not None] for law in able}
    for law, richer in permutations(able, 2):
        one, two = fits[law], fits[richer]
        within = (
            set(one[0].law.parameters) < set(two[0].law.parameters) and one[0].law.variables == two[0].law.variables
        )
        spare = sum(fit.degrees_of_freedom for fit in two)
        if within and spare > 0 and all(fit.sample.is_independent and np.isinf(fit.loss.delta) for fit in two):
            more = sum(len(wide.theta) - len(narrow.theta) for narrow, wide in zip(one, two, strict=True))
            squares = [sum(fit.sse for fit in group) for group in (one, two)]
            if squares[1] > 0:
                p = float(stats.f.sf((squares[0] / squares[1] - 1) * spare / more, more, spare))
                if p < NESTED:
                    yield law, p, richer


def _weights(fits: Sequence[Fit]) -> Entry:
    score = criteria(fits)
    exact = all(fit.is_exact for fit in fits)
    return {"aicc": score.aicc, "aic": score.aic, "exact": exact, "parameters": score.parameters}


def _held_out(entries: Sequence[Entry]) -> float | None:
    errors = [(entry.get("extrapolation") or {}).get("rms_error_log") for entry in entries]
    known = [error for error in errors if error is not None]
    return float(np.sqrt(np.mean(np.square(known)))) if known and len(known) == len(errors) else None


def curved(fitted: ByLaw, weighed: Mapping[str, Entry], law: str) -> bool:
    """Whether `law` is no straight line in logs, and the runs hold no other for one."""
    straight = {
        name for name, of in fitted.items() if any(one.fit is not None and one.fit.law.is_linear for one in of.values())
    }
    return law not in straight and not any(weighed[name]["tenable"] for name in straight & set(weighed))


def choose_law(fitted: ByLaw, weighed: Mapping[str, Entry], asked: str) -> tuple[str, str]:
    """The law of the verdict, and why that one: the one asked for, else the tenable one of the lowest pooled AICc.

    A law on which all rows lie exactly comes first, the one of fewest parameters. Where AICc needs more rows, the first
    of the laws that hold most families.
    """
    if asked != "auto":
        return asked, "it was asked for"
    exact = {law: one["parameters"] for law, one in weighed.items() if one.get("exact")}
    if exact:
        return min(exact, key=lambda law: exact[law]), "all rows lie on it to rounding"
    among = "the laws in N" if weighed and _in_size(fitted[next(iter(weighed))]) else "the laws"
    tenable = [law for law, one in weighed.items() if one["tenable"]] or list(weighed)
    scores = {law: weighed[law]["aicc"] for law in tenable if np.isfinite(weighed[law].get("aicc", np.nan))}
    if scores:
        best = min(scores, key=lambda law: scores[law])
        ahead = {law: weighed[law]["held_out"] for law in scores if weighed[law]["held_out"] is not None}
        also = ""
        if ahead and len(scores) > 1:
            nearest = min(ahead, key=lambda law: ahead[law])
            also = ", and it predicts the largest size best" if nearest == best else (
                f", though {nearest} predicts the largest size better")  # fmt: skip
        return best, f"of {among} that are not rejected it has the lowest AICc, pooled over the families{also}"
    whole = max(tenable, key=lambda law: len(weighed[law]["families"]), default=None)
    if whole is not None and weighed[whole]["families"]:
        return whole, f"it is the first of {among} that most families can be fitted with; AICc needs more rows"
    some = [law for law, of in fitted.items() if any(one.fit is not None for one in of.values())]
    return next(iter([*some, *fitted])), "it is the first that could be fitted"


def selection(fitted: ByLaw, families: Sequence[str]) -> list[Entry]:
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
