"""What comparison.json has beside the fits: published laws, isoFLOP profiles, allocation, Pareto fronts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from slm.scaling.allocation import Allocation, compute_optimal, cost, flops_to_reach, numeric_optimum, pareto_front
from slm.scaling.entries import Entry, Fitted
from slm.scaling.isoflop import Exponent, given_optima, isoflop, isoflop_bias
from slm.scaling.laws import LAWS
from slm.scaling.published import is_published, published_claims
from slm.scaling.reference import MAX_EXTRAPOLATION, REFERENCES, Reference, local_exponent
from slm.scaling.sample import column_of, missing_columns
from slm.scaling.selection import MAX_RELATIVE_MISFIT, ByLaw
from slm.scaling.settings import Settings
from slm.scaling.tables import Table
from slm.scaling.tables.columns import is_complete


def context(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str, entries: list[Entry]) -> Entry:
    """The keys of comparison.json that no verdict rests on."""
    return {
        "references": references_entries(table, size, entries),
        "isoflop": isoflop_entries(table, fitted, settings, target, size),
        "allocation": allocation_entries(table, fitted, settings, target, size),
        "target": target_entries(table, fitted, settings, target, size),
        "pareto": pareto_entries(table, target, size),
        "published": published_claims() if is_published(table.frame) else None,
    }


def references_entries(table: Table, size: str, entries: list[Entry]) -> list[Entry]:
    """Published laws as local exponents over this table's sizes, each with the N it was fitted with, beside `power`.

    Only for families that `power` describes: where tokens vary with N, a local exponent in N means nothing. A law is
    `left_out` if the table reaches more than `MAX_EXTRAPOLATION` times beyond the runs that the law was fitted to.
    """
    rows: list[Entry] = []
    for reference in REFERENCES if "loss" in table.targets else []:
        reference_size = reference.size if reference.size in table.sizes else size
        for family in _described_by_power(entries):
            rows += _reference_rows(reference, table.family(family), family, reference_size, entries)
    return rows


def _described_by_power(entries: list[Entry]) -> dict[str, None]:
    """Families in which `power` misses the loss by at most `MAX_RELATIVE_MISFIT` times what the best law does."""
    fits = [e for e in entries if e["target"] == "loss" and e["loss"] == "least_squares" and e["identified"]]
    least: dict[str, float] = {}
    for fit in fits:
        least[fit["family"]] = min(fit["sigma_log"], least.get(fit["family"], math.inf))
    is_described = [f["law"] == "power" and f["sigma_log"] <= MAX_RELATIVE_MISFIT * least[f["family"]] for f in fits]
    return dict.fromkeys(fit["family"] for fit, described in zip(fits, is_described, strict=True) if described)


def _reference_rows(reference: Reference, table: Table, family: str, size: str, entries: list[Entry]) -> list[Entry]:
    """One row a target; none if the table lacks tokens that the law needs, or three sizes, or the fit of `power`."""
    if table.frame[size].nunique() < 3 or missing_columns(table, reference.law, "loss", size):
        return []
    values = {v: table.frame[column_of(v, size)].to_numpy(float) for v in reference.law.variables}
    N, log_loss, outside = values["N"], reference.log_loss(values), reference.outside_range(values)
    is_left_out = any(variable["factor"] > MAX_EXTRAPOLATION for variable in outside.values())
    rows = []
    for target, log_values in (("loss", log_loss), ("perplexity", np.exp(log_loss))):
        # The fit that is in fits.json, so that one exponent has one interval.
        keys = {"family": family, "target": target, "size": size, "law": "power", "loss": "least_squares"}
        power = next((e for e in entries if e["fitted"] and all(e[k] == v for k, v in keys.items())), None)
        if power is None:
            continue
        expected = None if is_left_out else local_exponent(np.log(N), log_values)
        exponent, (low, high) = power["params"]["alpha"], power["ci95"]["alpha"]
        curve = None if is_left_out else {"N": np.sort(N), "value": np.exp(log_values[np.argsort(N)])}
        is_inside = None if None in (expected, low, high) else low <= expected <= high
        row: Entry = {"reference": reference.name, "source": reference.source, "family": family, "target": target}
        row |= {"size": size, "same_size_definition": size == reference.size}
        row |= {"outside_range": outside, "left_out": is_left_out}
        row |= {"curve": curve, "reference_exponent": expected, "exponent": exponent, "ci_low": low, "ci_high": high}
        rows.append(row | {"ratio": None if expected is None else exponent / expected, "inside": is_inside})
    return rows


def _identified(fitted: ByLaw, law: str, family: str) -> Entry | None:
    """The entry of a fit; None if the law was not fitted or its exponents are not identified."""
    result = fitted.get(law, {}).get(family)
    return result.entry if result and result.entry["identified"] else None


def isoflop_entries(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str) -> list[Entry]:
    """Approach 2 of every family, its noise-free bias, and what the parametric law says at the same budgets.

    A family without exponents has the `reason`. With `settings.optima` rows are optima already, one a budget.
    """
    if missing_columns(table, LAWS["power_C"], target, size) or not is_complete(table.frame, "tokens"):
        return []
    rows = []
    for family in table.families:
        frame = table.family(family).frame
        entry: Entry = {"family": family, "given_optima": settings.optima, "bias": None, "parametric": None}
        if settings.optima:
            entry |= _given_optima(frame, size, settings.level)
        else:
            entry |= _profiles(frame, size, target, settings.level)
        if parametric := _identified(fitted, "chinchilla", family):
            law = parametric["params"]
            entry["parametric"] = law["beta"] / (law["alpha"] + law["beta"])
            if entry["exponent"] and not settings.optima:
                entry["bias"] = isoflop_bias(frame, size, target, law)
            for budget in entry["budgets"]:
                best = compute_optimal(law, budget["flops"], unit=_flops_unit(frame, size))
                ratio = best.params / budget["params"] if budget["params"] else None
                budget |= {"parametric_params": best.params, "ratio": ratio}
        rows.append(entry)
    return rows


def _profiles(frame: pd.DataFrame, size: str, target: str, level: float) -> Entry:
    profiles = isoflop(frame, size, target, level=level)
    return {
        "grouped_by": profiles.grouped_by,
        "ignored": list(profiles.ignored),
        "reason": profiles.reason,
        "ungrouped": profiles.ungrouped,
        "dropped": sum(budget.reason is not None for budget in profiles.budgets),
        "budgets": [vars(budget) for budget in profiles.budgets],
    } | _exponents(profiles.params, profiles.tokens)


def _given_optima(frame: pd.DataFrame, size: str, level: float) -> Entry:
    exponents = given_optima(frame, size, level=level)
    is_reason = isinstance(exponents, str)
    columns = frame.sort_values("flops")[["flops", size, "tokens"]].set_axis(["flops", "params", "tokens"], axis=1)
    budgets = [row | {"reason": None} for row in columns.to_dict("records")]
    entry: Entry = {"grouped_by": "rows", "ignored": [], "reason": exponents if is_reason else None, "ungrouped": 0}
    return entry | {"dropped": 0, "budgets": budgets} | _exponents(*((None, None) if is_reason else exponents))


def _exponents(params: Exponent | None, tokens: Exponent | None) -> Entry:
    names = {"exponent": "value", "low": "low", "high": "high", "se_scatter": "se_scatter"}
    both = {"": params, "tokens_": tokens}
    return {p + key: getattr(exponent, name, None) for p, exponent in both.items() for key, name in names.items()}


def _flops_unit(frame: pd.DataFrame, size: str) -> float:
    """FLOPs per parameter and token as this table counts them; 6 is Kaplan's rule."""
    return float((frame["flops"] / (frame[size] * frame["tokens"])).median())


