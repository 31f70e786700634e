"""Which size and shape to ship: measurements on a device, joined to the results of runs and to their fitted law.

Notable: measured shapes are compared by what their own runs reached, without a law. Only sizes between and beyond them
need the law of the loss and the models of the costs (`slm.scaling.inversion`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from slm.runtime.words import join_names
from slm.scaling.choices import SURE, Candidates, choose, draws_of
from slm.scaling.costs import CostModel, costs_by_family
from slm.scaling.device import SHAPE, Device, match, measures_only_depth, read_device
from slm.scaling.entries import Entry, Fitted
from slm.scaling.forms import Floats
from slm.scaling.inversion import Search, largest_sizes
from slm.scaling.measures import MEASURES
from slm.scaling.settings import Settings
from slm.scaling.tables import Table

ERROR_NOTES = {
    "seeds": ["The error of a result is the scatter between seeds, pooled over all shapes."],
    "law": ["No shape was trained with two seeds: the error of a result is the scatter of the runs about their law."],
    "nothing": ["No shape was trained with two seeds and no law was fitted: results are taken to have no error."],
}


@dataclass(frozen=True)
class Shipping:
    """What decisions need beside a table: the device, and the limits (the config group `ship`)."""

    device: Device
    limits: Mapping[str, float | None]


def read_shipping(source: str, limits: Mapping[str, float | None], table: Table | None = None) -> Shipping:
    """Read the device's table and check the limits, and, if it is given, that runs of `table` have its shapes."""
    device = read_device(source)
    check_limits(limits, device.measures, f"device={source}")
    if table is not None:
        match(device, table, table.sizes[0])
    return Shipping(device, limits)


def check_limits(limits: Mapping[str, float | None], measures: list[str], source: str) -> None:
    """Raise `ValueError` for a limit on what was not measured."""
    for key, limit in limits.items():
        if limit is not None and key in MEASURES and key not in measures:
            have = join_names([MEASURES[measured].column for measured in measures]) or "no measurement"
            raise ValueError(f"ship.{key}={limit:g} needs the column {MEASURES[key].column}; {source} has {have}")


def decisions(
    table: Table, fitted: Mapping[str, Fitted], shipping: Shipping, settings: Settings, *, target: str, size: str,
    seed: int,
) -> Entry:  # fmt: skip
    """Return the content of decisions.json. `fitted` has the fits of one law, by family; it may be empty.

    `candidates` are the measured shapes and `choices` are made among them; `models` are those of the costs; `largest`
    has for each family the largest size within the limits, or, if there is no limit on a cost, within an `example`: the
    latency in the middle of what was measured. `notes` are caveats.
    """
    device = match(shipping.device, table, size)
    rng = np.random.default_rng([seed, 4000])
    rows = device.frame[device.frame["shape"].notna()]
    order = rows["family"].map(table.families.index)
    rows = rows.assign(order=order).sort_values(["order", "N"]).drop(columns="order").reset_index(drop=True)
    results, df, errors_from = _results(table, rows, target, fitted)
    losses = np.exp(draws_of(np.log(results["mean"].to_numpy()), results["error"].to_numpy(), rng, df=df))
    models = {key: costs_by_family(*_measured(device.frame, key)) for key in device.measures}
    errors = {key: _cost_errors(rows, key, models[key]) for key in device.measures}
    costs = {key: _costs(rows, key, errors[key], rng) for key in device.measures}
    candidates = Candidates([_label(row) for row in rows.to_dict("records")], losses, costs)
    chosen = choose(candidates, shipping.limits)
    limits = {key: limit for key, limit in shipping.limits.items() if limit is not None}
    cost_limits = {key: MEASURES[key].invert(limit) for key, limit in limits.items() if key in MEASURES}
    example = None
    if not cost_limits and len(rows) > 1 and (example := chosen["latency"]):
        cost_limits = {example: float(np.sqrt(np.nanmin(costs[example][0]) * np.nanmax(costs[example][0])))}
    search = Search(device.frame, models, cost_limits, table, size, settings, rng)
    entry: Entry = {"device": device.name, "target": target, "size": size, "level": settings.level, "sure": SURE}
    entry["words"] = {key: MEASURES[key].words for key in device.measures}
    entry |= {"limits": limits, "example": example, "cost_limits": cost_limits, **chosen}
    entry["candidates"] = _candidate_entries(candidates, rows, results, chosen["meets"], settings.level)
    entry["models"] = [_model_entry(key, family, model) for key in models for family, model in models[key].items()]
    entry["largest"] = largest_sizes(search, fitted)
    no_error = "no second seed and no law shows the error of a result" if errors_from == "nothing" else None
    unknown = [key for key in errors if key != "bytes" and not errors[key].all()]
    of_limits = _unknown_errors([key for key in unknown if key in limits])
    of_speed = measures_only_depth(device) or _unknown_errors([key for key in unknown if key == chosen["latency"]])
    doubts = {
        "latency first": of_speed or of_limits,
        "balanced": of_speed or of_limits or no_error,
        "quality first": no_error or of_limits,
    }
    for choice in entry["choices"]:
        if (doubt := doubts[choice["use"]]) and choice["best"]:
            choice |= {"sure": False, "doubt": doubt}
    several = ["Of several cells of a shape, the one with the lowest mean result is compared."]
    from_models = [MEASURES[key].words for key in errors if (errors[key] > _measured_errors(rows, key)).any()]
    once_notes = [
        f"Some shapes have one measurement of {join_names(from_models)}, or equal ones: its error is the scatter about "
        "the model of the cost. Rows that repeat a shape and differ show the error itself."
    ]
    notes = [*device.notes, *ERROR_NOTES[errors_from], *(several if (results["cells"] > 1).any() else [])]
    notes += once_notes if from_models else []
    return entry | {"notes": notes}


