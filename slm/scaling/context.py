"""What comparison.json has beside the fits: published laws, isoFLOP profiles, allocation, Pareto fronts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from slm.scaling.allocation import Allocation, compute_optimal, cost, flops_to_reach, front_rows, numeric_optimum
from slm.scaling.entries import Entry, Fitted
from slm.scaling.isoflop import Exponent, given_optima, isoflop, isoflop_bias
from slm.scaling.laws import LAWS
from slm.scaling.published import is_published, published_claims
from slm.scaling.reference import FAR, REFERENCES, Reference, local_exponent
from slm.scaling.sample import missing_columns
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

    Only for families that `power` describes: where tokens vary against N, a local exponent in N means nothing. A law is
    `left_out` if the table reaches `FAR` times beyond the runs it was fitted to.
    """
    rows: list[Entry] = []
    for reference in REFERENCES if "loss" in table.targets else []:
        own_size = reference.size if reference.size in table.sizes else size
        for family in _described_by_power(entries):
            rows += _reference_rows(reference, table.family(family), family, own_size, entries)
    return rows


def _described_by_power(entries: list[Entry]) -> list[str]:
    """Families in which `power` misses the loss by at most `MAX_RELATIVE_MISFIT` times what the best law does."""
    misfit: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry["target"] == "loss" and entry["loss"] == "least_squares" and entry["identified"]:
            own = misfit.setdefault(entry["family"], {})
            own[entry["law"]] = min(entry["sigma_log"], own.get(entry["law"], np.inf))
    return [
        family for family, own in misfit.items() if own.get("power", np.inf) <= MAX_RELATIVE_MISFIT * min(own.values())
    ]


def _reference_rows(reference: Reference, table: Table, family: str, size: str, entries: list[Entry]) -> list[Entry]:
    """One row a target; none if the table lacks tokens that the law needs, or three sizes, or the fit of `power`."""
    values = {"N": table.frame[size].to_numpy(float)}
    if "D" in reference.law.variables:
        values["D"] = table.frame.get("tokens", pd.Series(np.nan, table.frame.index)).to_numpy(float)
    N = values["N"]
    if len(np.unique(N)) < 3 or np.isnan(list(values.values())).any():
        return []
    outside = reference.outside_range(values)
    is_left_out = any(variable["factor"] > FAR for variable in outside.values())
    log_loss = reference.log_loss(values)
    rows = []
    for target, log_values in (("loss", log_loss), ("perplexity", np.exp(log_loss))):
        # The fit that stands in fits.json, so that one exponent has one interval.
        wanted = {"family": family, "target": target, "size": size, "law": "power", "loss": "least_squares"}
        power = next((e for e in entries if e["fitted"] and all(e[k] == v for k, v in wanted.items())), None)
        if power is None:
            continue
        expected = None if is_left_out else local_exponent(np.log(N), log_values)
        found, (low, high) = power["params"]["alpha"], power["ci95"]["alpha"]
        is_open = expected is None or low is None or high is None
        rows.append(
            {
                "reference": reference.name,
                "source": reference.source,
                "family": family,
                "target": target,
                "size": size,
                "same_size_definition": size == reference.size,
                "outside_range": outside,
                "left_out": is_left_out,
                "curve": None if is_left_out else {"N": np.sort(N), "value": np.exp(log_values[np.argsort(N)])},
                "reference_exponent": expected,
                "exponent": found,
                "ci_low": low,
                "ci_high": high,
                "ratio": None if expected is None else found / expected,
                "inside": None if is_open else low <= expected <= high,
            }
        )
    return rows


def isoflop_entries(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str) -> list[Entry]:
    """Approach 2 of every family, its noise-free bias, and what the parametric law says at the same budgets.

    A family without exponents has the `reason`. With `settings.optima` rows are optima already, one a budget.
    """
    if missing_columns(table, LAWS["power_C"], target, size) or not is_complete(table.frame, "tokens"):
        return []
    rows = []
    for family in table.families:
        frame = table.family(family).frame
        parametric = fitted.get("chinchilla", {}).get(family)
        law = parametric.entry["params"] if parametric and parametric.entry["identified"] else None
        entry: Entry = {"family": family, "given_optima": settings.optima, "bias": None, "parametric": None}
        if settings.optima:
            entry |= _given_optima(frame, size, settings.level)
        else:
            entry |= _profiles(frame, size, target, settings.level)
            entry["bias"] = law and entry["exponent"] and isoflop_bias(frame, size, target, law)
        if law:
            entry["parametric"] = law["beta"] / (law["alpha"] + law["beta"])
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
        **_exponent("", profiles.params),
        **_exponent("tokens_", profiles.tokens),
    }