def allocation_entries(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str) -> list[Entry]:
    """Compute-optimal N and D of every family by every identified law in N and D, at its largest budget and beyond.

    `contradicts` says where a law contradicts rows of the family; `beyond` by what factors an optimum exceeds them.
    Laws that miss the rows by more than `MAX_RELATIVE_MISFIT` times what the best one does are left out.
    """
    rows: list[Entry] = []
    for family in table.families if target == "loss" else []:
        fits = [families[family] for families in fitted.values() if family in families]
        fits = [result for result in fits if result.entry["identified"] and set(result.entry["range"]) == {"N", "D"}]
        largest_sigma = MAX_RELATIVE_MISFIT * min((result.entry["sigma_log"] for result in fits), default=0.0)
        fits = [result for result in fits if result.entry["sigma_log"] <= largest_sigma]
        rows += [
            {"family": family} | _allocation(result, table.family(family).frame, size, settings) for result in fits
        ]
    return rows


def _allocation(result: Fitted, frame: pd.DataFrame, size: str, settings: Settings) -> Entry:
    assert result.fit is not None  # it is identified
    entry, params, unit = result.entry, result.entry["params"], _flops_unit(frame, size)
    largest, lowest = float(frame["flops"].max()), float(frame["loss"].min())
    exponent = None
    optima: list[Allocation | None]
    if entry["law"] == "chinchilla":
        exponent = params["beta"] / (params["alpha"] + params["beta"])
        optima = [compute_optimal(params, largest * times, unit=unit) for times in (1, 10, 100)]
    else:
        optima = [numeric_optimum(result.fit.law, params, largest * times, unit=unit) for times in (1, 10, 100)]
    best = [optimum for optimum in optima if optimum]
    contradicts = []
    if params.get("E") is not None and params["E"] > lowest:
        contradicts.append(f"its floor is {params['E']:.4g}, and a run has reached {lowest:.4g}")
        best = []
    elif best and best[0].loss > lowest * math.exp(3 * entry["sigma_log"]):
        contradicts.append(
            f"its lowest loss at {largest:.3g} FLOPs is {best[0].loss:.4g}, and a run has reached {lowest:.4g} with no "
            "more"
        )
    reached = {"flops": largest, "params": float(frame[size].max()), "tokens": float(frame["tokens"].max())}
    budgets = []
    for optimum in best:
        ratios = {name: getattr(optimum, name) / value for name, value in reached.items()}
        beyond = {name: ratio for name, ratio in ratios.items() if ratio > 1 + 1e-9}
        costs = cost(optimum.flops, settings.flops_per_second, settings.price_per_hour)
        budgets.append(vars(optimum) | {"beyond": beyond} | costs)
    return {
        "law": entry["law"],
        "flops_per_parameter_and_token": unit,
        "exponent_params": exponent,
        "contradicts": contradicts,
        "budgets": budgets,
    }


