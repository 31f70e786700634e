"""Entries of comparison.json beside the verdict: published laws, isoFLOP profiles, allocation, Pareto fronts."""

import math

import numpy as np
import pandas as pd

from slm.runtime.words import amount, format_number
from slm.scaling.allocation import (
    compute_optimal,
    cost,
    flops_to_reach,
    lifetime_optimum,
    numeric_optimum,
    pareto_front,
)
from slm.scaling.entries import Entry, Fitted
from slm.scaling.isoflop import Exponent, given_optima, isoflop, isoflop_bias
from slm.scaling.laws import LAWS
from slm.scaling.published import is_published, published_claims
from slm.scaling.reference import MAX_EXTRAPOLATION, REFERENCES, Reference, local_exponent
from slm.scaling.sample import column_of, missing_columns
from slm.scaling.selection import MAX_RELATIVE_MISFIT, ByLaw
from slm.scaling.settings import Settings
from slm.scaling.tables import Table
from slm.scaling.tables.columns import cell_means, is_complete


def context(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str, entries: list[Entry]) -> Entry:
    """Return the keys of comparison.json that the verdict does not use."""
    return {
        "references": references_entries(table, size, entries),
        "isoflop": isoflop_entries(table, fitted, settings, target, size),
        "allocation": allocation_entries(table, fitted, settings, target, size),
        "target": target_entries(table, fitted, settings, target, size),
        "lifetime": lifetime_entries(table, fitted, settings, target, size),
        "pareto": pareto_entries(table, target, size),
        "published": published_claims() if is_published(table.frame) else None,
    }


def references_entries(table: Table, size: str, entries: list[Entry]) -> list[Entry]:
    """Compare local exponents of published laws over this table's sizes with the exponent of `power`.

    N is counted as the authors of a law counted it, if the table has that column. Only families that `power` describes
    have rows, since a local exponent in N means nothing if tokens vary with N. A law is `left_out` if the table reaches
    more than `MAX_EXTRAPOLATION` times beyond the runs that the law was fitted to.
    """
    rows: list[Entry] = []
    for reference in REFERENCES:
        reference_size = reference.size if reference.size in table.sizes else size
        for family in _described_by_power(entries):
            rows += _reference_rows(reference, table.family(family), family, reference_size, entries)
    return rows


def _described_by_power(entries: list[Entry]) -> list[str]:
    """Families whose loss scatters about `power` at most `MAX_RELATIVE_MISFIT` times as much as about the best law."""
    fits = [fit for fit in entries if fit["target"] == "loss" and fit["loss"] == "least_squares" and fit["identified"]]
    max_sigma: dict[str, float] = {}
    for fit in fits:
        max_sigma[fit["family"]] = min(MAX_RELATIVE_MISFIT * fit["sigma_log"], max_sigma.get(fit["family"], math.inf))
    power_fits = [fit for fit in fits if fit["law"] == "power"]
    return list(dict.fromkeys(fit["family"] for fit in power_fits if fit["sigma_log"] <= max_sigma[fit["family"]]))


def _reference_rows(reference: Reference, table: Table, family: str, size: str, entries: list[Entry]) -> list[Entry]:
    """One row per target; no rows without three sizes, a fit of `power`, or (if the law needs them) tokens."""
    if table.frame[size].nunique() < 3 or missing_columns(table, reference.law, "loss", size):
        return []
    columns = {name: table.frame[column_of(name, size)].to_numpy(float) for name in reference.law.variables}
    N = columns["N"]
    log_loss = reference.log_loss(columns)
    outside = reference.outside_range(columns)
    is_left_out = any(variable["factor"] > MAX_EXTRAPOLATION for variable in outside.values())
    rows = []
    for target, log_target in (("loss", log_loss), ("perplexity", np.exp(log_loss))):  # log perplexity is the loss
        # The entry of fits.json is used, so an exponent has the same interval everywhere.
        keys = {"family": family, "target": target, "size": size, "law": "power", "loss": "least_squares"}
        power = next((entry for entry in entries if entry["fitted"] and keys.items() <= entry.items()), None)
        if power is None:
            continue
        expected, curve = None, None
        if not is_left_out:
            expected = local_exponent(np.log(N), log_target)
            curve = {"N": np.sort(N), "value": np.exp(log_target[np.argsort(N)])}
        exponent = power["params"]["alpha"]
        low, high = power["ci95"]["alpha"]
        is_inside = None if None in (expected, low, high) else low <= expected <= high
        row: Entry = {"reference": reference.name, "source": reference.source, "family": family, "target": target}
        row |= {"size": size, "same_size_definition": size == reference.size}
        row |= {"outside_range": outside, "left_out": is_left_out}
        row |= {"curve": curve, "reference_exponent": expected, "exponent": exponent, "ci_low": low, "ci_high": high}
        rows.append(row | {"ratio": None if expected is None else exponent / expected, "inside": is_inside})
    return rows


