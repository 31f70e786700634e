"""The largest size of each family whose costs on a device meet the limits, and the result that it would reach.

Notable: the law of the result and the model of each cost have a band over N. A draw takes one variate for each band,
which shifts the whole curve, and then the largest N whose curves meet the limits. So the interval of N is the inversion
of the bands of the costs, and the probability of a family is the share of draws in which its law is lowest at its N.

Legend: R draws, M points of the grid over N.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from slm.scaling.choices import DRAWS
from slm.scaling.clusters import scatter_df
from slm.scaling.costs import CostModel
from slm.scaling.details import band_ensemble
from slm.scaling.entries import Entry, Fitted
from slm.scaling.forms import Floats
from slm.scaling.measures import MEASURES
from slm.scaling.prediction import Band, band, needed_bootstrap
from slm.scaling.sample import column_of
from slm.scaling.settings import Settings
from slm.scaling.tables import Table

NODES = 12  # over N, at which bands of laws are computed; between them they are interpolated
POINTS = 400  # over N, at which costs are computed, besides the measured shapes
MAX_BEYOND = 4.0  # sizes up to this factor beyond the runs and the measured shapes are searched


@dataclass(frozen=True)
class Search:
    """Where sizes are searched: `frame` has the measured shapes, `limits` the highest cost of each measure."""

    frame: pd.DataFrame
    models: Mapping[str, Mapping[str, CostModel | str]]  # key of a measure -> family -> model
    limits: Mapping[str, float]
    table: Table
    size: str
    settings: Settings
    rng: np.random.Generator

    def rows(self, family: str) -> pd.DataFrame:
        """The measured shapes of a family whose size is known."""
        return self.frame[(self.frame["family"] == family) & self.frame["N"].notna()]


class Refusal(ValueError):
    """Why a family has no largest size."""


def largest_sizes(search: Search, fitted: Mapping[str, Fitted]) -> list[Entry]:
    """Return one entry per family; empty without limits.

    `N` (None: no size meets the limits) with `low` and `high` (None: open), `width` and `depth` there, `beyond` (the
    factor beyond runs and measured shapes), `limited_by`, `loss` of a new run with its interval, and `probability` of
    the lowest result of all families. `refused` says why a family has none of these.
    """
    if not search.limits:
        return []
    entries, expected = [], {}
    for family in search.table.families:
        try:
            entry, expected[family] = _largest(search, family, fitted.get(family))
            entries.append({"family": family, "refused": None} | entry)
        except Refusal as reason:
            entries.append({"family": family, "refused": str(reason)})
    losses = np.array([np.where(np.isfinite(drawn[1:]), drawn[1:], np.inf) for drawn in expected.values()])
    best = np.where(np.isfinite(losses).any(axis=0), losses.argmin(axis=0), -1) if expected else np.zeros(0)
    for index, family in enumerate(expected):
        entry = next(entry for entry in entries if entry["family"] == family)
        entry["probability"] = float((best == index).mean())
    return entries


def _largest(search: Search, family: str, result: Fitted | None) -> tuple[Entry, Floats]:
    """The entry of a family, and its expected result at the largest size [1 + R]. Raises `Refusal`."""
    if result is None or result.fit is None or result.uncertainty is None:
        raise Refusal("no law in N was fitted to it")
    fit, settings, rng = result.fit, search.settings, search.rng
    rows = search.rows(family)
    if rows["N"].nunique() < 2:
        raise Refusal("fewer than two of its sizes were measured")
    runs = search.table.family(family).frame[search.size]
    smallest, largest = max(runs.min(), rows["N"].min()), min(runs.max(), rows["N"].max())
    nodes = np.linspace(np.log(smallest / MAX_BEYOND), np.log(largest * MAX_BEYOND), NODES)
    log_N = np.union1d(np.linspace(nodes[0], nodes[-1], POINTS), np.log(rows["N"]))
    excess = _draw_excess(search, family, path_over_sizes(rows, log_N))
    highest = np.max(list(excess.values()), axis=0)
    log_sizes = crossings(log_N, highest)
    ensemble = band_ensemble(fit, result.uncertainty, settings, rng)
    medians = [np.log(search.table.frame[column_of(v, search.size)].median()) for v in fit.law.variables[1:]]
    x = np.column_stack([nodes, *(np.full(NODES, median) for median in medians)])
    if needed_bootstrap(fit) is not None and ensemble is None:
        raise Refusal("its law has no band, because too few refits succeeded")
    law = band(fit, x, ensemble, level=settings.level)
    if not np.isfinite([law.low, law.high]).all():
        raise Refusal("the data do not bound its law")
    df = max(len(np.unique(fit.sample.clusters)) - len(fit.theta), 1)
    curves = draw_curves(law, df, rng)
    expected = np.array([np.interp(at, nodes, curve) for at, curve in zip(log_sizes, curves, strict=True)])
    scatter = result.entry["run_sigma_log"] * stats.t(scatter_df(fit)).rvs(size=len(expected), random_state=rng)
    new_run = fit.law.from_scale(expected + scatter)[1:]
    low, high = 0.5 - settings.level / 2, 0.5 + settings.level / 2
    entry = size_interval(log_sizes, log_N[-1], settings.level)
    entry |= {"every_size": bool((highest[0] <= 0).all()), "searched_to": float(np.exp(log_N[-1]))}
    entry |= {"loss": None, "loss_low": None, "loss_high": None, "beyond": None, "limited_by": None}
    if entry["N"] is not None:
        path = path_over_sizes(rows, log_sizes[:1])
        entry |= {name: float(path[name].iloc[0]) for name in ("width", "depth") if name in path}
        entry["beyond"] = max(1.0, entry["N"] / largest, smallest / entry["N"])
        entry["limited_by"] = max(excess, key=lambda key: float(np.interp(log_sizes[0], log_N, excess[key][0])))
        entry["loss"] = float(fit.law.from_scale(expected[:1])[0])
        ends = np.quantile(new_run[np.isfinite(new_run)], [low, high]).tolist()
        entry |= {"loss_low": ends[0], "loss_high": ends[1]}
    return entry, fit.law.from_scale(expected)


def _draw_excess(search: Search, family: str, path: pd.DataFrame) -> dict[str, Floats]:
    """Key of a limited measure -> log cost minus log limit [1 + R, M] along a path. Raises `Refusal`."""
    excess = {}
    for key, limit in search.limits.items():
        model = search.models[key].get(family, "no shape of it was measured")
        if isinstance(model, str):
            raise Refusal(f"no model of {MEASURES[key].words}: {model}")
        curves = draw_curves(model.band(path, search.settings.level), model.df, search.rng)
        excess[key] = curves - np.log(limit)
    return excess


def path_over_sizes(rows: pd.DataFrame, log_N: Floats) -> pd.DataFrame:
    """The features of shapes of one family at sizes [M], interpolated in logs between its measured shapes.

    Beyond them, the features follow their straight line in logs.
    """
    names = [name for name in rows if name != "N" and pd.api.types.is_numeric_dtype(rows[name])]
    names = [name for name in names if (rows[name] > 0).all()]
    nodes = np.log(rows[["N", *names]]).groupby("N").mean()
    x = nodes.index.to_numpy()
    path = {"N": np.exp(log_N)}
    for name in names:
        y = nodes[name].to_numpy()
        slope = np.polyfit(x, y, 1)[0]
        path[name] = np.exp(np.interp(log_N, x, y) + slope * (log_N - np.clip(log_N, x[0], x[-1])))
    return pd.DataFrame(path)


def draw_curves(curve: Band, df: float, rng: np.random.Generator) -> Floats:
    """The centre of a band and R draws of the whole curve [1 + R, M]: one variate each, in units of its half widths."""
    variates = stats.t(df).rvs(size=(DRAWS, 1), random_state=rng)
    half_width = np.where(variates > 0, curve.high - curve.centre, curve.centre - curve.low)
    return np.concatenate([curve.centre[None], curve.centre + variates * half_width / curve.t])


def crossings(log_N: Floats, excess: Floats) -> Floats:
    """The largest log N at which each row of `excess` [R, M] is at most 0: the last if it is there, NaN if nowhere.

    A row may rise and fall: in a grid of widths and depths, a wide shape can be larger and faster than a deep one.
    """
    meets = excess <= 0
    last = meets.shape[1] - 1 - meets[:, ::-1].argmax(axis=1)  # also if none meets
    rows, after_last = np.arange(len(excess)), np.minimum(last + 1, meets.shape[1] - 1)
    before, after = excess[rows, last], excess[rows, after_last]
    with np.errstate(invalid="ignore", divide="ignore"):
        crossing = log_N[last] + (log_N[after_last] - log_N[last]) * before / (before - after)
    return np.where(~meets.any(axis=1), np.nan, np.where(last == after_last, log_N[-1], crossing))


def size_interval(log_sizes: Floats, last: float, level: float) -> Entry:
    """`N` with `low` and `high` of drawn log sizes [1 + R]. An end is None if the draws there are NaN or at `last`."""
    ordered = np.sort(np.where(np.isnan(log_sizes[1:]), -np.inf, log_sizes[1:]))
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.5 - level / 2, 0.5 + level / 2))
    entry: Entry = {"N": None if np.isnan(log_sizes[0]) else float(np.exp(log_sizes[0]))}
    entry["low"] = None if np.isinf(low) else float(np.exp(low))
    entry["high"] = None if np.isinf(high) or high >= last - 1e-9 else float(np.exp(high))
    return entry
