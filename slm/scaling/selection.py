"""Which law the verdict uses, which laws the data reject, and what depends on that: the ranking, and predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
from scipy import stats

from slm.scaling.entries import Entry, Fitted
from slm.scaling.fitting import Fit
from slm.scaling.likelihood import criteria

MAX_AIC_DIFFERENCE = 10.0
"""A law whose AIC is more than this above the lowest is rejected (Burnham & Anderson 2002, section 2.6)."""
NESTED_LEVEL = 0.01
"""Level of the F test of a law against one that contains it, such as the same law with a floor."""
MAX_RELATIVE_MISFIT = 3.0
"""A law with more than this many times the scatter of the best law lacks a variable, such as tokens."""
SAME_VALUE = 1e-6
"""Largest relative difference of two values of a variable that count as equal."""
CHOICES = ("law", "target", "size", "loss")
"""The choices of the analyst; each combination gives one ranking of the families."""
ByLaw = Mapping[str, Mapping[str, Fitted]]
"""Law -> family -> fit."""


def assess_laws(fitted: ByLaw) -> dict[str, Entry]:
    """Compare the laws in N (all laws if none is in N) by AIC and AICc pooled over the families; law -> row.

    Laws that fit at most half as many families as another law are not compared. The others are compared on the same
    rows: the families that all of them fit, each with its own parameters and all with one scatter. Keys of a row:
    `families`, `refused` (family -> reason), `tenable` and `why`; if the law is compared also `aicc`, `aic`,
    `aicc_above_best`, `aic_above_best`, `parameters`, `exact` and `held_out` (root mean square log error of predicting
    the largest size).

    A law is rejected if both its AIC and its AICc are `MAX_AIC_DIFFERENCE` above the best. With few rows, AICc alone
    would reject laws with many parameters, and AIC alone would reject simple laws that do not follow the noise. A law
    is also rejected by an F test at `NESTED_LEVEL` against a law that has all its parameters and more.
    """
    candidates = {law: families for law, families in fitted.items() if is_in_size(families)} or dict(fitted)
    fitting = {law: [name for name, result in families.items() if result.fit] for law, families in candidates.items()}
    most = max(map(len, fitting.values()), default=0)
    compared = [law for law, names in fitting.items() if names and 2 * len(names) > most]
    common: list[str] = []
    if compared:
        common = [name for name in next(iter(fitted.values())) if all(name in fitting[law] for law in compared)]
    fits = {law: [fit for name in common if (fit := fitted[law][name].fit)] for law in compared}
    assessed: dict[str, Entry] = {}
    for law, families in candidates.items():
        refused = {name: result.entry["notes"][0] for name, result in families.items() if result.fit is None}
        row: Entry = {"families": fitting[law], "refused": refused, "tenable": False, "why": "it fits too few families"}
        if law in compared and common:
            score = criteria(fits[law])
            row |= {"aicc": score.aicc, "aic": score.aic, "exact": all(fit.is_exact for fit in fits[law])}
            row |= {"parameters": score.parameters, "held_out": _held_out_error(families[name] for name in common)}
        assessed[law] = row
    ranked = [row for row in assessed.values() if "aic" in row]
    for key in ("aicc", "aic"):
        best = min((row[key] for row in ranked if np.isfinite(row[key])), default=np.nan)
        for row in ranked:
            row[f"{key}_above_best"] = row[key] - best
    has_exact = any(row["exact"] for row in ranked)
    for row in ranked:
        above = min(row["aicc_above_best"], row["aic_above_best"])
        row["tenable"] = row["exact"] if has_exact else not above > MAX_AIC_DIFFERENCE
        why = "other laws fit all rows exactly" if has_exact else f"AIC and AICc at least {above:.3g} above the best"
        row["why"] = "" if row["tenable"] else why
    for law, p, richer in _rejected_by_richer(fits) if not has_exact and common else []:
        assessed[law] |= {"tenable": False, "why": f"an F test against {richer} has p = {p:.2g}"}
    return assessed


def is_in_size(families: Mapping[str, Fitted]) -> bool:
    """Whether N is the first variable of the law of these fits."""
    return bool(next(iter(families.values())).entry["variables"][0] == "N")


def _rejected_by_richer(fits: Mapping[str, Sequence[Fit]]) -> Iterator[tuple[str, float, str]]:
    """Yield (law, p, richer law) if an F test on independent rows rejects a law for one that contains it."""
    for law, richer in permutations(fits, 2):
        narrow, wide = fits[law][0].law, fits[richer][0].law
        is_nested = set(narrow.parameters) < set(wide.parameters) and narrow.variables == wide.variables
        df = sum(fit.degrees_of_freedom for fit in fits[richer])
        if not is_nested or df <= 0:
            continue
        sse, sse_richer = (sum(fit.sse for fit in fits[name]) for name in (law, richer))
        if sse_richer > 0 and all(fit.sample.is_independent and np.isinf(fit.loss.delta) for fit in fits[richer]):
            extra = len(fits[law]) * (len(wide.parameters) - len(narrow.parameters))
            p = float(stats.f.sf((sse / sse_richer - 1) * df / extra, extra, df))
            if p < NESTED_LEVEL:
                yield law, p, richer


def _held_out_error(fitted: Iterable[Fitted]) -> float | None:
    """Root mean square over families of the log error at the largest size; None if a family has no such error."""
    errors = [(family.entry.get("extrapolation") or {}).get("rms_error_log", np.nan) for family in fitted]
    return None if np.isnan(errors).any() else float(np.sqrt(np.mean(np.square(errors))))


def is_curved(fitted: ByLaw, assessed: Mapping[str, Entry], law: str) -> bool:
    """Whether `law` is curved in logs, and the runs reject every law that is straight in logs."""

    def is_straight(name: str) -> bool:
        return any(result.fit and result.fit.law.is_linear for result in fitted[name].values())

    return not is_straight(law) and not any(row["tenable"] for name, row in assessed.items() if is_straight(name))


def choose_law(fitted: ByLaw, assessed: Mapping[str, Entry], requested: str) -> tuple[str, str]:
    """The law of the verdict, and the reason: the requested law unless that is `auto`.

    `auto` takes the law with the fewest parameters among those on which all rows lie exactly, else the tenable law with
    the lowest pooled AICc, else (too few rows for AICc) the first of the laws that fit the most families.
    """
    if requested != "auto":
        return requested, "it was asked for"
    exact = {law: row["parameters"] for law, row in assessed.items() if row.get("exact")}
    if exact:
        return min(exact, key=lambda law: exact[law]), "all rows lie on it to rounding"
    group = "the laws in N" if assessed and is_in_size(fitted[next(iter(assessed))]) else "the laws"
    tenable = [law for law, row in assessed.items() if row["tenable"]] or list(assessed)
    scores = {law: assessed[law]["aicc"] for law in tenable if np.isfinite(assessed[law].get("aicc", np.nan))}
    if scores:
        best = min(scores, key=lambda law: scores[law])
        held_out = {law: assessed[law]["held_out"] for law in scores if assessed[law]["held_out"] is not None}
        remark = ""
        if held_out and len(scores) > 1:
            predictor = min(held_out, key=lambda law: held_out[law])
            remark = f", though {predictor} predicts the largest size better"
            remark = ", and it predicts the largest size best" if predictor == best else remark
        return best, f"of {group} that are not rejected it has the lowest AICc, pooled over the families{remark}"
    first = max(tenable, key=lambda law: len(assessed[law]["families"]), default=None)
    if first is not None and assessed[first]["families"]:
        return first, f"it is the first of {group} that most families can be fitted with; AICc needs more rows"
    usable = [law for law, families in fitted.items() if any(result.fit for result in families.values())]
    return next(iter([*usable, *fitted])), "it is the first that could be fitted"


def rows_by_law(fitted: ByLaw, families: Sequence[str]) -> list[Entry]:
    """One row for each law and family: AICc, BIC and extrapolation error."""
    rows: list[Entry] = []
    for law, family in product(fitted, families):
        entry = fitted[law][family].entry
        extrapolation = entry.get("extrapolation") or {}
        rows.append({"law": law} | {key: entry[key] for key in ("family", "aicc", "bic", "rmse_log", "identified")})
        rows[-1]["extrapolation_error_log"] = extrapolation.get("rms_error_log")
        rows[-1]["extrapolation_inside"] = extrapolation.get("inside_interval")
    return rows


def rankings(entries: Sequence[Entry], families: Sequence[str]) -> list[Entry]:
    """One ranking for every (law, target, N, loss): families from the steepest exponent to the flattest.

    A ranking is not `usable` if the exponent of a family is missing or not identified, or if the scatter of the law is
    more than `MAX_RELATIVE_MISFIT` times that of the best law for the same target and loss.
    """
    groups: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[choice] for choice in CHOICES), {})[entry["family"]] = entry
    scatter = {key: max((e["sigma_log"] or 0.0 for e in group.values()), default=0.0) for key, group in groups.items()}
    lowest: dict[Any, float] = {}
    for (law, target, size, loss), group in groups.items():
        sigma = scatter[law, target, size, loss]
        if sigma > 0 and all(entry["identified"] for entry in group.values()):
            lowest[target, loss] = min(sigma, lowest.get((target, loss), sigma))
    rows = []
    for key, group in groups.items():
        best = lowest.get((key[1], key[3]), np.inf)
        row: Entry = dict(zip(CHOICES, key, strict=True)) | {"tenable": scatter[key] <= MAX_RELATIVE_MISFIT * best}
        row["usable"] = row["tenable"] and all(name in group and group[name]["identified"] for name in families)
        exponents = {name: group[name]["params"][group[name]["exponents"][0]] for name in families if row["usable"]}
        row |= {"variable": next(iter(group.values()))["variables"][0], "exponents": exponents}
        rows.append(row | {"order": sorted(exponents, key=lambda name: -exponents[name])})
    return rows


def survival(all_rankings: Sequence[Entry], primary: Entry, families: Sequence[str]) -> Entry:
    """Whether the order of families, and of each pair, is the same in all usable rankings by the same variable.

    `primary` is the ranking of the verdict. `survives` is None if `primary` or all others are not usable.
    """

    def differs_only_in(choice: str, row: Entry) -> bool:
        return all((row[name] == primary[name]) == (name != choice) for name in CHOICES)

    usable = [row for row in all_rankings if row["usable"] and row["variable"] == primary["variable"]]
    others = [row for row in usable if row is not primary]
    if primary["target"] != "perplexity":
        # An exponent of perplexity is about that of the loss times the loss, so its order depends on both.
        others = [row for row in others if row["target"] != "perplexity"]
    perplexity = [row for row in usable if row["target"] == "perplexity" and differs_only_in("target", row)]
    order, exponents = primary["order"], primary["exponents"]
    pairs = []
    for a, b in combinations(families, 2) if primary["usable"] else []:
        steeper, flatter = (a, b) if exponents[a] > exponents[b] else (b, a)
        same = sum((row["exponents"][a] > row["exponents"][b]) == (steeper == a) for row in others)
        pairs.append({"steeper": steeper, "flatter": flatter, "same": same, "of": len(others)})
    orders_by_choice = {choice: [row["order"] for row in others if differs_only_in(choice, row)] for choice in CHOICES}
    return {
        "rankings": list(all_rankings),
        "unknown": _why_unknown(primary, others),
        "usable": len(usable),
        "perplexity_order": perplexity[0]["order"] if perplexity else None,
        "primary_order": order,
        "same_order": sum(row["order"] == order for row in others),
        "compared_with": len(others),
        "survives": all(row["order"] == order for row in others) if others and primary["usable"] else None,
        "survives_change_of": {
            choice: all(other == order for other in orders)
            for choice, orders in orders_by_choice.items()
            if orders and primary["usable"]
        },
        "pairs": pairs,
    }


def _why_unknown(primary: Entry, others: Sequence[Entry]) -> str | None:
    """Why it is unknown whether the order survives; None if it is known."""
    if not primary["tenable"]:
        return f"the law of the verdict has more than {MAX_RELATIVE_MISFIT:g} times the scatter of the best law"
    if not primary["usable"]:
        return "an exponent of the law of the verdict is not identified"
    return None if others else "no other fit that describes the runs has identified exponents in the same variable"


def envelopes(fitted: ByLaw, assessed: Mapping[str, Entry], law: str) -> list[Entry]:
    """For each family and each predicted point, the union of the prediction intervals of all tenable laws.

    Points are those in the `predictions` of any law that have the first variable of `law` (of the first assessed law
    if `law` was not assessed). A law predicts a point that has all its variables.

    Keys: `family`, `at` (variable -> value), `low`, `high`, `laws`, `excluded` (law -> reason). An end is None, open,
    if a tenable law sets no bound there. If no law is tenable, `laws` is empty and both ends are None.
    """
    if not assessed:
        return []
    families = fitted[law if law in assessed else next(iter(assessed))]
    variable = next(iter(next(iter(families.values())).entry["range"]))
    rows = []
    for family in families:
        entries = {law: fits[family].entry for law, fits in fitted.items() if law in assessed}
        rows += [{"family": family, "at": at} | _envelope(entries, at, assessed) for at in _points(entries, variable)]
    return rows


def _points(entries: Mapping[str, Entry], variable: str) -> list[dict[str, float]]:
    """The predicted points of all laws, without those that another point contains."""
    points: list[dict[str, float]] = []
    for entry in entries.values():
        for row in entry.get("predictions") or []:
            point = {name: row[name] for name in entry["range"]}
            if variable in point and not any(_covers(other, point) for other in points):
                points = [other for other in points if not _covers(point, other)] + [point]
    return sorted(points, key=lambda point: point[variable])


def _covers(point: Mapping[str, float], part: Mapping[str, float]) -> bool:
    """Whether `point` contains `part`: all variables of `part` with the same values."""
    return all(name in point and math.isclose(point[name], value, rel_tol=SAME_VALUE) for name, value in part.items())


def _envelope(entries: Mapping[str, Entry], at: Mapping[str, float], assessed: Mapping[str, Entry]) -> Entry:
    intervals, excluded = {}, {}
    for law, entry in entries.items():
        if not assessed[law]["tenable"]:
            excluded[law] = assessed[law]["why"]
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
