"""What to spend compute on: compute-optimal sizes, compute to reach a loss, isoFLOP profiles, Pareto fronts, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize

from slm.scaling.forms import Floats


@dataclass(frozen=True)
class Allocation:
    """The best N and D for a budget under L = E + A/N^alpha + B/D^beta and C = 6 N D."""

    flops: float
    params: float
    tokens: float
    loss: float
    numeric_params: float
    """The same N by direct minimisation, as a check of the closed form."""


def compute_optimal(law: Mapping[str, float], flops: float, *, unit: float = 6.0) -> Allocation:
    """Minimise the `chinchilla` law over N D = C/`unit` (Hoffmann et al. 2022, equation 4).

    N* = G (C/unit)^(beta/(alpha+beta)), D* = (C/unit)^(alpha/(alpha+beta)) / G with G = (alpha A / (beta
    B))^(1/(alpha+beta)); C = 6 N D is Kaplan's rule, and a table may count otherwise.
    """
    E, A, B, alpha, beta = (law[name] for name in ("E", "A", "B", "alpha", "beta"))
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    N = G * (flops / unit) ** (beta / (alpha + beta))
    D = flops / unit / N

    def loss(log_n: float) -> float:
        return float(E + A * np.exp(-alpha * log_n) + B * (flops / unit / np.exp(log_n)) ** -beta)

    near = (np.log(N) - 5, np.log(N) + 5)
    found = optimize.minimize_scalar(loss, bounds=near, method="bounded", options={"xatol": 1e-10})
    return Allocation(flops, N, D, loss(np.log(N)), float(np.exp(found.x)))


def flops_to_reach(law: str, params: Mapping[str, float], loss: float) -> float | None:
    """Least compute at which `chinchilla` (optimally allocated), `power_C` or `power_floor_C` reaches `loss`.

    None at or below the floor. At the optimum both terms of `chinchilla` are C^-(alpha beta/(alpha+beta)), so one
    evaluation gives the constant.
    """
    above = loss - params.get("E", 0.0)
    if above <= 0:
        return None
    if law != "chinchilla":
        return float((params["A"] / above) ** (1 / params["alpha"]))
    at = compute_optimal(params, 1e20)
    return float(1e20 * ((at.loss - params["E"]) / above) ** (1 / params["alpha"] + 1 / params["beta"]))


@dataclass(frozen=True)
class Cost:
    """Time and money of a number of FLOPs."""

    device_hours: float
    price: float | None


def cost(flops: float, *, flops_per_second: float, price_per_hour: float | None = None) -> Cost:
    """Device hours at an achieved speed (peak x MFU), and their price in the currency of `price_per_hour`."""
    hours = flops / flops_per_second / 3600
    return Cost(hours, None if price_per_hour is None else hours * price_per_hour)


def pareto_front(smaller_is_better: Floats) -> np.ndarray:
    """Which rows of [rows, criteria] no other row beats in all criteria: boolean [rows]."""
    values = np.asarray(smaller_is_better, float)
    no_worse = (values[:, None, :] <= values[None, :, :]).all(axis=2)
    better = (values[:, None, :] < values[None, :, :]).any(axis=2)
    return np.asarray(~(no_worse & better).any(axis=0))


@dataclass(frozen=True)
class IsoFlop:
    """Approach 2 of Hoffmann et al. 2022: a parabola's lowest point at each budget, and a power law through them."""

    budgets: tuple[dict[str, float], ...]
    """flops, runs, and optimal params and tokens; `inside` is false where the lowest point lies outside the runs."""
    exponent: float
    """a in N* ~ C^a."""
    low: float
    high: float
    """Percentile interval over resampled runs within each budget."""


