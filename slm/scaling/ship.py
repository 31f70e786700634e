"""Which size and shape to ship: measurements on a device, joined to the results of runs and to their fitted law.

Notable: measured shapes are compared by what their own runs reached, without a law. Only sizes between and beyond them
need the law of the loss and the model of the cost. Both have a band over N; a draw takes one variate for each band, and
the largest N whose drawn costs meet the limits. So the interval of N is the inversion of the bands of the costs.

Legend: R draws, M points of the grid over N, K shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from slm.runtime.words import join_names
from slm.scaling.choices import DRAWS, SURE, Candidates, choose, draws_of
from slm.scaling.costs import CostModel, costs_by_family
from slm.scaling.details import band_ensemble
from slm.scaling.device import SHAPE, Device, match, measures_only_depth
from slm.scaling.entries import Entry, Fitted
from slm.scaling.forms import Floats
from slm.scaling.measures import MEASURES
from slm.scaling.prediction import Band, band
from slm.scaling.sample import column_of
from slm.scaling.settings import Settings
from slm.scaling.tables import Table

NODES, POINTS = 12, 400  # of a band over N: computed at the nodes, interpolated at the points
MAX_BEYOND = 4.0  # sizes up to this factor beyond the runs and the measured shapes are searched


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
    check_limits(shipping.limits, device.measures, f"device={device.name}")
    rng = np.random.default_rng([seed, 4000])
    rows = device.frame[device.frame["shape"].notna()].reset_index(drop=True)
    results, df, errors_from = _results(table, rows, target, fitted)
    losses = np.exp(draws_of(np.log(results["mean"].to_numpy()), results["error"].to_numpy(), rng, df=df))
    costs = {key: _costs(rows, key, rng) for key in device.measures}
    candidates = Candidates([_label(row) for row in rows.to_dict("records")], losses, costs)
    chosen = choose(candidates, shipping.limits)
    models = {key: costs_by_family(*_measured(device.frame, key)) for key in device.measures}
    limits = {key: limit for key, limit in shipping.limits.items() if limit is not None}
    cost_limits = {key: MEASURES[key].invert(limit) for key, limit in limits.items() if key in MEASURES}
    example = None
    if not cost_limits and (example := chosen["latency"]):
        cost_limits = {example: float(np.sqrt(np.nanmin(costs[example][0]) * np.nanmax(costs[example][0])))}
    search = _Search(device.frame, models, cost_limits, table, size, settings, rng)
    entry: Entry = {"device": device.name, "target": target, "size": size, "level": settings.level, "sure": SURE}
    entry["words"] = {key: MEASURES[key].words for key in device.measures}
    entry |= {"limits": limits, "example": example, "cost_limits": cost_limits, **chosen}
    entry["candidates"] = _candidate_entries(candidates, rows, results, chosen["meets"], settings.level)
    entry["models"] = [_model_entry(key, family, model) for key in models for family, model in models[key].items()]
    entry["largest"] = _largest(search, fitted)
    if doubt := measures_only_depth(device):
        for choice in entry["choices"][:2]:  # those that rest on speeds
            choice |= {"sure": False, "doubt": doubt}
    return entry | {"notes": [*device.notes, *ERROR_NOTES[errors_from]]}


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
    return pd.DataFrame(found, columns=["mean", "error", "tokens", "runs", "cells"]), df if df > 0 else np.inf, errors_from


def _costs(rows: pd.DataFrame, key: str, rng: np.random.Generator) -> Floats:
    measure = MEASURES[key]
    logs = np.log(rows[measure.column].to_numpy(float))
    return np.exp(draws_of(-logs if measure.is_rate else logs, rows[f"error of {measure.column}"].to_numpy(), rng))


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
    low, high = np.quantile(candidates.losses[1:], ends, axis=0)
    entries = []
    for k, (name, row) in enumerate(zip(candidates.names, rows.to_dict("records"), strict=True)):
        entry: Entry = {"name": name, **{key: row.get(key) for key in (*SHAPE, "N")}, "meets": meets[k]}
        entry |= {"loss": candidates.losses[0, k], "low": low[k], "high": high[k]}
        entry |= {key: results.at[k, key] for key in ("tokens", "runs", "cells")}
        entry["measures"] = {key: row[MEASURES[key].column] for key in candidates.costs}
        entry["spread"] = {key: list(np.quantile(costs[1:, k], ends)) for key, costs in candidates.costs.items()}
        entries.append(entry)
    return entries


def _model_entry(key: str, family: str, model: CostModel | str) -> Entry:
    if isinstance(model, str):
        return {"measure": key, "family": family, "refused": model}
    terms = dict(zip(model.terms, model.coefficients.tolist(), strict=True))
    entry: Entry = {"measure": key, "family": family, "refused": None, "terms": terms, "pooled": model.is_pooled}
    return entry | {"shapes": model.num_shapes, "sigma_log": model.sigma, "df": model.df, "held_out": model.held_out}


class _Search:
    """Searches the largest size of a family whose costs meet their limits."""

    def __init__(
        self, frame: pd.DataFrame, models: Mapping[str, Mapping[str, CostModel | str]], limits: Mapping[str, float],
        table: Table, size: str, settings: Settings, rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self.frame, self.models, self.limits, self.rng = frame, models, limits, rng
        self.table, self.size, self.settings = table, size, settings

    def sizes(self, family: str, log_N: Floats) -> tuple[Floats, dict[str, Floats]] | str:
        """Return the largest log N [1 + R] (row 0: the estimate; NaN: no size meets the limits), and log costs [M].

        A string says why there is no model. The shapes of the family's measured rows are its path over N.
        """
        path = path_over_sizes(self.frame[self.frame["family"] == family], log_N)
        if isinstance(path, str):
            return path
        excess = np.full((1 + DRAWS, len(log_N)), -np.inf)
        centres = {}
        for key, limit in self.limits.items():
            model = self.models[key].get(family, "no shape of it was measured")
            if isinstance(model, str):
                return f"no model of {MEASURES[key].words}: {model}"
            curves = _draw_curves(model.band(path, self.settings.level), stats.t(model.df), self.rng)
            centres[key] = curves[0]
            excess = np.maximum(excess, curves - np.log(limit))
        return _crossings(log_N, excess), centres


def path_over_sizes(rows: pd.DataFrame, log_N: Floats) -> pd.DataFrame | str:
    """The features of shapes of one family at sizes [M], interpolated in logs between its measured shapes.

    Beyond them, the features follow their straight line in logs. A string says why there is no path.
    """
    rows = rows[rows["N"].notna()]
    if rows["N"].nunique() < 2:
        return "fewer than two of its sizes were measured"
    names = [name for name in rows if name != "N" and pd.api.types.is_numeric_dtype(rows[name])]
    names = [name for name in names if (rows[name] > 0).all()]
    nodes = np.log(rows[["N", *names]]).groupby("N").mean()
    x = nodes.index.to_numpy()
    path = {"N": np.exp(log_N)}
    for name in names:
        y = nodes[name].to_numpy()
        slope = np.polyfit(x, y, 1)[0]
        beyond = slope * (log_N - np.clip(log_N, x[0], x[-1]))
        path[name] = np.exp(np.interp(log_N, x, y) + beyond)
    return pd.DataFrame(path)


def _draw_curves(curve: Band, distribution: Any, rng: np.random.Generator) -> Floats:
    """The centre of a band and R draws of the whole curve [1 + R, M]: one variate each, in units of its half widths."""
    variates = distribution.rvs(size=(DRAWS, 1), random_state=rng)
    half_width = np.where(variates > 0, curve.high - curve.centre, curve.centre - curve.low)
    return np.concatenate([curve.centre[None], curve.centre + variates * half_width / curve.t])


def _crossings(log_N: Floats, excess: Floats) -> Floats:
    """The log N up to which each row of `excess` [R, M] stays at most 0; NaN if it starts above."""
    fails = excess > 0
    first = np.where(fails.any(axis=1), fails.argmax(axis=1), -1)
    at = np.maximum(first, 1)
    rows = np.arange(len(excess))
    before, after = excess[rows, at - 1], excess[rows, at]
    with np.errstate(invalid="ignore", divide="ignore"):
        crossing = log_N[at - 1] + (log_N[at] - log_N[at - 1]) * before / (before - after)
    return np.where(first < 0, log_N[-1], np.where(first == 0, np.nan, crossing))


def _largest(search: _Search, fitted: Mapping[str, Fitted]) -> list[Entry]:
    """One entry per family: the largest size within the limits, its loss, and the probability of the lowest loss."""
    if not search.limits:
        return []
    entries, expected = [], {}
    for family in search.table.families:
        entry: Entry = {"family": family, "refused": None}
        entries.append(entry)
        result = fitted.get(family)
        if result is None or result.fit is None or result.uncertainty is None:
            entry["refused"] = "no law in N was fitted to it"
            continue
        found = _largest_of(search, family, result)
        if isinstance(found, str):
            entry["refused"] = found
        else:
            entry |= found[0]
            expected[family] = found[1]
    losses = np.stack(list(expected.values()), axis=1) if expected else np.zeros((DRAWS + 1, 0))
    has_any = np.isfinite(losses[1:]).any(axis=1)
    best = np.where(np.isfinite(losses[1:]), losses[1:], np.inf).argmin(axis=1) if expected else np.zeros(0)
    for index, family in enumerate(expected):
        share = float(((best == index) & has_any).mean())
        next(entry for entry in entries if entry["family"] == family)["probability"] = share
    return entries


def _largest_of(search: _Search, family: str, result: Fitted) -> tuple[Entry, Floats] | str:
    """The entry of a family, and its expected loss at the largest size [1 + R]; a string if there is none, and why."""
    fit, settings = result.fit, search.settings
    assert fit is not None and result.uncertainty is not None
    runs = search.table.family(family).frame[search.size].to_numpy(float)
    measured = search.frame.loc[search.frame["family"] == family, "N"].dropna()
    if measured.empty:
        return "no shape of it was measured"
    shared = max(runs.min(), measured.min()), min(runs.max(), measured.max())
    nodes = np.linspace(np.log(shared[0] / MAX_BEYOND), np.log(shared[1] * MAX_BEYOND), NODES)
    log_N = np.linspace(nodes[0], nodes[-1], POINTS)
    found = search.sizes(family, log_N)
    if isinstance(found, str):
        return found
    log_sizes, centres = found
    medians = [np.log(search.table.frame[column_of(v, search.size)].median()) for v in fit.law.variables[1:]]
    ensemble = band_ensemble(fit, result.uncertainty, settings, search.rng)
    x = np.column_stack([nodes, *(np.full(NODES, median) for median in medians)])
    try:
        law = band(fit, x, ensemble, level=settings.level)
    except ValueError:
        return "its law has no band, because too few refits succeeded"
    if not np.isfinite([law.low, law.high]).all():
        return "the data do not bound its law"
    df = max(len(np.unique(fit.sample.clusters)) - len(fit.theta), 1)
    curves = _draw_curves(law, stats.t(df), search.rng)
    expected = np.array([np.interp(at, nodes, curve) for at, curve in zip(log_sizes, curves, strict=True)])
    new_run = expected + result.entry["run_sigma_log"] * stats.t(df).rvs(size=len(expected), random_state=search.rng)
    expected, new_run = fit.law.from_scale(expected), fit.law.from_scale(new_run)
    entry = _size_entry(log_sizes, log_N, settings.level)
    if entry["N"] is not None:
        at = np.array([log_sizes[0]])
        path = path_over_sizes(search.frame[search.frame["family"] == family], at)
        assert not isinstance(path, str)
        entry |= {name: float(path[name].iloc[0]) for name in ("width", "depth") if name in path}
        entry["beyond"] = max(1.0, entry["N"] / shared[1], shared[0] / entry["N"])
        costs = {key: float(np.interp(at[0], log_N, centre)) - np.log(search.limits[key]) for key, centre in centres.items()}
        entry["limited_by"] = max(costs, key=lambda key: costs[key])
    ends = [0.5 - settings.level / 2, 0.5 + settings.level / 2]
    finite = new_run[1:][np.isfinite(new_run[1:])]
    entry["loss"] = float(expected[0]) if np.isfinite(expected[0]) else None
    entry["loss_low"], entry["loss_high"] = np.quantile(finite, ends).tolist() if len(finite) else (None, None)
    return entry | {"identified": result.entry["identified"]}, expected


def _size_entry(log_sizes: Floats, log_N: Floats, level: float) -> Entry:
    """`N` with `low` and `high`; an end is None if too many draws meet the limits at no, or at all sizes searched."""
    ordered = np.sort(np.where(np.isnan(log_sizes[1:]), -np.inf, log_sizes[1:]))
    low, high = (ordered[int(round(share * (len(ordered) - 1)))] for share in (0.5 - level / 2, 0.5 + level / 2))
    at_end = log_N[-1] - 1e-9
    entry: Entry = {"N": None if np.isnan(log_sizes[0]) else float(np.exp(log_sizes[0]))}
    entry["low"] = None if np.isinf(low) else float(np.exp(low))
    entry["high"] = None if np.isinf(high) or high >= at_end else float(np.exp(high))
    return entry | {"every_size": bool(log_sizes[0] >= at_end), "searched_to": float(np.exp(log_N[-1]))}