def _identified_entry(fitted: ByLaw, law: str, family: str) -> Entry | None:
    """The entry of a fit; None if the law was not fitted or its exponents are not identified."""
    result = fitted.get(law, {}).get(family)
    return result.entry if result and result.entry["identified"] else None


def isoflop_entries(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str) -> list[Entry]:
    """Return the results of approach 2 per family. If `settings.optima`, each row of the table is a budget's optimum.

    `parametric` is the exponent of a fitted `chinchilla`. `bias` is approach 2's error on that law's noise-free losses.
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
        if parametric := _identified_entry(fitted, "chinchilla", family):
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
    entry: Entry = {"grouped_by": profiles.grouped_by, "ignored": list(profiles.ignored), "reason": profiles.reason}
    num_dropped = sum(budget.reason is not None for budget in profiles.budgets)
    budgets = [vars(budget) for budget in profiles.budgets]
    entry |= {"ungrouped": profiles.ungrouped, "dropped": num_dropped, "budgets": budgets}
    return entry | _exponents(profiles.params, profiles.tokens)


def _given_optima(frame: pd.DataFrame, size: str, level: float) -> Entry:
    columns = frame.sort_values("flops")[["flops", size, "tokens"]].set_axis(["flops", "params", "tokens"], axis=1)
    budgets = [row | {"reason": None} for row in columns.to_dict("records")]
    entry: Entry = {"grouped_by": "rows", "ignored": [], "ungrouped": 0, "dropped": 0, "budgets": budgets}
    result = given_optima(frame, size, level=level)
    if isinstance(result, str):
        return entry | {"reason": result} | _exponents(None, None)
    return entry | {"reason": None} | _exponents(*result)


def _exponents(params: Exponent | None, tokens: Exponent | None) -> Entry:
    entry: Entry = {}
    for prefix, exponent in (("", params), ("tokens_", tokens)):
        entry[f"{prefix}exponent"] = exponent.value if exponent else None
        entry |= {prefix + key: getattr(exponent, key, None) for key in ("low", "high", "se_scatter")}
    return entry


def _flops_unit(frame: pd.DataFrame, size: str) -> float:
    """FLOPs per parameter and token in this table (median of the rows); 6 by Kaplan's rule C = 6 N D."""
    return float((frame["flops"] / (frame[size] * frame["tokens"])).median())


def allocation_entries(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str) -> list[Entry]:
    """Return compute-optimal N and D per family and law in N and D, at 1, 10 and 100 times the family's largest budget.

    `contradicts` says where a law contradicts the runs. `beyond` has the factors by which an optimum exceeds the
    largest budget, N or D. A law is left out if its scatter exceeds `MAX_RELATIVE_MISFIT` times that of the best law.
    """
    rows: list[Entry] = []
    if target != "loss":
        return rows
    for family in table.families:
        fits = [families[family] for families in fitted.values() if family in families]
        fits = [result for result in fits if result.entry["identified"] and set(result.entry["range"]) == {"N", "D"}]
        max_sigma = MAX_RELATIVE_MISFIT * min((result.entry["sigma_log"] for result in fits), default=0.0)
        frame = table.family(family).frame
        for result in fits:
            if result.entry["sigma_log"] <= max_sigma:
                rows.append({"family": family} | _allocation(result, frame, size, settings))
    return rows


def _allocation(result: Fitted, frame: pd.DataFrame, size: str, settings: Settings) -> Entry:
    assert result.fit is not None  # the entry is identified
    entry, params = result.entry, result.entry["params"]
    unit = _flops_unit(frame, size)
    max_flops, lowest_loss = float(frame["flops"].max()), float(frame["loss"].min())
    flops_of_budgets = [max_flops * factor for factor in (1, 10, 100)]
    exponent = None
    if entry["law"] == "chinchilla":
        exponent = params["beta"] / (params["alpha"] + params["beta"])
        optima = [compute_optimal(params, flops, unit=unit) for flops in flops_of_budgets]
    else:
        optima_or_none = [numeric_optimum(result.fit.law, params, flops, unit=unit) for flops in flops_of_budgets]
        optima = [optimum for optimum in optima_or_none if optimum]
    contradicts = []
    if params.get("E") is not None and params["E"] > lowest_loss:
        contradicts.append(
            f"its floor is {format_number(params['E'])}, and a run has reached {format_number(lowest_loss)}"
        )
        optima = []
    elif optima and optima[0].loss > lowest_loss * math.exp(3 * entry["sigma_log"]):
        law_says = f"its lowest loss at {amount('C', max_flops)} FLOPs is {format_number(optima[0].loss)}"
        contradicts.append(f"{law_says}, and a run with at most these FLOPs has reached {format_number(lowest_loss)}")
    maxima = {"flops": max_flops, "params": float(frame[size].max()), "tokens": float(frame["tokens"].max())}
    budgets = []
    for optimum in optima:
        ratios = {name: getattr(optimum, name) / maximum for name, maximum in maxima.items()}
        beyond = {name: ratio for name, ratio in ratios.items() if ratio > 1 + 1e-9}
        costs = cost(optimum.flops, settings.flops_per_second, settings.price_per_hour)
        budgets.append(vars(optimum) | {"beyond": beyond} | costs)
    allocation = {"law": entry["law"], "flops_per_parameter_and_token": unit, "exponent_params": exponent}
    return allocation | {"contradicts": contradicts, "budgets": budgets}


