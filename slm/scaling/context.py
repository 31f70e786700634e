"""What stands around the fits in comparison.json: published laws, isoFLOP profiles, allocation, Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from slm.scaling.allocation import Allocation, compute_optimal, cost, flops_to_reach, front_rows, numeric_optimum
from slm.scaling.entries import Entry, Fitted
from slm.scaling.isoflop import Exponent, given_optima, isoflop, isoflop_bias
from slm.scaling.laws import LAWS
from slm.scaling.ranking import TENABLE
from slm.scaling.reference import FAR, REFERENCES, Reference, local_exponent
from slm.scaling.sample import missing_columns
from slm.scaling.settings import Settings
from slm.scaling.tables import Table
from slm.scaling.tables.columns import complete

ByFamily = Mapping[str, Mapping[str, Fitted]]


def references_entries(table: Table, size: str, entries: list[Entry]) -> list[Entry]:
    """Published laws as local exponents over this table's sizes, each with the N it was fitted with, beside `power`.

    Only for families that `power` describes at all: where tokens vary against N, a local exponent in N means nothing.
    A law is not read where the table reaches `FAR` times beyond the runs it was fitted to (`left_out`).
    """
    if "loss" not in table.targets:
        return []
    rows: list[Entry] = []
    for reference in REFERENCES:
        own = reference.size if reference.size in table.sizes else size
        for family in _described_by_power(entries):
            rows += _reference_rows(reference, table.of(family), family, own, entries)
    return rows


def _reference_rows(reference: Reference, table: Table, family: str, size: str, entries: list[Entry]) -> list[Entry]:
    """One row a target; none where the table lacks tokens that the law needs, or three sizes, or the fit of `power`."""
    N = table.frame[size].to_numpy(float)
    values = {"N": N}
    if "D" in reference.law.variables:
        values["D"] = table.frame["tokens"].to_numpy(float) if "tokens" in table.frame else np.full(len(N), np.nan)
    if len(np.unique(N)) < 3 or np.isnan(list(values.values())).any():
        return []
    outside = reference.outside_range(values)
    left_out = any(one["factor"] > FAR for one in outside.values())
    log_loss = reference.log_loss(values)
    rows = []
    for target, log_values in (("loss", log_loss), ("perplexity", np.exp(log_loss))):
        power = _power_entry(entries, family, target, size)
        if power is None:
            continue
        curve = {"N": np.sort(N), "value": np.exp(log_values[np.argsort(N)])}
        rows.append(
            {
                "reference": reference.name,
                "source": reference.source,
                "family": family,
                "target": target,
                "size": size,
                "same_size_definition": size == reference.size,
                "outside_range": outside,
                "left_out": left_out,
                "curve": None if left_out else curve,
                **_beside_power(power, None if left_out else local_exponent(np.log(N), log_values)),
            }
        )
    return rows


def _power_entry(entries: list[Entry], family: str, target: str, size: str) -> Entry | None:
    """The fit of `power` that stands in fits.json, so that one exponent has one interval."""
    wanted = (family, target, size, "power", "least_squares", True)
    keys = ("family", "target", "size", "law", "loss", "fitted")
    return next((entry for entry in entries if tuple(entry[key] for key in keys) == wanted), None)


def _beside_power(power: Entry, expected: float | None) -> Entry:
    found, (low, high) = power["params"]["alpha"], power["ci95"]["alpha"]
    known = expected is not None and low is not None and high is not None
    return {
        "reference_exponent": expected,
        "exponent": found,
        "ci_low": low,
        "ci_high": high,
        "ratio": None if expected is None else found / expected,
        "inside": low <= expected <= high if known else None,
    }


def _described_by_power(entries: list[Entry]) -> list[str]:
    """Families in which `power` misses the loss by no more than `TENABLE` times what the best law does."""
    misfit: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry["target"] == "loss" and entry["loss"] == "least_squares" and entry["identified"]:
            of = misfit.setdefault(entry["family"], {})
            of[entry["law"]] = min(entry["sigma_log"], of.get(entry["law"], np.inf))
    return [name for name, of in misfit.items() if of.get("power", np.inf) <= TENABLE * min(of.values())]


def isoflop_entries(table: Table, primary: ByFamily, settings: Settings, target: str, size: str) -> list[Entry]:
    """Approach 2 of every family, its noise-free bias, and what the parametric law says at the same budgets.

    A family without exponents has the `reason`. With `settings.optima` rows are optima already, one a budget.
    """
    if missing_columns(table, LAWS["power_C"], target, size) or not complete(table.frame, "tokens"):
        return []
    rows = []
    for family in table.families:
        frame = table.of(family).frame
        parametric = primary.get("chinchilla", {}).get(family)
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
    found = isoflop(frame, size, target, level=level)
    return {
        "grouped_by": found.grouped_by,
        "ignored": list(found.ignored),
        "reason": found.reason,
        "ungrouped": found.ungrouped,
        "dropped": sum(budget.reason is not None for budget in found.budgets),
        "budgets": [vars(budget) for budget in found.budgets],
        **_exponents(found.params, found.tokens),
    }


def _given_optima(frame: pd.DataFrame, size: str, level: float) -> Entry:
    found = given_optima(frame, size, level=level)
    a, b = (None, None) if isinstance(found, str) else found
    ordered = frame.sort_values("flops")
    columns = [ordered[name].tolist() for name in ("flops", size, "tokens")]
    return {
        "grouped_by": "rows",
        "ignored": [],
        "reason": found if isinstance(found, str) else None,
        "ungrouped": 0,
        "dropped": 0,
        "budgets": [{"flops": c, "params": n, "tokens": d, "reason": None} for c, n, d in zip(*columns, strict=True)],
        **_exponents(a, b),
    }


def _exponents(params: Exponent | None, tokens: Exponent | None) -> Entry:
    """`exponent`, `low`, `high`, `se_scatter` of a, and the same of b with `tokens_` before."""
    found: Entry = {}
    for prefix, one in (("", params), ("tokens_", tokens)):
        values = (one.value, one.low, one.high, one.se_scatter) if one else (None,) * 4
        found |= dict(
            zip((f"{prefix}{name}" for name in ("exponent", "low", "high", "se_scatter")), values, strict=True)
        )
    return found


def _flops_unit(frame: pd.DataFrame, size: str) -> float:
    """FLOPs a parameter and token as this table counts them; 6 is Kaplan's rule."""
    return float((frame["flops"] / (frame[size] * frame["tokens"])).median())