def isoflop(
    frame: pd.DataFrame, size: str, target: str, rng: np.random.Generator, replicates: int = 500, level: float = 0.95
) -> IsoFlop | None:
    """IsoFLOP analysis of one family, parabolas of log target in log N; None unless two budgets have 5 sizes each.

    A budget whose parabola has no lowest point is left out. Budgets are the column `budget` (or `isoflop`) if there is
    one, else runs whose FLOPs follow each other within 10%.
    """
    groups = [g for _, g in frame.groupby(_budgets(frame)) if g[size].nunique() >= 5]
    if len(groups) < 2:
        return None
    log_n = [np.log(g[size].to_numpy(float)) for g in groups]
    log_y = [np.log(g[target].to_numpy(float)) for g in groups]
    log_c = np.array([np.log(g["flops"].mean()) for g in groups])
    vertex = np.array([_vertex(x, y) for x, y in zip(log_n, log_y, strict=True)])
    valley = np.isfinite(vertex)
    if valley.sum() < 2:
        return None
    groups, log_n, log_y = (
        [one for one, good in zip(of, valley, strict=True) if good] for of in (groups, log_n, log_y)
    )
    log_c, vertex = log_c[valley], vertex[valley]
    rows = []
    for group, x, v, c in zip(groups, log_n, vertex, log_c, strict=True):
        inside = bool(x.min() < v < x.max())
        tokens = np.exp(np.interp(v, np.sort(x), np.log(group["tokens"].to_numpy(float))[np.argsort(x)]))
        rows.append({"flops": np.exp(c), "runs": len(x), "params": np.exp(v), "tokens": tokens, "inside": inside})
    draws = []
    for _ in range(replicates):
        picks = [rng.integers(0, len(x), len(x)) for x in log_n]
        again = np.array([_vertex(x[k], y[k]) for x, y, k in zip(log_n, log_y, picks, strict=True)])
        if np.isfinite(again).all():
            draws.append(_slope(log_c, again))
    low, high = (
        np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2]) if len(draws) > replicates / 2 else (np.nan, np.nan)
    )
    return IsoFlop(tuple(rows), _slope(log_c, vertex), float(low), float(high))


def isoflop_bias(frame: pd.DataFrame, size: str, target: str, law: Mapping[str, float]) -> float | None:
    """By how much approach 2 misses the exponent of a `chinchilla` law at just these sizes, without any noise.

    A parabola is symmetric and the law's isoFLOP curve is not, so the answer depends on which sizes were run.
    """
    N, D = frame[size].to_numpy(float), frame["tokens"].to_numpy(float)
    exact = law["E"] + law["A"] * N ** -law["alpha"] + law["B"] * D ** -law["beta"]
    found = isoflop(frame.assign(**{target: exact}), size, target, np.random.default_rng(0), replicates=0)
    return None if found is None else found.exponent - law["beta"] / (law["alpha"] + law["beta"])


def _budgets(frame: pd.DataFrame) -> pd.Series | np.ndarray:
    for name in ("budget", "isoflop"):
        if name in frame:
            return frame[name]
    order = np.argsort(frame["flops"].to_numpy(float))
    log_c = np.log(frame["flops"].to_numpy(float))[order]
    labels = np.empty(len(order), dtype=int)
    labels[order] = np.concatenate([[0], np.cumsum(np.diff(log_c) > 0.1)])
    return labels


def _vertex(x: Floats, y: Floats) -> float:
    """Where the parabola through the points is lowest; NaN if it opens downwards or is no parabola."""
    middle = x.mean()
    z = x - middle
    moments = np.array([(z**k).mean() for k in range(5)])
    normal = moments[np.add.outer(np.arange(3), np.arange(3))]
    try:
        _, b, c = np.linalg.solve(normal, np.array([(z**k * y).mean() for k in range(3)]))
    except np.linalg.LinAlgError:
        return np.nan
    return float(middle - b / (2 * c)) if c > 0 else np.nan


def _slope(x: Floats, y: Floats) -> float:
    return float(np.polyfit(x, y, 1)[0])


def front_rows(frame: pd.DataFrame, criteria: Sequence[tuple[str, int]]) -> pd.DataFrame:
    """Rows on the Pareto front of columns, each with 1 (smaller is better) or -1 (larger is better)."""
    return frame[pareto_front(np.stack([sign * frame[name].to_numpy(float) for name, sign in criteria], axis=1))]
