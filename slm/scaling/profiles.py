"""Profile likelihood: how much worse the best fit gets when one parameter is held at another value.

The root t(v) = sign(v - v_hat) sqrt((SSE(v) - SSE_min) / s^2) follows Student's t with n - P degrees of freedom exactly
for linear laws, and closely for others in any parametrisation (Bates & Watts 1988, section 6.1); the interval is where
|t| stays below its quantile. Where it never gets there, the data do not bound the parameter on that side.
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
"""Distances from the estimate at which a profile is first looked at, in standard errors."""
MAX_STEPS = 60
"""Of a minimisation. A longer one follows a flat valley, whose depth no longer changes."""
MAX_REFINEMENTS = 5
"""Most times that the bracket of an end is divided by seven."""


@dataclass(frozen=True)
class Profile:
    """t (`root`), with `df` degrees of freedom, at `values` of an exponent or of the log of a coefficient.

    `low` and `high` are the ends of the interval.
    """

    name: str
    estimate: float
    values: Floats
    root: Floats
    df: float
    low: float | None
    high: float | None


def profile(fit: Fit, name: str, *, level: float = 0.95, straight: bool = False) -> Profile | None:
    """Profile of parameter `name` of a least-squares fit; None where it is no linear function of the coordinates.

    Where rows share runs or shapes, t is divided by how much larger the cluster-robust standard error is, and has that
    error's degrees of freedom. `straight` takes t for a straight line, as the delta method does, without refits.
    """
    vector = fit.law.functional(name, fit.sample.refs)
    if vector is None or fit.degrees_of_freedom < 1 or not fit.sigma > 0:
        return None
    usual, robust, df = standard_errors(fit, vector)
    if np.isnan(df):
        return None
    estimate = float(vector @ fit.theta)
    limits = _limits(fit, vector, name)
    unit = _unit(fit, vector, limits) / min(usual / robust, 1.0)
    grid = np.unique(np.clip(estimate + unit * np.r_[-OUTWARD, OUTWARD], *limits))

    def roots(values: Floats) -> Floats:
        return usual / robust * _roots(fit, vector, estimate, values, straight=straight or fit.law.is_linear)

    grid = grid[grid != estimate]
    values, root = np.append(grid, estimate), np.append(roots(grid), 0.0)
    critical = float(stats.t.ppf(0.5 + level / 2, df))
    for _ in range(MAX_REFINEMENTS):
        fine = np.concatenate([_between(values, root, side * critical) for side in (-1, 1)])
        if not len(fine):
            break
        values, root = np.append(values, fine), np.append(root, roots(fine))
    order = np.argsort(values)
    values, root = values[order], root[order]
    low, high = _crossing(values, root, -critical), _crossing(values, root, critical)
    return Profile(name, estimate, values, root, df, low, high)


def _limits(fit: Fit, vector: Floats, name: str) -> tuple[float, float]:
    """Values between which the profile is looked at."""
    place = fit.law.parameters.index(name)
    low, high = (float(bounds[place]) for bounds in coordinate_bounds(fit.law, fit.sample))
    rest = float(vector @ fit.theta - fit.theta[place])
    beyond = 100 if rest else 0
    return low + min(rest, 0) - beyond, high + max(rest, 0) + beyond


def _unit(fit: Fit, vector: Floats, limits: tuple[float, float]) -> float:
    """A step of about one standard error, or a sensible one where there is none."""
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
    # Also from afar: where a term has vanished, the estimate's surroundings are flat.
    grid = grid_starts(fit.law, fit.sample)
    afar = grid[np.abs(grid @ vector - values[:, None]).argmin(axis=1)]
    low, high = coordinate_bounds(fit.law, fit.sample)
    starts, bounds = np.concatenate([near, afar])[:, free], (low[free], high[free])
    reached = minimise([block], fit.sample.log_y, starts, bounds, tolerance=1e-7, max_steps=MAX_STEPS).objective
    excess = np.maximum(2 * reached.reshape(2, -1).min(axis=0) - fit.sse, 0)
    return np.sign(values - estimate) * np.sqrt(excess) / fit.sigma


def _between(values: Floats, root: Floats, target: float) -> Floats:
    """Values that divide the bracket in which the root crosses `target`; none where it is straight enough."""
    bracket = _bracket(values, root, target)
    if bracket is None or abs(root[bracket[1]] - root[bracket[0]]) < 0.05:
        return np.empty(0)
    return np.linspace(values[bracket[0]], values[bracket[1]], 8)[1:-1]


def _bracket(values: Floats, root: Floats, target: float) -> tuple[int, int] | None:
    """Neighbouring values, going outward from the estimate, between which |root| last passes |target|.

    Last, not first: where a profile has two valleys the interval spans both.
    """
    side = np.sign(target)
    estimate = values[np.argmin(np.abs(root))]
    outward = [int(i) for i in np.argsort(side * values) if side * (values[i] - estimate) >= 0]
    inside = [place for place, i in enumerate(outward) if side * root[i] < abs(target)]
    return (outward[inside[-1]], outward[inside[-1] + 1]) if inside[-1] + 1 < len(outward) else None


def _crossing(values: Floats, root: Floats, target: float) -> float | None:
    """Where the root last passes `target` going outward, by linear interpolation; None if it never does."""
    bracket = _bracket(values, root, target)
    if bracket is None:
        return None
    one, two = bracket
    share = (target - root[one]) / (root[two] - root[one])
    return float(values[one] + share * (values[two] - values[one]))