def _given_optima(frame: pd.DataFrame, size: str, level: float) -> Entry:
    exponents = given_optima(frame, size, level=level)
    reason = exponents if isinstance(exponents, str) else None
    params, tokens = (None, None) if isinstance(exponents, str) else exponents
    columns = frame.sort_values("flops")[["flops", size, "tokens"]].set_axis(["flops", "params", "tokens"], axis=1)
    return {
        "grouped_by": "rows",
        "ignored": [],
        "reason": reason,
        "ungrouped": 0,
        "dropped": 0,
        "budgets": [row | {"reason": None} for row in columns.to_dict("records")],
        **_exponent("", params),
        **_exponent("tokens_", tokens),
    }


def _exponent(prefix: str, exponent: Exponent | None) -> Entry:
    names = {"exponent": "value", "low": "low", "high": "high", "se_scatter": "se_scatter"}
    return {f"{prefix}{key}": getattr(exponent, name, None) for key, name in names.items()}


def _flops_unit(frame: pd.DataFrame, size: str) -> float:
    """FLOPs a parameter and token as this table counts them; 6 is Kaplan's rule."""
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
        best = min((result.entry["sigma_log"] for result in fits), default=0.0)
        for result in fits:
            if result.entry["sigma_log"] <= MAX_RELATIVE_MISFIT * best:
                rows.append({"family": family, **_allocation(result, table.family(family).frame, size, settings)})
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
            f"its least loss at {largest:.3g} FLOPs is {best[0].loss:.4g}, and a run has reached {lowest:.4g} with no "
            "more"
        )
    reached = {"flops": largest, "params": float(frame[size].max()), "tokens": float(frame["tokens"].max())}
    budgets = []
    for optimum in best:
        ratios = {name: getattr(optimum, name) / value for name, value in reached.items()}
        beyond = {name: ratio for name, ratio in ratios.items() if ratio > 1 + 1e-9}
        budgets.append(vars(optimum) | {"beyond": beyond} | _costs(optimum.flops, settings))
    return {
        "law": entry["law"],
        "flops_per_parameter_and_token": unit,
        "exponent_params": exponent,
        "contradicts": contradicts,
        "budgets": budgets,
    }


def target_entries(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str) -> list[Entry]:
    """Least FLOPs at which each family reaches `settings.target_loss`, by every identified law that can say.

    `reached_with` is the least FLOPs of a run that did, None if none has; `beyond` is the law's over the largest run's.
    """
    wanted = settings.target_loss
    if wanted is None or target != "loss":
        return []
    rows: list[Entry] = []
    for family in table.families:
        frame = table.family(family).frame
        reached = frame["flops"][frame["loss"] <= wanted] if "flops" in frame else frame["loss"][:0]
        own: list[Entry] = []
        for law in ("chinchilla", "power_floor_C", "power_C"):
            result = fitted.get(law, {}).get(family)
            if result is None or not result.entry["identified"]:
                continue
            unit = _flops_unit(frame, size) if law == "chinchilla" else 6.0
            flops = flops_to_reach(law, result.entry["params"], wanted, unit=unit)
            row: Entry = {"family": family, "law": law, "loss": wanted, "flops": flops, "beyond": None}
            row["reached_with"] = float(reached.min()) if len(reached) else None
            row["lowest_loss"] = float(frame["loss"].min())
            if flops:
                row |= {"beyond": flops / float(frame["flops"].max())} | _costs(flops, settings)
            own.append(row)
        flops_by_law = [row["flops"] for row in own if row["flops"]]
        spread = max(flops_by_law) / min(flops_by_law) if len(flops_by_law) > 1 else None
        rows += [row | {"laws_apart": spread} for row in own]
    return rows


def _costs(flops: float, settings: Settings) -> Entry:
    if settings.flops_per_second is None:
        return {}
    return cost(flops, flops_per_second=settings.flops_per_second, price_per_hour=settings.price_per_hour)


def pareto_entries(table: Table, target: str, size: str) -> list[Entry]:
    """Fronts of the target against N, FLOPs and speed, if the table has them."""
    fronts, frame = [], table.frame
    for column, sign in ((size, 1), ("flops", 1), ("tokens_per_second", -1)):
        if column in frame and not frame[column].isna().any() and frame[column].nunique() > 1:
            front = front_rows(frame, [(target, 1), (column, sign)]).sort_values(column)
            names = [name for name in ("family", "name", "run_id", column, target) if name in front]
            fronts.append({"against": column, "front": front[names].to_dict("records")})
    return fronts
