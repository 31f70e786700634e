"""Profile likelihood: how much worse the best fit gets when one parameter is held at another value.

The root t(v) = sign(v - v_hat) sqrt((SSE(v) - SSE_min) / s^2) follows Student's t with n - P degrees of freedom exactly
for linear laws, and closely for others in any parametrisation (Bates & Watts 1988, section 6.1). The interval is where
|t| is below its quantile. If |t| never reaches the quantile on one side, the data do not bound the parameter there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit, held_block
from slm.scaling.forms import Floats
from slm.scaling.robust import standard_errors
from slm.scaling.solver import minimise
from slm.scaling.starts import coordinate_bounds, grid_starts

OUTWARD = np.array([0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 9, 14, 22, 35, 60, 120])
"""Distances from the estimate of the first values of a profile, in standard errors."""
MAX_STEPS = 60
"""Most steps of one minimisation. A longer search follows a flat valley, where the objective no longer changes."""
MAX_REFINEMENTS = 5
"""Most times that the bracket around an end of the interval is divided into seven."""


@dataclass(frozen=True)
class Profile:
    """t (`root`), with `df` degrees of freedom, at `values` of an exponent or of the log of a coefficient.

    `low` and `high` are the ends of the interval, None where it is open.
    """

    name: str
    estimate: float
    values: Floats
    root: Floats
    df: float
    low: float | None
    high: float | None


def profile(fit: Fit, name: str, *, level: float = 0.95, straight: bool = False) -> Profile | None:
    """Profile of parameter `name` of a least-squares fit; None if it is not linear in the coordinates or has no error.

    Where rows share runs or shapes, t is divided by the ratio of the cluster-robust standard error to the usual one,
    and has the robust error's degrees of freedom. `straight` makes no refits: t is linear, as in the delta method.
    """
    vector = fit.law.functional(name, fit.sample.refs)
    if vector is None or fit.degrees_of_freedom < 1 or not fit.sigma > 0:
        return None
    usual, robust, df = standard_errors(fit, vector)
    if np.isnan(df):
        return None
    estimate = float(vector @ fit.theta)
    limits = _limits(fit, vector, name)
    step = _step(fit, vector, limits) / min(usual / robust, 1.0)
    grid = np.unique(np.clip(estimate + step * np.r_[-OUTWARD, OUTWARD], *limits))

    def roots(values: Floats) -> Floats:
        return usual / robust * _roots(fit, vector, estimate, values, straight=straight or fit.law.is_linear)

    grid = grid[grid != estimate]
    values, root = np.append(grid, estimate), np.append(roots(grid), 0.0)
    critical = float(stats.t.ppf(0.5 + level / 2, df))
    for _ in range(MAX_REFINEMENTS):
        added = np.concatenate([_between(values, root, side * critical) for side in (-1, 1)])
        if not len(added):
            break
        values, root = np.append(values, added), np.append(root, roots(added))
    order = np.argsort(values)
    values, root = values[order], root[order]
    low, high = _crossing(values, root, -critical), _crossing(values, root, critical)
    return Profile(name, estimate, values, root, df, low, high)


def _limits(fit: Fit, vector: Floats, name: str) -> tuple[float, float]:
    """Smallest and largest value at which the profile is computed."""
    index = fit.law.parameters.index(name)
    low, high = (float(bounds[index]) for bounds in coordinate_bounds(fit.law, fit.sample))
    rest = float(vector @ fit.theta - fit.theta[index])
    margin = 100 if rest else 0
    return low + min(rest, 0) - margin, high + max(rest, 0) + margin


def _step(fit: Fit, vector: Floats, limits: tuple[float, float]) -> float:
    """One standard error, or 0.25 where there is none; at most a twentieth of the range of `limits`."""
    with np.errstate(invalid="ignore"):
        error = np.sqrt(vector @ np.nan_to_num(fit.covariance, nan=0.0) @ vector)
    largest = float(limits[1] - limits[0]) / 20
    return min(float(error), largest) if error > 0 else min(largest, 0.25)


def _roots(fit: Fit, vector: Floats, estimate: float, values: Floats, *, straight: bool) -> Floats:
    """t at `values`, each from a fit of all other parameters unless `straight`."""
    covariance = np.nan_to_num(fit.covariance, nan=0.0)
    variance = float(vector @ covariance @ vector)
    if straight and variance > 0:
        return np.asarray((values - estimate) / np.sqrt(variance))
    block, free = held_block(fit.law, fit.sample, vector[None], np.tile(values, 2)[:, None])
    near = np.repeat(fit.theta[None], len(values), axis=0)
    if variance > 0:
        near = near + (values - estimate)[:, None] * (covariance @ vector) / variance
    # Start far from the estimate too: where a term has vanished, the objective is flat around the estimate.
    grid = grid_starts(fit.law, fit.sample)
    afar = grid[np.abs(grid @ vector - values[:, None]).argmin(axis=1)]
    low, high = coordinate_bounds(fit.law, fit.sample)
    starts, bounds = np.concatenate([near, afar])[:, free], (low[free], high[free])
    objective = minimise([block], fit.sample.log_y, starts, bounds, tolerance=1e-7, max_steps=MAX_STEPS).objective
    excess = np.maximum(2 * objective.reshape(2, -1).min(axis=0) - fit.sse, 0)
    return np.sign(values - estimate) * np.sqrt(excess) / fit.sigma


def _between(values: Floats, root: Floats, target: float) -> Floats:
    """Values that divide the bracket where the root crosses `target` into seven; none if it is narrow enough."""
    bracket = _bracket(values, root, target)
    if bracket is None or abs(root[bracket[1]] - root[bracket[0]]) < 0.05:
        return np.empty(0)
    return np.linspace(values[bracket[0]], values[bracket[1]], 8)[1:-1]


def _bracket(values: Floats, root: Floats, target: float) -> tuple[int, int] | None:
    """Indices of the neighbouring values between which |root| last passes |target| on the way out from the estimate.

    None if it never does. The last crossing, not the first: where a profile has two valleys, the interval spans both.
    """
    side = np.sign(target)
    estimate = values[np.argmin(np.abs(root))]
    outward = [int(i) for i in np.argsort(side * values) if side * (values[i] - estimate) >= 0]
    last_inside = [place for place, i in enumerate(outward) if side * root[i] < abs(target)][-1]
    return (outward[last_inside], outward[last_inside + 1]) if last_inside + 1 < len(outward) else None


def _crossing(values: Floats, root: Floats, target: float) -> float | None:
    """The value where the root last passes `target` on the way out, by linear interpolation; None if it never does."""
    bracket = _bracket(values, root, target)
    if bracket is None:
        return None
    inner, outer = bracket
    share = (target - root[inner]) / (root[outer] - root[inner])
    return float(values[inner] + share * (values[outer] - values[inner]))
