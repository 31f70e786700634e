"""Reject laws that do not fit, choose the law of the verdict, rank families, and combine the predictions of laws."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
from scipy import stats

from slm.runtime.words import format_number, p_text
from slm.scaling.entries import Entry, Fitted
from slm.scaling.fitting import Fit
from slm.scaling.likelihood import criteria

MAX_AIC_DIFFERENCE = 10.0
"""A law whose AIC exceeds the lowest by more than this is rejected (Burnham & Anderson 2002, section 2.6)."""
NESTED_LEVEL = 0.01  # of the F test of a law against one that contains it, such as the same law with a floor
MAX_RELATIVE_MISFIT = 3.0
"""A law about which rows scatter this many times as much as about the best law lacks a variable, such as tokens."""
SAME_VALUE = 1e-6  # largest relative difference between values of a variable that count as equal
CHOICES = ("law", "target", "size", "loss")  # what an analyst may choose; each combination gives one ranking
ByLaw = Mapping[str, Mapping[str, Fitted]]  # law -> family -> fit


def assess_laws(fitted: ByLaw) -> dict[str, Entry]:
    """Compare the laws in N (all laws if none is in N) by AIC and AICc pooled over the families. Returns law -> row.

    Laws that fit at most half as many families as another law are not compared. The others are compared on the
    families that all of them fit. In each law, every family has its own parameters, and all share one scatter. A law
    is rejected if both its AIC and its AICc are `MAX_AIC_DIFFERENCE` above the best. With few rows, AICc alone
    would reject laws with many parameters, and AIC alone would reject simple laws that do not follow the noise. A law
    is also rejected if an F test at `NESTED_LEVEL` prefers a law that has all its parameters and more.

    Keys of a row: `families`, `refused` (family -> reason), `tenable` (compared and not rejected), and `why` it is not
    tenable; if the law is compared, also `aicc`, `aic`, `aicc_above_best`, `aic_above_best`, `parameters`, `exact` (all
    rows lie on the law) and `held_out` (root mean square log error of predicting the largest size).
    """
    candidates = {law: families for law, families in fitted.items() if is_in_size(families)} or dict(fitted)
    fits_by_law: dict[str, dict[str, Fit]] = {}
    for law, families in candidates.items():
        fits_by_law[law] = {name: result.fit for name, result in families.items() if result.fit}
    most_families = max(map(len, fits_by_law.values()), default=0)
    compared = [law for law, by_family in fits_by_law.items() if by_family and 2 * len(by_family) > most_families]
    all_families = next(iter(fitted.values()), {})
    common_families = [name for name in all_families if all(name in fits_by_law[law] for law in compared)]
    fits = {law: [fits_by_law[law][name] for name in common_families] for law in compared}
    assessed: dict[str, Entry] = {}
    for law, families in candidates.items():
        refused = {name: result.entry["notes"][0] for name, result in families.items() if result.fit is None}
        row: Entry = {"families": list(fits_by_law[law]), "refused": refused}
        row |= {"tenable": False, "why": "it fits too few families"}
        if law in compared and common_families:
            pooled = criteria(fits[law])
            row |= {"aicc": pooled.aicc, "aic": pooled.aic, "exact": all(fit.is_exact for fit in fits[law])}
            held_out = _held_out_error(families[name] for name in common_families)
            row |= {"parameters": pooled.parameters, "held_out": held_out}
        assessed[law] = row
    compared_rows = [row for row in assessed.values() if "aic" in row]
    for key in ("aicc", "aic"):
        best = min((row[key] for row in compared_rows if np.isfinite(row[key])), default=np.nan)
        for row in compared_rows:
            row[f"{key}_above_best"] = row[key] - best
    has_exact = any(row["exact"] for row in compared_rows)
    for row in compared_rows:
        excess = min(row["aicc_above_best"], row["aic_above_best"])  # NaN if no law has an AICc; none is then rejected
        row["tenable"] = row["exact"] if has_exact else not excess > MAX_AIC_DIFFERENCE
        row["why"] = f"AIC and AICc at least {format_number(excess, 3)} above the best"
        if has_exact:
            row["why"] = "other laws fit all rows exactly"
        if row["tenable"]:
            row["why"] = ""
    if common_families and not has_exact:
        for law, p, richer in _rejected_by_richer(fits):
            assessed[law] |= {"tenable": False, "why": f"an F test against {richer} has {p_text(p)}"}
    return assessed


def is_in_size(families: Mapping[str, Fitted]) -> bool:
    """Whether N is the first variable of the law that was fitted to `families`."""
    return bool(next(iter(families.values())).entry["variables"][0] == "N")


def _rejected_by_richer(fits: Mapping[str, Sequence[Fit]]) -> Iterator[tuple[str, float, str]]:
    """Yield (law, p, richer law) if an F test on independent rows rejects a law in favour of a law that contains it."""
    for law, richer in permutations(fits, 2):
        narrow, wide = fits[law][0].law, fits[richer][0].law
        is_nested = set(narrow.parameters) < set(wide.parameters) and narrow.variables == wide.variables
        is_nested = is_nested and narrow.link == wide.link
        df = sum(fit.degrees_of_freedom for fit in fits[richer])
        if not is_nested or df <= 0:
            continue
        sse, sse_richer = (sum(fit.sse for fit in fits[name]) for name in (law, richer))
        if sse_richer > 0 and all(fit.sample.is_independent and np.isinf(fit.loss.delta) for fit in fits[richer]):
            num_extra = len(fits[law]) * (len(wide.parameters) - len(narrow.parameters))
            p = float(stats.f.sf((sse / sse_richer - 1) * df / num_extra, num_extra, df))
            if p < NESTED_LEVEL:
                yield law, p, richer


def _held_out_error(fitted: Iterable[Fitted]) -> float | None:
    """Root mean square over families of the log error of predicting the largest size; None if a family has none."""
    errors = [(result.entry.get("extrapolation") or {}).get("rms_error_log", np.nan) for result in fitted]
    return None if np.isnan(errors).any() else float(np.sqrt(np.mean(np.square(errors))))


def is_curved(fitted: ByLaw, assessed: Mapping[str, Entry], law: str) -> bool:
    """Whether `law` is curved in logs, and the runs reject every law that is straight in logs."""
    straight_laws: set[str] = set()
    for name, families in fitted.items():
        if any(result.fit and result.fit.law.is_linear for result in families.values()):
            straight_laws.add(name)
    return law not in straight_laws and not any(assessed[name]["tenable"] for name in straight_laws & set(assessed))


def choose_law(fitted: ByLaw, assessed: Mapping[str, Entry], requested: str) -> tuple[str, str]:
    """Return the law of the verdict and the reason for it. A `requested` law is taken as it is; `auto` takes
    - the law with the fewest parameters among those on which all rows lie exactly, if there are any;
    - else the tenable law with the lowest pooled AICc;
    - else, with too few rows for AICc, the first law that fits the most families. Without any fit, there is no reason.
    """
    if requested != "auto":
        return requested, "it was requested"
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
            best_predictor = min(held_out, key=lambda law: held_out[law])
            remark = f", though {best_predictor} predicts the largest size better"
            if best_predictor == best:
                remark = ", and it predicts the largest size best"
        return best, f"it has the lowest AICc (pooled over the families) of {group} that are not rejected{remark}"
    first = max(tenable, key=lambda law: len(assessed[law]["families"]), default=None)
    if first is not None and assessed[first]["families"]:
        return first, f"it is the first of {group} that fit the most families; AICc needs more rows"
    usable = [law for law, families in fitted.items() if any(result.fit for result in families.values())]
    return next(iter([*usable, *fitted])), "it is the first that could be fitted" if usable else ""


def rows_by_law(fitted: ByLaw, families: Sequence[str]) -> list[Entry]:
    """Return one row per law and family, with AICc, BIC and extrapolation error."""
    rows: list[Entry] = []
    for law, family in product(fitted, families):
        entry = fitted[law][family].entry
        extrapolation = entry.get("extrapolation") or {}
        row = {key: entry[key] for key in ("law", "family", "aicc", "bic", "rmse_log", "identified")}
        row["extrapolation_error_log"] = extrapolation.get("rms_error_log")
        rows.append(row | {"extrapolation_inside": extrapolation.get("inside_interval")})
    return rows


def rankings(entries: Sequence[Entry], families: Sequence[str]) -> list[Entry]:
    """Rank the families from the steepest exponent to the flattest, once per combination of `CHOICES`.

    A ranking is `tenable` if rows scatter around the law at most `MAX_RELATIVE_MISFIT` times as much as around the
    best law for the same target and loss. It is `usable` if the exponent of every family is identified too.
    """
    groups: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[choice] for choice in CHOICES), {})[entry["family"]] = entry
    scatter = {key: max(entry["sigma_log"] or 0.0 for entry in group.values()) for key, group in groups.items()}
    lowest_scatter: dict[tuple[str, str], float] = {}
    for (law, target, size, loss), group in groups.items():
        sigma = scatter[law, target, size, loss]
        if sigma > 0 and all(entry["identified"] for entry in group.values()):
            lowest_scatter[target, loss] = min(sigma, lowest_scatter.get((target, loss), sigma))
    rows = []
    for key, group in groups.items():
        row: Entry = dict(zip(CHOICES, key, strict=True))
        lowest = lowest_scatter.get((row["target"], row["loss"]), np.inf)
        row["tenable"] = scatter[key] <= MAX_RELATIVE_MISFIT * lowest
        row["usable"] = row["tenable"] and all(name in group and group[name]["identified"] for name in families)
        exponents: dict[str, float] = {}
        if row["usable"]:
            exponents = {name: group[name]["params"][group[name]["exponents"][0]] for name in families}
        row |= {"variable": next(iter(group.values()))["variables"][0], "exponents": exponents}
        rows.append(row | {"order": sorted(exponents, key=lambda name: -exponents[name])})
    return rows


def survival(all_rankings: Sequence[Entry], primary: Entry, families: Sequence[str]) -> Entry:
    """Count how many other usable rankings by exponents of the same variable agree with `primary`, the verdict's.

    `same_order` counts rankings with the same order of all families. Of the `of` rankings, `same` agree with the order
    of one pair (`pairs`). `survives` is None if `primary` is not usable, or if no other ranking is usable.
    """

    def differs_only_in(choice: str, row: Entry) -> bool:
        return [name for name in CHOICES if row[name] != primary[name]] == [choice]

    usable = [row for row in all_rankings if row["usable"] and row["variable"] == primary["variable"]]
    others = [row for row in usable if row is not primary]
    if primary["target"] != "perplexity":
        # An exponent of perplexity is about that of the loss times the loss, so its ranking depends on losses too.
        others = [row for row in others if row["target"] != "perplexity"]
    in_perplexity = [row for row in usable if row["target"] == "perplexity"]
    perplexity_order = next((row["order"] for row in in_perplexity if differs_only_in("target", row)), None)
    order, exponents = primary["order"], primary["exponents"]
    num_same = sum(row["order"] == order for row in others)
    entry: Entry = {"rankings": list(all_rankings), "unknown": _why_unknown(primary, others), "usable": len(usable)}
    entry |= {"perplexity_order": perplexity_order, "primary_order": order}
    entry |= {"same_order": num_same, "compared_with": len(others), "survives_change_of": {}, "pairs": []}
    entry["survives"] = num_same == len(others) if others and primary["usable"] else None
    if not primary["usable"]:
        return entry
    for choice in CHOICES:
        orders = [row["order"] for row in others if differs_only_in(choice, row)]
        if orders:
            entry["survives_change_of"][choice] = all(other == order for other in orders)
    for a, b in combinations(families, 2):
        steeper, flatter = (a, b) if exponents[a] > exponents[b] else (b, a)
        num_a_steeper = sum(row["exponents"][a] > row["exponents"][b] for row in others)
        same = num_a_steeper if steeper == a else len(others) - num_a_steeper
        entry["pairs"].append({"steeper": steeper, "flatter": flatter, "same": same, "of": len(others)})
    return entry


def _why_unknown(primary: Entry, others: Sequence[Entry]) -> str | None:
    """Why it is unknown whether the order survives; None if it is known."""
    if not primary["tenable"]:
        return (
            f"rows scatter around the verdict's law over {MAX_RELATIVE_MISFIT:g} times as much as around the best law"
        )
    if not primary["usable"]:
        return "an exponent of the law of the verdict is not identified"
    return None if others else "no other fit that describes the runs has identified exponents in the same variable"


def envelopes(fitted: ByLaw, assessed: Mapping[str, Entry], law: str) -> list[Entry]:
    """Return, for each family and predicted point, the union of the prediction intervals of all tenable laws.

    The points are all predicted points (`predictions` of the entries) that have a value of the first variable of `law`,
    or of the first assessed law if `law` was not assessed. A law predicts at the points that have all its variables.

    Keys: `family`, `at` (variable -> value), `low`, `high`, `laws`, `excluded` (law -> reason). An end is None (open)
    if a tenable law has no bound there, or if no law is tenable; `laws` is then empty.
    """
    if not assessed:
        return []
    families = fitted[law if law in assessed else next(iter(assessed))]
    variable = next(iter(families.values())).entry["variables"][0]
    rows = []
    for family in families:
        entries = {name: fits[family].entry for name, fits in fitted.items() if name in assessed}
        rows += [{"family": family, "at": at} | _envelope(entries, at, assessed) for at in _points(entries, variable)]
    return rows


def _points(entries: Mapping[str, Entry], variable: str) -> list[dict[str, float]]:
    """The predicted points of all laws that have `variable`, without points whose values another point includes."""
    points: list[dict[str, float]] = []
    for entry in entries.values():
        for point, _ in _predictions(entry):
            if variable in point and not any(_covers(other, point) for other in points):
                points = [*(other for other in points if not _covers(point, other)), point]
    return sorted(points, key=lambda point: point[variable])


def _predictions(entry: Entry) -> list[tuple[dict[str, float], Entry]]:
    """The points (variable -> value) that a law predicts, each with its row of `predictions`."""
    return [({name: row[name] for name in entry["range"]}, row) for row in entry.get("predictions") or []]


def _covers(point: Mapping[str, float], part: Mapping[str, float]) -> bool:
    """Whether `point` has all variables of `part`, with the same values."""
    return all(name in point and math.isclose(point[name], value, rel_tol=SAME_VALUE) for name, value in part.items())


def _envelope(entries: Mapping[str, Entry], at: Mapping[str, float], assessed: Mapping[str, Entry]) -> Entry:
    intervals: dict[str, tuple[float, float]] = {}
    excluded: dict[str, str] = {}
    for law, entry in entries.items():
        if not assessed[law]["tenable"]:
            excluded[law] = assessed[law]["why"]
        elif not entry["fitted"] or not entry["converged"]:
            excluded[law] = entry["notes"][0] if entry["notes"] else "the fit did not converge"
        elif not set(entry["range"]) <= set(at):
            excluded[law] = "it needs variables that this point does not give"
        else:
            rows = [row for point, row in _predictions(entry) if _covers(at, point)]
            intervals[law] = (rows[0]["low"], rows[0]["high"]) if rows else (math.nan, math.nan)
    lows = [low for low, _ in intervals.values()]
    highs = [high for _, high in intervals.values()]
    low = min(lows) if lows and all(map(math.isfinite, lows)) else None
    high = max(highs) if highs and all(map(math.isfinite, highs)) else None
    return {"low": low, "high": high, "laws": list(intervals), "excluded": excluded}