def target_entries(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str) -> list[Entry]:
    """Return the fewest FLOPs with which each family reaches `settings.target_loss` under every identified law.

    `reached_with` is the fewest FLOPs of a run that reached that loss (None if none did). `beyond` is the law's FLOPs
    divided by those of the largest run. `laws_apart` is the largest FLOPs of all laws divided by the smallest.
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
            if entry := _identified_entry(fitted, law, family):
                unit = _flops_unit(frame, size) if law == "chinchilla" else 6.0
                flops_by_law[law] = flops_to_reach(law, entry["params"], loss, unit=unit)
        reachable = [flops for flops in flops_by_law.values() if flops]
        laws_apart = max(reachable) / min(reachable) if len(reachable) > 1 else None
        for law, flops in flops_by_law.items():
            row = {"family": family, "law": law, "loss": loss, "flops": flops, "beyond": None}
            row["reached_with"] = float(frame["flops"][has_reached].min()) if has_reached.any() else None
            row["lowest_loss"] = float(frame["loss"].min())
            if flops:
                row["beyond"] = flops / float(frame["flops"].max())
                row |= cost(flops, settings.flops_per_second, settings.price_per_hour)
            rows.append(row | {"laws_apart": laws_apart})
    return rows


def lifetime_entries(table: Table, fitted: ByLaw, settings: Settings, target: str, size: str) -> list[Entry]:
    """Return per family the N and D that train to a loss and serve `settings.served_tokens` with the fewest FLOPs.

    `alone` has the optimum without serving. Intervals are of the refits of a bootstrap (None without one). `refused`
    says why a family has none: its `chinchilla` law must be identified, and the loss above its floor.
    """
    if settings.served_tokens is None:
        return []
    return [{"family": family} | _lifetime(table, family, fitted, settings, target, size) for family in table.families]


def _lifetime(table: Table, family: str, fitted: ByLaw, settings: Settings, target: str, size: str) -> Entry:
    result, served = fitted.get("chinchilla", {}).get(family), float(settings.served_tokens or 0)
    if target != "loss":
        return {"refused": f"it needs the loss as target, and the target is {target}"}
    if result is None or result.fit is None or result.uncertainty is None or not result.entry["identified"]:
        return {"refused": "the data do not identify L = E + A/N^alpha + B/D^beta, so they cannot say"}
    params, frame = result.entry["params"], table.family(family).frame
    unit = _flops_unit(frame, size)
    loss = settings.target_loss or compute_optimal(params, settings.training_flops or 0.0, unit=unit).loss
    best, alone = (lifetime_optimum(params, loss, tokens, unit=unit) for tokens in (served, 0.0))
    if best is None or alone is None:
        return {"refused": f"the loss {format_number(loss)} is not above its floor, {format_number(params['E'])}"}
    ensembles = result.uncertainty.ensembles
    ensemble = ensembles.get("cluster") or ensembles.get("wild")
    quoted = result.fit.law.canonical(ensemble.theta, result.fit.sample.refs) if ensemble else np.zeros((0, 0))
    draws = [dict(zip(result.fit.law.parameters, row, strict=True)) for row in quoted.tolist()]
    optima = [optimum for draw in draws if (optimum := lifetime_optimum(draw, loss, served, unit=unit))]
    entry: Entry = {"refused": None, "loss": loss, "served_tokens": served, "flops_per_parameter_and_token": unit}
    entry |= {"best": vars(best), "alone": vars(alone), "reached_in": len(optima) / max(len(draws), 1)}
    entry["alone_flops"] = alone.flops + unit / 3 * alone.params * served
    ends = [0.5 - settings.level / 2, 0.5 + settings.level / 2]
    for name, column in (("params", size), ("tokens", "tokens")):
        values = [getattr(optimum, name) for optimum in optima]
        entry[f"{name}_interval"] = np.quantile(values, ends).tolist() if values else [None, None]
        entry[f"{name}_beyond"] = max(
            1.0, getattr(best, name) / frame[column].max(), frame[column].min() / getattr(best, name)
        )
    return entry


def pareto_entries(table: Table, target: str, size: str) -> list[Entry]:
    """Return the Pareto fronts of the target against N, FLOPs and speed, where the table has these columns.

    A point is a cell with the means over its seeds: the luckiest of several seeds would be on the front by luck.
    """
    fronts = []
    for column, sign in ((size, 1), ("flops", 1), ("tokens_per_second", -1)):  # -1: larger values are better
        if is_complete(table.frame, column) and table.frame[column].nunique() > 1:
            cells = cell_means(table.frame, column, target)
            is_best = pareto_front(cells[[target, column]].to_numpy(float) * (1, sign))
            front = cells[is_best].sort_values(column)
            fronts.append({"against": column, "front": front.to_dict("records")})
    return fronts
