"""What stands around the fits in comparison.json: published laws, isoFLOP profiles, allocation, Pareto fronts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slm.scaling.allocation import compute_optimal, cost, flops_to_reach, front_rows, isoflop, isoflop_bias
from slm.scaling.entries import Entry, Fitted
from slm.scaling.fitting import fit
from slm.scaling.intervals import uncertainty
from slm.scaling.laws import LAWS
from slm.scaling.ranking import TENABLE
from slm.scaling.reference import REFERENCES, Reference, local_exponent
from slm.scaling.sample import missing_columns
from slm.scaling.settings import Settings
from slm.scaling.tables import Table

ByFamily = Mapping[str, Mapping[str, Fitted]]


def references_entries(table: Table, size: str, entries: list[Entry]) -> list[Entry]:
    """Published laws as local exponents over this table's sizes, each with the N it was fitted with, beside `power`.

    Only for families that `power` describes at all: where tokens vary against N, a local exponent in N means nothing.
    """
    if "loss" not in table.targets:
        return []
    rows: list[Entry] = []
    for reference in REFERENCES:
        own = reference.size if reference.size in table.sizes else size
        for family in _described_by_power(entries):
            rows += _reference_rows(reference, table.of(family), family, own)
    return rows


def _reference_rows(reference: Reference, table: Table, family: str, size: str) -> list[Entry]:
    """One row a target; none where the table lacks tokens that the law needs, or three sizes."""
    N = table.frame[size].to_numpy(float)
    values = {"N": N}
    if "D" in reference.law.variables:
        values["D"] = table.frame["tokens"].to_numpy(float) if "tokens" in table.frame else np.full(len(N), np.nan)
    if len(np.unique(N)) < 3 or np.isnan(list(values.values())).any():
        return []
    log_loss = reference.log_loss(values)
    return [
        {
            "reference": reference.name,
            "source": reference.source,
            "family": family,
            "target": target,
            "size": size,
            "same_size_definition": size == reference.size,
            "curve": {"N": np.sort(N), "value": np.exp(log_values[np.argsort(N)])},
            **_beside_power(table, target, size, local_exponent(np.log(N), log_values)),
        }
        for target, log_values in (("loss", log_loss), ("perplexity", np.exp(log_loss)))
    ]


def _beside_power(table: Table, target: str, size: str, expected: float) -> Entry:
    found = fit(table, "power", target=target, size=size)
    low, high = uncertainty(found, replicates=0, rng=np.random.default_rng(0)).ci["alpha"]
    return {
        "reference_exponent": expected,
        "exponent": found.params["alpha"],
        "ci_low": low,
        "ci_high": high,
        "ratio": found.params["alpha"] / expected,
        "inside": low is not None and high is not None and low <= expected <= high,
    }


def _described_by_power(entries: list[Entry]) -> list[str]:
    """Families in which `power` misses the loss by no more than `TENABLE` times what the best law does."""
    misfit: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry["target"] == "loss" and entry["loss"] == "least_squares" and entry["identified"]:
            of = misfit.setdefault(entry["family"], {})
            of[entry["law"]] = min(entry["sigma_log"], of.get(entry["law"], np.inf))
    return [name for name, of in misfit.items() if of.get("power", np.inf) <= TENABLE * min(of.values())]


def isoflop_entries(
    table: Table, primary: ByFamily, target: str, size: str, rng: np.random.Generator, level: float
) -> list[Entry]:
    """Approach 2 of every family with isoFLOP runs, its noise-free bias, and the exponent by the parametric law."""
    if missing_columns(table, LAWS["power_C"], target, size) or "tokens" not in table.frame:
        return []
    rows = []
    for family in table.families:
        frame = table.of(family).frame
        found = isoflop(frame, size, target, rng, level=level)
        if found is None:
            continue
        parametric = primary.get("chinchilla", {}).get(family)
        law = parametric.entry["params"] if parametric and parametric.entry["identified"] else None
        rows.append(
            {
                "family": family,
                **vars(found),
                "bias": law and isoflop_bias(frame, size, target, law),
                "parametric": law and law["beta"] / (law["alpha"] + law["beta"]),
            }
        )
    return rows


def allocation_entries(table: Table, primary: ByFamily, settings: Settings, target: str, size: str) -> list[Entry]:
    """Compute-optimal N and D of every family whose `chinchilla` fit is identified."""
    rows = []
    for family, one in primary.get("chinchilla", {}).items():
        if not one.entry["identified"] or target != "loss":
            continue
        law = one.entry["params"]
        largest = float(table.of(family).frame["flops"].max())
        frame = table.of(family).frame
        # FLOPs a parameter and token as this table counts them; 6 is Kaplan's rule.
        unit = float((frame["flops"] / (frame[size] * frame["tokens"])).median())
        optima = [compute_optimal(law, largest * times, unit=unit) for times in (1, 10, 100)]
        rows.append(
            {
                "family": family,
                "flops_per_parameter_and_token": unit,
                "exponent_params": law["beta"] / (law["alpha"] + law["beta"]),
                "budgets": [vars(best) | _costs(best.flops, settings) for best in optima],
            }
        )
    return rows


def target_entries(primary: ByFamily, settings: Settings, target: str) -> list[Entry]:
    """Least FLOPs at which each family reaches `settings.target_loss`, by every identified law that can say."""
    if settings.target_loss is None or target != "loss":
        return []
    rows = []
    for law in ("chinchilla", "power_floor_C", "power_C"):
        for family, one in primary.get(law, {}).items():
            if one.entry["identified"]:
                flops = flops_to_reach(law, one.entry["params"], settings.target_loss)
                costs = _costs(flops, settings) if flops else {}
                rows.append({"family": family, "law": law, "loss": settings.target_loss, "flops": flops, **costs})
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