def allocation_entries(table: Table, primary: ByFamily, settings: Settings, target: str, size: str) -> list[Entry]:
    """Compute-optimal N and D of every family by every identified law in N and D, at its largest budget and beyond.

    `contradicts` says where a law contradicts rows of the family; `beyond` by what factors an optimum exceeds them.
    Laws that miss the rows by more than `TENABLE` times what the best one does are left out.
    """
    rows: list[Entry] = []
    if target != "loss":
        return rows
    for family in table.families:
        frame = table.of(family).frame
        fitted = [laws[family] for laws in primary.values() if family in laws]
        there = [one for one in fitted if one.entry["identified"] and set(one.entry["range"]) == {"N", "D"}]
        for one in there:
            if one.entry["sigma_log"] <= TENABLE * min(other.entry["sigma_log"] for other in there):
                rows.append({"family": family, **_allocation(one, frame, size, settings)})
    return rows


def _allocation(one: Fitted, frame: pd.DataFrame, size: str, settings: Settings) -> Entry:
    assert one.fit is not None  # it is identified
    entry, params, unit = one.entry, one.entry["params"], _flops_unit(frame, size)
    budgets = [float(frame["flops"].max()) * times for times in (1, 10, 100)]
    if entry["law"] == "chinchilla":
        best = [compute_optimal(params, flops, unit=unit) for flops in budgets]
    else:
        found = [numeric_optimum(one.fit.law, params, flops, unit=unit) for flops in budgets]
        best = [optimum for optimum in found if optimum]
    lowest, floor = float(frame["loss"].min()), params.get("E")
    contradicts = []
    if floor is not None and floor > lowest:
        contradicts.append(f"its floor is {floor:.4g}, and a run has reached {lowest:.4g}")
        best = []
    elif best and best[0].loss > lowest * math.exp(3 * entry["sigma_log"]):
        contradicts.append(
            f"its least loss at {budgets[0]:.3g} FLOPs is {best[0].loss:.4g}, and a run has reached {lowest:.4g} with "
            "no more"
        )
    return {
        "law": entry["law"],
        "flops_per_parameter_and_token": unit,
        "exponent_params": params["beta"] / (params["alpha"] + params["beta"])
        if entry["law"] == "chinchilla"
        else None,
        "contradicts": contradicts,
        "budgets": [vars(o) | {"beyond": _beyond(o, frame, size)} | _costs(o.flops, settings) for o in best],
    }


