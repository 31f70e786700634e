"""Profile likelihood: how much worse the best fit becomes if one parameter is held at another value.

The root t(v) = sign(v - v_hat) sqrt((SSE(v) - SSE_min) / s^2) follows Student's t with n - P degrees of freedom exactly
for linear laws, and closely for others in any parametrisation (Bates & Watts 1988, section 6.1). The interval is where
|t| is below its quantile. If |t| never reaches the quantile on one side, the data do not bound the parameter there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from slm.scaling.clusters import standard_errors
from slm.scaling.fitting import Fit, minimise_held
from slm.scaling.forms import Floats
from slm.scaling.starts import coordinate_bounds, grid_starts

DISTANCES = np.array([0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 9, 14, 22, 35, 60, 120])
"""Distances from the estimate, in standard errors, at which a profile is computed first."""
MAX_STEPS = 60
"""Most steps of a minimisation. A longer search follows a flat valley, where the objective no longer changes."""
MAX_REFINEMENTS = 5
"""How often the bracket around an end of the interval is divided into seven, at most."""
MAX_BRACKET = 0.05
"""Difference of t over the bracket of an end below which linear interpolation is accurate."""


@dataclass(frozen=True)
class Profile:
    """t (`root`), with `df` degrees of freedom, at rising `values` of an exponent or of the log of a coefficient.

    `low` and `high` are the ends of the interval; an end of None is open.
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

    If rows share runs or shapes, t is divided by the ratio of the cluster-robust to the usual standard error and has
    the degrees of freedom of the robust one. `straight` makes no refits: t is linear, as in the delta method.
    """
    vector = fit.law.functional(name, fit.sample.refs)
    if vector is None or fit.degrees_of_freedom < 1 or not fit.sigma > 0:
        return None
    usual, robust, df = standard_errors(fit, vector)
    if np.isnan(df):
        return None
    estimate = float(vector @ fit.theta)
    low, high = _limits(fit, vector, name)
    variance = float(vector @ np.nan_to_num(fit.covariance, nan=0.0) @ vector)
    step = min(np.sqrt(variance) if variance > 0 else 0.25, (high - low) / 20) / min(usual / robust, 1.0)
    grid = np.unique(np.clip(estimate + step * np.r_[-DISTANCES, DISTANCES], low, high))

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
    ends = _crossing(values, root, -critical), _crossing(values, root, critical)
    return Profile(name, estimate, values, root, df, *ends)


def _limits(fit: Fit, vector: Floats, name: str) -> tuple[float, float]:
    """Smallest and largest value at which the profile is computed."""
    index = fit.law.parameters.index(name)
    low, high = (float(bounds[index]) for bounds in coordinate_bounds(fit.law, fit.sample))
    rest = float(vector @ fit.theta - fit.theta[index])
    margin = 100 if rest else 0
    return low + min(rest, 0) - margin, high + max(rest, 0) + margin


def _roots(fit: Fit, vector: Floats, estimate: float, values: Floats, *, straight: bool) -> Floats:
    """t at `values`, each from a fit of all other parameters unless `straight`."""
    covariance = np.nan_to_num(fit.covariance, nan=0.0)
    variance = float(vector @ covariance @ vector)
    if straight and variance > 0:
        return np.asarray((values - estimate) / np.sqrt(variance))
    near = np.repeat(fit.theta[None], len(values), axis=0)
    if variance > 0:
        near = near + (values - estimate)[:, None] * (covariance @ vector) / variance
    # Start far from the estimate too: where a term has vanished, the objective is flat around the estimate.
    grid = grid_starts(fit.law, fit.sample)
    far = grid[np.abs(grid @ vector - values[:, None]).argmin(axis=1)]
    starts, held = np.concatenate([near, far]), np.tile(values, 2)[:, None]
    objective = minimise_held(fit, vector[None], held, starts, tolerance=1e-7, max_steps=MAX_STEPS)[1]
    excess = np.maximum(2 * objective.reshape(2, -1).min(axis=0) - fit.sse, 0)
    return np.sign(values - estimate) * np.sqrt(excess) / fit.sigma


def _between(values: Floats, root: Floats, target: float) -> Floats:
    """Values that divide the bracket in which the root crosses `target` into seven; none if it is narrow enough."""
    bracket = _bracket(values, root, target)
    if bracket is None or abs(np.diff(root[bracket])[0]) < MAX_BRACKET:
        return np.empty(0)
    inner, outer = values[bracket]
    return np.linspace(inner, outer, 8)[1:-1]


def _bracket(values: Floats, root: Floats, target: float) -> list[int] | None:
    """Indices of the two neighbouring values between which |root| last passes |target|, going out from the estimate.

    None if it never does. The last crossing, not the first: if a profile has two valleys, the interval spans both.
    """
    side = np.sign(target)
    estimate = values[np.argmin(np.abs(root))]
    outward = [int(i) for i in np.argsort(side * values) if side * (values[i] - estimate) >= 0]
    last_inside = [place for place, i in enumerate(outward) if side * root[i] < abs(target)][-1]
    return outward[last_inside : last_inside + 2] if last_inside + 1 < len(outward) else None


def _crossing(values: Floats, root: Floats, target: float) -> float | None:
    """The value where the root last passes `target`, by linear interpolation; None if it never does."""
    bracket = _bracket(values, root, target)
    if bracket is None:
        return None
    (inner, outer), (at_inner, at_outer) = values[bracket], root[bracket]
    return float(inner + (target - at_inner) / (at_outer - at_inner) * (outer - inner))
