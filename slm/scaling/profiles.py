"""Profile likelihood: how much worse the best fit becomes if one parameter is held at another value.

The signed root t(v) = sign(v - v_hat) sqrt((SSE(v) - SSE_min) / s^2) follows Student's t with n - P degrees of freedom:
exactly for linear laws, approximately for others, in any parametrisation (Bates & Watts 1988, section 6.1). The
interval has the values v at which |t| is below the quantile of Student's t. If |t| stays below the quantile on one
side of the estimate v_hat, the data do not bound the parameter on that side.
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
MAX_STEPS = 60  # of a minimisation; a longer search follows a flat valley, where the objective no longer changes
MAX_REFINEMENTS = 5  # how often, at most, the bracket around an end of the interval is narrowed to a seventh
MAX_T_STEP = 0.05  # an end is interpolated linearly once t changes by less than this across its bracket


@dataclass(frozen=True)
class Profile:
    """The profile of an exponent or of the log of a coefficient: `t`, with `df` degrees of freedom, at rising `values`.

    `low` and `high` are the ends of the interval; an end is None if the data do not bound the parameter on that side.
    """

    name: str
    estimate: float
    values: Floats
    t: Floats
    df: float
    low: float | None
    high: float | None


def profile(fit: Fit, name: str, *, level: float = 0.95, delta_method: bool = False) -> Profile | None:
    """Compute the profile of parameter `name` of a least-squares fit.

    Returns None if the parameter is not linear in the coordinates, or the fit has no residual error. If rows share runs
    or shapes, t is multiplied by the ratio of the usual to the cluster-robust standard error, and has the degrees of
    freedom of the robust error. With `delta_method`, t is taken to be linear in the value, and nothing is refitted.
    """
    vector = fit.law.projection(name, fit.sample.refs)  # vector @ coordinates is the parameter, or its log
    if vector is None or fit.degrees_of_freedom < 1 or not fit.sigma > 0:
        return None
    usual, robust, df = standard_errors(fit, vector)
    if np.isnan(df):
        return None
    estimate = float(vector @ fit.theta)
    low, high = _limits(fit, vector, name)
    variance = float(vector @ np.nan_to_num(fit.covariance, nan=0.0) @ vector)
    error = np.sqrt(variance) if variance > 0 else 0.25  # the variance of a coordinate at its bound is unknown
    t_factor = usual / robust
    # If the robust error is larger, |t| grows more slowly, so the grid must reach further.
    step = min(error, (high - low) / 20) / min(t_factor, 1.0)
    grid = np.unique(np.clip(estimate + step * np.r_[-DISTANCES, DISTANCES], low, high))
    grid = grid[grid != estimate]

    def t_at(values: Floats) -> Floats:
        is_linear = delta_method or fit.law.is_linear
        return t_factor * _signed_roots(fit, vector, estimate, values, is_linear=is_linear)

    values, t = np.append(grid, estimate), np.append(t_at(grid), 0.0)
    critical = float(stats.t.ppf(0.5 + level / 2, df))
    for _ in range(MAX_REFINEMENTS):
        added = np.concatenate([_divide_bracket(values, t, target) for target in (-critical, critical)])
        if not len(added):
            break
        values, t = np.append(values, added), np.append(t, t_at(added))
    order = np.argsort(values)
    values, t = values[order], t[order]
    return Profile(name, estimate, values, t, df, _crossing(values, t, -critical), _crossing(values, t, critical))


def _limits(fit: Fit, vector: Floats, name: str) -> tuple[float, float]:
    """Return the smallest and the largest value at which the profile is computed."""
    index = fit.law.parameters.index(name)
    low, high = (float(bounds[index]) for bounds in coordinate_bounds(fit.law, fit.sample))
    # The log of a coefficient is its centred coordinate plus each exponent (at most 5) times a log reference size
    # (about 20). The margin of 100 allows for the change of that sum along the profile.
    exponent_part = float(vector @ fit.theta - fit.theta[index])
    margin = 100 if exponent_part else 0
    return low + min(exponent_part, 0) - margin, high + max(exponent_part, 0) + margin


def _signed_roots(fit: Fit, vector: Floats, estimate: float, values: Floats, *, is_linear: bool) -> Floats:
    """Compute t at `values`: directly if t `is_linear`, else by fitting all other parameters at each value."""
    covariance = np.nan_to_num(fit.covariance, nan=0.0)
    variance = float(vector @ covariance @ vector)
    if is_linear and variance > 0:
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


def _divide_bracket(values: Floats, t: Floats, target: float) -> Floats:
    """Return six values inside the bracket in which t crosses `target`; none if the bracket is narrow enough."""
    bracket = _bracket(values, t, target)
    if bracket is None or abs(np.diff(t[bracket])[0]) < MAX_T_STEP:
        return np.empty(0)
    inner, outer = values[bracket]
    return np.linspace(inner, outer, 8)[1:-1]


def _bracket(values: Floats, t: Floats, target: float) -> list[int] | None:
    """Return the indices of the two neighbouring values between which t crosses `target`; None if t never does.

    If t crosses several times, returns the crossing furthest from the estimate, so that an interval spans all valleys.
    """
    side = np.sign(target)
    estimate = values[np.argmin(np.abs(t))]
    outward = [int(i) for i in np.argsort(side * values) if side * (values[i] - estimate) >= 0]  # indices on this side
    last_inside = max(rank for rank, i in enumerate(outward) if side * t[i] < abs(target))
    return outward[last_inside : last_inside + 2] if last_inside + 1 < len(outward) else None


def _crossing(values: Floats, t: Floats, target: float) -> float | None:
    """Return the value where t last crosses `target`, by linear interpolation; None if t never does."""
    bracket = _bracket(values, t, target)
    if bracket is None:
        return None
    inner, outer = values[bracket]
    t_inner, t_outer = t[bracket]
    return float(inner + (target - t_inner) / (t_outer - t_inner) * (outer - inner))