def _unknown_errors(keys: list[str]) -> str | None:
    names = join_names([MEASURES[key].words for key in keys])
    return f"no repetition and no model shows the error of {names}" if keys else None


def _label(row: Mapping[str, Any]) -> str:
    """`mobilellm 64x4`, or the size where width and depth are unknown."""
    has_shape = not np.isnan([row.get("width", np.nan), row.get("depth", np.nan)]).any()
    shape = f"{row['width']:.0f}x{row['depth']:.0f}" if has_shape else f"{row['N']:,.0f}"
    return f"{row['family']} {shape}"


def _results(
    table: Table, rows: pd.DataFrame, target: str, fitted: Mapping[str, Fitted]
) -> tuple[pd.DataFrame, float, str]:
    """The best cell of each measured shape: its mean, the error of the log of the mean, `tokens` and `runs`.

    Then the degrees of freedom of the errors, and where they are from: the scatter between seeds, pooled over all
    cells, or without two seeds of any cell the scatter about the laws, or nothing (errors of 0).
    """
    frame = table.frame.assign(log=np.log(table.frame[target]))
    squares = ((frame["log"] - frame.groupby("cell")["log"].transform("mean")) ** 2).sum()
    df = len(frame) - frame["cell"].nunique()
    scatter, errors_from = float(np.sqrt(squares / df)) if df > 0 else 0.0, "seeds"
    fits = [one.fit for one in fitted.values() if one.fit and one.fit.degrees_of_freedom > 0 and not one.fit.law.link]
    if df < 1:
        df = sum(fit.degrees_of_freedom for fit in fits)
        scatter = float(np.sqrt(sum(fit.sse for fit in fits) / df)) if fits else 0.0
        errors_from = "law" if fits else "nothing"
    keys = [name for name in (*SHAPE, *table.sizes) if name in frame]
    found = []
    for index in rows["shape"]:
        same = frame[(frame[keys] == frame.loc[index, keys]).all(axis=1)]
        cells = same.groupby("cell")["log"].agg(["mean", "size"])
        best = cells["mean"].idxmin()
        tokens = same.loc[same["cell"] == best, "tokens"].iloc[0] if "tokens" in same else np.nan
        runs = int(cells.at[best, "size"])
        found.append((np.exp(cells.at[best, "mean"]), scatter / np.sqrt(runs), tokens, runs, len(cells)))
    return (
        pd.DataFrame(found, columns=["mean", "error", "tokens", "runs", "cells"]),
        df if df > 0 else np.inf,
        errors_from,
    )


def _measured_errors(rows: pd.DataFrame, key: str) -> Floats:
    return np.asarray(rows[f"error of {MEASURES[key].column}"], float)


def _cost_errors(rows: pd.DataFrame, key: str, models: Mapping[str, CostModel | str]) -> Floats:
    """Errors of log costs: of the measurements, or of a shape measured once the scatter about the model of its family.

    0 where neither is known, and of files, whose sizes are exact.
    """
    of_models = [
        model.sigma if isinstance(model := models.get(family), CostModel) else 0.0 for family in rows["family"]
    ]
    errors = _measured_errors(rows, key)
    return errors if key == "bytes" else np.where(errors > 0, errors, of_models)


def _costs(rows: pd.DataFrame, key: str, errors: Floats, rng: np.random.Generator) -> Floats:
    logs = np.log(rows[MEASURES[key].column].to_numpy(float))
    return np.exp(draws_of(-logs if MEASURES[key].is_rate else logs, errors, rng))


def _measured(frame: pd.DataFrame, key: str) -> tuple[pd.DataFrame, Floats, tuple[str, ...]]:
    """The rows with a value of a measure, its cost, and the terms of its model."""
    measure = MEASURES[key]
    rows = frame[frame[measure.column].notna() & frame["N"].notna()]
    values = rows[measure.column].to_numpy(float)
    return rows, 1 / values if measure.is_rate else values, measure.features


def _candidate_entries(
    candidates: Candidates, rows: pd.DataFrame, results: pd.DataFrame, meets: list[float], level: float
) -> list[Entry]:
    ends = [0.5 - level / 2, 0.5 + level / 2]
    entries = candidates.entries(meets, level)
    for k, (entry, row) in enumerate(zip(entries, rows.to_dict("records"), strict=True)):
        entry |= {key: row.get(key) for key in (*SHAPE, "N")}
        entry |= {key: results.at[k, key] for key in ("tokens", "runs")}
        entry["spread"] = {key: list(np.quantile(costs[1:, k], ends)) for key, costs in candidates.costs.items()}
    return entries


def _model_entry(key: str, family: str, model: CostModel | str) -> Entry:
    if isinstance(model, str):
        return {"measure": key, "family": family, "refused": model}
    terms = dict(zip(model.terms, model.coefficients.tolist(), strict=True))
    entry: Entry = {"measure": key, "family": family, "refused": None, "terms": terms, "pooled": model.is_pooled}
    return entry | {"shapes": model.num_shapes, "sigma_log": model.sigma, "df": model.df, "held_out": model.held_out}
