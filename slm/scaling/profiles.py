"""Profile likelihood: how much worse the best fit gets when one parameter is held at another value.

The root t(v) = sign(v - v_hat) sqrt((SSE(v) - SSE_min) / s^2) follows Student's t with n - P degrees of freedom exactly
for linear laws, and closely for others in any parametrisation (Bates & Watts 1988, section 6.1); the interval is where
|t| stays below its quantile. Where it never gets there, the data do not bound the parameter on that side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.robust import cluster_error
from slm.scaling.solver import Block, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts

OUTWARD = np.array([0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 9, 14, 22, 35, 60, 120])
"""Distances from the estimate at which a profile is first looked at, in standard errors."""
MOST_STEPS = 60
"""Of a minimisation: what takes longer follows a flat valley, whose depth has long stopped to change."""
REFINEMENTS = 5
"""Times that the bracket of each end is divided by seven, at most."""


@dataclass(frozen=True)
class Profile:
    """`root` is t, with `df` degrees of freedom, at `values` of an exponent or of the logarithm of a coefficient.

    `low` and `high` are the ends of the interval.
    """

    name: str
    estimate: float
    values: Floats
    root: Floats
    df: float
    low: float | None
    high: float | None


def profile(found: Fit, name: str, *, level: float = 0.95, straight: bool = False) -> Profile | None:
    """Profile of parameter `name` of a least-squares fit; None where it is no linear function of the coordinates.

    Where rows share runs or shapes, t is divided by how much larger the cluster-robust standard error is, and has that
    error's degrees of freedom. `straight` takes t for a straight line, as by the delta method, and refits nothing.
    """
    vector = found.law.functional(name, found.sample.refs)
    if vector is None or found.degrees_of_freedom < 1 or not found.sigma > 0:
        return None
    estimate = float(vector @ found.theta)
    limits = _limits(found, vector, name)
    shrink, df = _robust(found, vector)
    if not shrink > 0:
        return None
    unit = _unit(found, vector, limits) / min(shrink, 1.0)
    grid = np.unique(np.clip(estimate + unit * np.r_[-OUTWARD, OUTWARD], *limits))
    grid = grid[grid != estimate]

    def roots(values: Floats) -> Floats:
        return _roots(found, vector, estimate, values, straight=straight or found.law.is_linear)

    values, root = np.append(grid, estimate), np.append(shrink * roots(grid), 0.0)
    critical = float(stats.t.ppf(0.5 + level / 2, df))
    for _ in range(REFINEMENTS):
        fine = np.concatenate([_between(values, root, side * critical) for side in (-1, 1)])
        if not len(fine):
            break
        values, root = np.append(values, fine), np.append(root, shrink * roots(fine))
    order = np.argsort(values)
    values, root = values[order], root[order]
    low, high = _crossing(values, root, -critical), _crossing(values, root, critical)
    return Profile(name, estimate, values, root, df, low, high)


def _robust(found: Fit, vector: Floats) -> tuple[float, float]:
    """What t is multiplied by, and its degrees of freedom; a factor of 0 where clusters leave no scatter to tell by."""
    if found.sample.is_independent:
        return 1.0, float(found.degrees_of_freedom)
    jacobian = found.jacobian
    error, df = cluster_error(jacobian, found.residuals, found.sample.clusters, vector)
    variance = float(vector @ np.linalg.pinv(jacobian.T @ jacobian) @ vector)
    usual = found.sigma * max(variance, 0.0) ** 0.5
    return (usual / error, df) if error > 0 and df >= 1 and usual > 0 else (0.0, df)


def _limits(found: Fit, vector: Floats, name: str) -> tuple[float, float]:
    if found.law.is_linear:
        return -np.inf, np.inf
    place = list(found.law.parameters).index(name)
    low, high = coordinate_bounds(found.law, found.sample)
    if name in found.law.signed:
        return float(low[place]), float(high[place])
    rest = float(vector @ found.theta - found.theta[place])
    return float(low[place] + min(rest, 0) - 100 * (rest != 0)), float(high[place] + max(rest, 0) + 100 * (rest != 0))


def _unit(found: Fit, vector: Floats, limits: tuple[float, float]) -> float:
    """A step of about one standard error, or a sensible one where there is none."""
    with np.errstate(invalid="ignore"):
        error = np.sqrt(vector @ np.nan_to_num(found.covariance, nan=0.0) @ vector)
    largest = float(limits[1] - limits[0]) / 20
    return min(float(error), largest) if error > 0 else min(largest, 0.25)


def _roots(found: Fit, vector: Floats, estimate: float, values: Floats, *, straight: bool) -> Floats:
    """t at `values`, each from a fit of all other parameters unless `straight`."""
    covariance = np.nan_to_num(found.covariance, nan=0.0)
    variance = float(vector @ covariance @ vector)
    if straight and variance > 0:
        return np.asarray((values - estimate) / np.sqrt(variance))
    P = len(vector)
    held = int(np.argmax(np.abs(vector) > 0.5))  # a coefficient's own coordinate, or the exponent's
    others = [j for j in range(P) if j != held]
    matrix = np.zeros((P, P - 1))
    matrix[others, range(P - 1)] = 1
    matrix[held] = -vector[others] / vector[held]
    offset = np.zeros((2 * len(values), P))
    offset[:, held] = np.tile(values, 2) / vector[held]
    low, high = coordinate_bounds(found.law, found.sample)
    start = np.repeat(found.theta[None, others], len(values), axis=0)
    if variance > 0:
        start = start + (values - estimate)[:, None] * (covariance @ vector)[others] / variance
    sample = found.sample
    block = Block(found.law, sample.centred, np.arange(len(sample.log_y)), matrix, offset)
    # Also from afar: where a term has vanished, the estimate's surroundings are flat.
    grid = grid_starts(found.law, sample)
    starts = np.concatenate([start, grid[np.abs(grid @ vector - values[:, None]).argmin(axis=1)][:, others]])
    bounds = low[others], high[others]
    reached = minimise([block], sample.log_y, starts, bounds, tolerance=1e-7, max_steps=MOST_STEPS).objective
    excess = np.maximum(2 * reached.reshape(2, -1).min(axis=0) - found.sse, 0)
    return np.sign(values - estimate) * np.sqrt(excess) / found.sigma


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
