"""Which law the verdict is about, which laws the data reject, and whether the order of families depends on that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any

import numpy as np
from scipy import stats

from slm.scaling.entries import Entry, Fitted
from slm.scaling.fitting import Fit
from slm.scaling.likelihood import criteria

NO_SUPPORT = 10.0
"""A law whose AIC exceeds that of the best law by this is rejected (Burnham & Anderson 2002, section 2.6)."""
NESTED_LEVEL = 0.01
"""Level of the F test of a law against one that contains it, such as the same law with a floor."""
MAX_RELATIVE_MISFIT = 3.0
"""Times the residual scatter of the best law; a law above it leaves something out (such as tokens)."""
CHOICES = ("law", "target", "size", "loss")
ByLaw = Mapping[str, Mapping[str, Fitted]]
"""Law -> family -> fit."""


def weigh(fitted: ByLaw) -> dict[str, Entry]:
    """The laws in N (any law, if there is none) that fit more than half of the families, by one pooled criterion.

    All are compared on the same rows: the families that every one of them fits, each with its own parameters and all
    with one scatter. Keys: `families`, `refused` (family -> why), `aicc`, `aicc_above_best`, `aic_above_best`,
    `held_out` (root mean square log error of predicting the largest size), `exact`, `tenable`, `why`. A law that fits
    fewer families has only `refused` and `why`.

    A law is rejected if both its AIC and its AICc are `NO_SUPPORT` above the best (with few rows, AICc alone would
    reject rich laws for being rich, and AIC alone simple laws for not following the noise), or by an F test at
    `NESTED_LEVEL` against a law that has all its parameters and more. Else it is tenable.
    """
    candidates = {law: families for law, families in fitted.items() if is_in_size(families)} or dict(fitted)
    held = {law: [name for name, result in families.items() if result.fit] for law, families in candidates.items()}
    most = max(map(len, held.values()), default=0)
    able = [law for law, names in held.items() if names and 2 * len(names) > most]
    common = [name for name in next(iter(fitted.values())) if all(name in held[law] for law in able)] if able else []
    fits = {law: [fit for name in common if (fit := fitted[law][name].fit)] for law in able}
    weighed: dict[str, Entry] = {}
    for law, families in candidates.items():
        refused = {name: result.entry["notes"][0] for name, result in families.items() if result.fit is None}
        weighed[law] = {"families": held[law], "refused": refused, "tenable": False, "why": "it fits too few families"}
        if law in able and common:
            weighed[law] |= _weights(fits[law]) | {"held_out": _held_out([families[n].entry for n in common])}
    ranked = [row for row in weighed.values() if "aic" in row]
    for key in ("aicc", "aic"):
        best = min((row[key] for row in ranked if np.isfinite(row[key])), default=np.nan)
        for row in ranked:
            row[f"{key}_above_best"] = row[key] - best
    is_exact = any(row["exact"] for row in ranked)
    for row in ranked:
        above = min(row["aicc_above_best"], row["aic_above_best"])
        row["tenable"] = row["exact"] if is_exact else not above > NO_SUPPORT
        why = "other laws fit all rows exactly" if is_exact else f"AIC and AICc at least {above:.3g} above the best"
        row["why"] = "" if row["tenable"] else why
    for law, p, richer in _rejected_by_richer(fits) if not is_exact and common else []:
        weighed[law] |= {"tenable": False, "why": f"an F test against {richer} has p = {p:.2g}"}
    return weighed


def is_in_size(families: Mapping[str, Fitted]) -> bool:
    """Whether the law of these fits is about N first."""
    return bool(next(iter(families.values())).entry["variables"][0] == "N")


def _rejected_by_richer(fits: Mapping[str, Sequence[Fit]]) -> Iterator[tuple[str, float, str]]:
    """Laws that an F test rejects for one that contains them, with its p; rows must be independent."""
    for law, richer in permutations(fits, 2):
        narrow, wide = fits[law][0].law, fits[richer][0].law
        is_nested = set(narrow.parameters) < set(wide.parameters) and narrow.variables == wide.variables
        spare = sum(fit.degrees_of_freedom for fit in fits[richer])
        if not is_nested or spare <= 0:
            continue
        sse, sse_richer = (sum(fit.sse for fit in fits[name]) for name in (law, richer))
        if sse_richer > 0 and all(fit.sample.is_independent and np.isinf(fit.loss.delta) for fit in fits[richer]):
            more = len(fits[law]) * (len(wide.parameters) - len(narrow.parameters))
            p = float(stats.f.sf((sse / sse_richer - 1) * spare / more, more, spare))
            if p < NESTED_LEVEL:
                yield law, p, richer


def _weights(fits: Sequence[Fit]) -> Entry:
    score, is_exact = criteria(fits), all(fit.is_exact for fit in fits)
    return {"aicc": score.aicc, "aic": score.aic, "exact": is_exact, "parameters": score.parameters}


def _held_out(entries: Sequence[Entry]) -> float | None:
    errors = [(entry.get("extrapolation") or {}).get("rms_error_log", np.nan) for entry in entries]
    return None if np.isnan(errors).any() else float(np.sqrt(np.mean(np.square(errors))))


def curved(fitted: ByLaw, weighed: Mapping[str, Entry], law: str) -> bool:
    """Whether `law` is no straight line in logs, and the runs reject every law that is one."""
    straight = {
        name
        for name, families in fitted.items()
        if any(result.fit and result.fit.law.is_linear for result in families.values())
    }
    return law not in straight and not any(weighed[name]["tenable"] for name in straight & set(weighed))


def choose_law(fitted: ByLaw, weighed: Mapping[str, Entry], requested: str) -> tuple[str, str]:
    """The law of the verdict, and why: the requested one, else the tenable one of the lowest pooled AICc.

    A law on which all rows lie exactly comes first, the one of fewest parameters. Where AICc needs more rows, it is the
    first of the laws that fit most families.
    """
    if requested != "auto":
        return requested, "it was asked for"
    exact = {law: row["parameters"] for law, row in weighed.items() if row.get("exact")}
    if exact:
        return min(exact, key=lambda law: exact[law]), "all rows lie on it to rounding"
    among = "the laws in N" if weighed and is_in_size(fitted[next(iter(weighed))]) else "the laws"
    tenable = [law for law, row in weighed.items() if row["tenable"]] or list(weighed)
    scores = {law: weighed[law]["aicc"] for law in tenable if np.isfinite(weighed[law].get("aicc", np.nan))}
    if scores:
        best = min(scores, key=lambda law: scores[law])
        ahead = {law: weighed[law]["held_out"] for law in scores if weighed[law]["held_out"] is not None}
        also = ""
        if ahead and len(scores) > 1:
            nearest = min(ahead, key=lambda law: ahead[law])
            also = f", though {nearest} predicts the largest size better"
            also = ", and it predicts the largest size best" if nearest == best else also
        return best, f"of {among} that are not rejected it has the lowest AICc, pooled over the families{also}"
    first = max(tenable, key=lambda law: len(weighed[law]["families"]), default=None)
    if first is not None and weighed[first]["families"]:
        return first, f"it is the first of {among} that most families can be fitted with; AICc needs more rows"
    some = [law for law, families in fitted.items() if any(result.fit for result in families.values())]
    return next(iter([*some, *fitted])), "it is the first that could be fitted"


def selection(fitted: ByLaw, families: Sequence[str]) -> list[Entry]:
    """AICc, BIC and extrapolation error of each law, by family."""
    rows = []
    for law in fitted:
        for family in families:
            entry = fitted[law][family].entry
            ahead = entry.get("extrapolation") or {}
            rows.append(
                {"law": law, **{key: entry[key] for key in ("family", "aicc", "bic", "rmse_log", "identified")}}
            )
            rows[-1]["extrapolation_error_log"] = ahead.get("rms_error_log")
            rows[-1]["extrapolation_inside"] = ahead.get("inside_interval")
    return rows


def rankings(entries: Sequence[Entry], families: Sequence[str]) -> list[Entry]:
    """One ranking for every (law, target, N, loss): families from the steepest exponent down.

    `usable` is false if a family's exponent is missing or not identified, or if the law misses the data by more than
    `MAX_RELATIVE_MISFIT` times what the best law for that target does: such a ranking says nothing.
    """
    groups: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[choice] for choice in CHOICES), {})[entry["family"]] = entry
    misfit = {key: max((e["sigma_log"] or 0.0 for e in own.values()), default=0.0) for key, own in groups.items()}
    least: dict[Any, float] = {}
    for (law, target, size, loss), own in groups.items():
        sigma = misfit[law, target, size, loss]
        if sigma > 0 and all(entry["identified"] for entry in own.values()):
            least[target, loss] = min(sigma, least.get((target, loss), sigma))
    rows = []
    for key, own in groups.items():
        best = least.get((key[1], key[3]), np.inf)
        row: Entry = dict(zip(CHOICES, key, strict=True)) | {"tenable": misfit[key] <= MAX_RELATIVE_MISFIT * best}
        row["usable"] = row["tenable"] and all(name in own and own[name]["identified"] for name in families)
        exponents = {name: own[name]["params"][own[name]["exponents"][0]] for name in families if row["usable"]}
        row |= {"variable": next(iter(own.values()))["variables"][0], "exponents": exponents}
        rows.append(row | {"order": sorted(exponents, key=lambda name: -exponents[name])})
    return rows


def survival(every: Sequence[Entry], primary: Entry, families: Sequence[str]) -> Entry:
    """Which pairs of families keep their order in all usable rankings by exponents in the same variable.

    `primary` is the ranking of the verdict. `survives` is None if there is nothing to compare with.
    """

    def differs_only_in(choice: str, row: Entry) -> bool:
        return all((row[name] == primary[name]) == (name != choice) for name in CHOICES)

    usable = [row for row in every if row["usable"] and row["variable"] == primary["variable"]]
    others = [row for row in usable if row is not primary]
    if primary["target"] != "perplexity":
        # An exponent of perplexity is about that of loss times the loss, so its order mixes in the level of the loss.
        others = [row for row in others if row["target"] != "perplexity"]
    perplexity = [row for row in usable if row["target"] == "perplexity" and differs_only_in("target", row)]
    order, exponents = primary["order"], primary["exponents"]
    pairs = []
    for a, b in combinations(families, 2) if primary["usable"] else []:
        steeper, flatter = (a, b) if exponents[a] > exponents[b] else (b, a)
        same = sum((row["exponents"][a] > row["exponents"][b]) == (steeper == a) for row in others)
        pairs.append({"steeper": steeper, "flatter": flatter, "same": same, "of": len(others)})
    changed = {choice: [row["order"] for row in others if differs_only_in(choice, row)] for choice in CHOICES}
    return {
        "rankings": list(every),
        "unknown": _unknown(primary, others),
        "usable": len(usable),
        "perplexity_order": perplexity[0]["order"] if perplexity else None,
        "primary_order": order,
        "same_order": sum(row["order"] == order for row in others),
        "compared_with": len(others),
        "survives": all(row["order"] == order for row in others) if others and primary["usable"] else None,
        "survives_change_of": {
            choice: all(other == order for other in orders)
            for choice, orders in changed.items()
            if orders and primary["usable"]
        },
        "pairs": pairs,
    }


def _unknown(primary: Entry, others: Sequence[Entry]) -> str | None:
    """Why it is unknown whether the order survives; None if it is known."""
    if not primary["tenable"]:
        return (
            f"the law of the verdict misses the runs by more than {MAX_RELATIVE_MISFIT:g} times what the best law does"
        )
    if not primary["usable"]:
        return "an exponent of the law of the verdict is not identified"
    return None if others else "no other fit that describes the runs has identified exponents in the same variable"