def _beyond(best: Allocation, frame: pd.DataFrame, size: str) -> dict[str, float]:
    """By what factor an optimum exceeds the family's largest budget, N and D, where it does."""
    ratios = {
        "flops": best.flops / float(frame["flops"].max()),
        "params": best.params / float(frame[size].max()),
        "tokens": best.tokens / float(frame["tokens"].max()),
    }
    return {name: ratio for name, ratio in ratios.items() if ratio > 1 + 1e-9}


def target_entries(table: Table, primary: ByFamily, settings: Settings, target: str, size: str) -> list[Entry]:
    """Least FLOPs at which each family reaches `settings.target_loss`, by every identified law that can say.

    `reached_with` is the least FLOPs of a run that did, None if none has; `beyond` is the law's over the largest run's.
    """
    wanted = settings.target_loss
    if wanted is None or target != "loss":
        return []
    rows: list[Entry] = []
    for family in table.families:
        frame = table.of(family).frame
        found: list[Entry] = []
        for law in ("chinchilla", "power_floor_C", "power_C"):
            one = primary.get(law, {}).get(family)
            if one is None or not one.entry["identified"]:
                continue
            unit = _flops_unit(frame, size) if law == "chinchilla" else 6.0
            flops = flops_to_reach(law, one.entry["params"], wanted, unit=unit)
            beyond = flops / float(frame["flops"].max()) if flops else None
            found.append({"family": family, "law": law, "loss": wanted, "flops": flops, "beyond": beyond})
            found[-1] |= _costs(flops, settings) if flops else {}
        reached = frame["flops"][frame["loss"] <= wanted] if "flops" in frame else frame["loss"][:0]
        said = [row["flops"] for row in found if row["flops"]]
        for row in found:
            row["reached_with"] = float(reached.min()) if len(reached) else None
            row["lowest_loss"] = float(frame["loss"].min())
            row["laws_apart"] = max(said) / min(said) if len(said) > 1 else None
        rows += found
    return rows


def _costs(flops: float, settings: Settings) -> Entry:
    if settings.flops_per_second is None:
        return {}
    return vars(cost(flops, flops_per_second=settings.flops_per_second, price_per_hour=settings.price_per_hour))


def pareto_entries(table: Table, target: str, size: str) -> list[Entry]:
    """Fronts of the target against N, FLOPs and speed, as far as the table has them."""
    fronts = []
    for column, sign in ((size, 1), ("flops", 1), ("tokens_per_second", -1)):
        frame = table.frame
        if column not in frame or frame[column].isna().any() or frame[column].nunique() < 2:
            continue
        front = front_rows(frame, [(target, 1), (column, sign)]).sort_values(column)
        names = [c for c in ("family", "name", "run_id", column, target) if c in front]
        fronts.append({"against": column, "front": front[names].to_dict("records")})
    return fronts