def target_entries(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str) -> list[Entry]:
    """Fewest FLOPs at which each family reaches `settings.target_loss`, by every identified law that can say.

    `reached_with` is the fewest FLOPs of a run that did, None if none has; `beyond` is the law's over the largest
    run's; `laws_apart` the largest of the laws' FLOPs over the smallest.
    """
    loss = settings.target_loss
    if loss is None or target != "loss":
        return []
    rows: list[Entry] = []
    for family in table.families:
        frame = table.family(family).frame
        has_reached = frame["loss"] <= loss
        flops_by_law: dict[str, float | None] = {}
        for law in ("chinchilla", "power_floor_C", "power_C"):
            if entry := _identified(fitted, law, family):
                unit = _flops_unit(frame, size) if law == "chinchilla" else 6.0
                flops_by_law[law] = flops_to_reach(law, entry["params"], loss, unit=unit)
        reachable = [flops for flops in flops_by_law.values() if flops]
        for law, flops in flops_by_law.items():
            row = {"family": family, "law": law, "loss": loss, "flops": flops, "beyond": None}
            row["reached_with"] = float(frame["flops"][has_reached].min()) if has_reached.any() else None
            row["lowest_loss"] = float(frame["loss"].min())
            if flops:
                row["beyond"] = flops / float(frame["flops"].max())
                row |= cost(flops, settings.flops_per_second, settings.price_per_hour)
            rows.append(row | {"laws_apart": max(reachable) / min(reachable) if len(reachable) > 1 else None})
    return rows


def pareto_entries(table: Table, target: str, size: str) -> list[Entry]:
    """Fronts of the target against N, FLOPs and speed, if the table has them."""
    fronts, frame = [], table.frame
    for column, sign in ((size, 1), ("flops", 1), ("tokens_per_second", -1)):
        if column in frame and not frame[column].isna().any() and frame[column].nunique() > 1:
            is_best = pareto_front(frame[[target, column]].to_numpy(float) * (1, sign))
            front = frame[is_best].sort_values(column)
            names = [name for name in ("family", "name", "run_id", column, target) if name in front]
            fronts.append({"against": column, "front": front[names].to_dict("records")})
    return fronts
