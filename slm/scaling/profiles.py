"""Profile likelihood: how much worse the best fit becomes if one parameter is held at another value.

The signed root t(v) = sign(v - v_hat) sqrt((SSE(v) - SSE_min) / s^2) follows Student's t with n - P degrees of freedom:
exactly for linear laws, approximately for others, in any parametrisation (Bates & Watts 1988, section 6.1). The
interval has the values v at which |t| is below the quantile of Student's t. If |t| stays below the quantile on one
side of the estimate v_hat, the data do not bound the parameter on that side.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from slm.scaling.clusters import standard_errors
from slm.scaling.fitting import Fit, minimise_held
from slm.scaling.forms import Floats
from slm.scaling.starts import coordinate_bounds, grid_starts

DISTANCES = np.array([0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 9, 14, 22, 35, 60, 120])
"""Distances from the estimate, in standard errors, at which a profile is computed first."""
MAX_STEPS = 60  # of a minimisation; a longer search follows a flat valley, where the objective no longer changes
MAX_PASSES = 3  # of searches that start at the fits of neighbouring values
MIN_IMPROVEMENT = 1e-5  # of an objective, relative; passes end when no objective falls by more
MAX_REFINEMENTS = 5  # how often, at most, the bracket around an end of the interval is divided
NEAR_CROSSING = np.array([-0.5, -0.2, -0.06, -0.015, 0.015, 0.06, 0.2, 0.5])
"""Where a bracket is divided, as fractions of its width from the expected crossing."""
MAX_T_STEP = 0.05  # an end is interpolated linearly once t changes by less than this across its bracket


@dataclass(frozen=True)
class Profile:
    """The profile of an exponent or of the log of a coefficient: `t`, with `df` degrees of freedom, at rising `values`.

    |t| is `critical` at the ends of the interval, `low` and `high`.
    """

    name: str
    estimate: float
    values: Floats
    t: Floats
    df: float
    critical: float

    @property
    def low(self) -> float | None:
        """The lower end of the interval; None if the data do not bound the parameter below."""
        return _crossing(self.values, self.t, -self.critical)

    @property
    def high(self) -> float | None:
        """The upper end of the interval; None if the data do not bound the parameter above."""
        return _crossing(self.values, self.t, self.critical)


def profiles(
    fit: Fit, names: Sequence[str], *, level: float = 0.95, delta_method: Collection[str] = ()
) -> dict[str, Profile]:
    """Compute the profiles of parameters of a least-squares fit; empty if the fit has no residual error.

    Leaves out parameters that are not linear in the coordinates. If rows share runs or shapes, t is multiplied by the
    ratio of the usual to the cluster-robust standard error, and has the degrees of freedom of the robust error. For
    names in `delta_method`, t is taken to be linear in the value, and nothing is refitted.
    """
    if fit.degrees_of_freedom < 1 or not fit.sigma > 0:
        return {}
    covariance = np.nan_to_num(fit.covariance, nan=0.0)
    found: dict[str, Profile] = {}
    refits: dict[str, _Refits] = {}
    for name in names:
        vector = fit.law.projection(name, fit.sample.refs)  # vector @ coordinates is the parameter, or its log
        usual, robust, df = (np.nan, np.nan, np.nan) if vector is None else standard_errors(fit, vector)
        if vector is None or np.isnan(df):
            continue
        estimate, variance = float(vector @ fit.theta), float(vector @ covariance @ vector)
        error = np.sqrt(variance) if variance > 0 else 0.25  # the variance of a coordinate at its bound is unknown
        t_factor, critical = usual / robust, float(stats.t.ppf(0.5 + level / 2, df))
        # If the robust error is larger, |t| grows more slowly, so the grid must reach further.
        low, high = _limits(fit, vector, name)
        step = min(error, (high - low) / 20) / min(t_factor, 1.0)
        values = np.unique(np.clip(estimate + step * np.r_[-DISTANCES, 0, DISTANCES], low, high))
        found[name] = Profile(name, estimate, values, t_factor * (values - estimate) / error, df, critical)
        if not ((name in delta_method or fit.law.is_linear) and variance > 0):
            refits[name] = _Refits(fit, vector, values, t_factor, critical)
    _search_all(list(refits.values()))
    return found | {name: replace(found[name], values=refit.values, t=refit.t) for name, refit in refits.items()}


class _Refits:
    """Fits of all other parameters, with the parameter `vector` @ theta held at each of some rising values [R]."""

    def __init__(self, fit: Fit, vector: Floats, values: Floats, t_factor: float, critical: float) -> None:
        self.fit, self.vector, self.estimate = fit, vector, float(vector @ fit.theta)
        self.values, self.theta, self.objective = values, np.empty((0, len(vector))), np.empty(0)
        self.t_factor, self.critical = t_factor, critical

    @property
    def t(self) -> Floats:
        """The signed root at each value, times `t_factor`."""
        excess = np.maximum(2 * self.objective - self.fit.sse, 0)
        return np.asarray(self.t_factor * np.sign(self.values - self.estimate) * np.sqrt(excess) / self.fit.sigma)

    def first_starts(self) -> Floats:
        """Two starts for each value [2, R, P]: a linear guess, and the best of the nearest points of a grid."""
        fit, vector, values = self.fit, self.vector, self.values
        covariance = np.nan_to_num(fit.covariance, nan=0.0)
        variance = float(vector @ covariance @ vector)
        near = np.repeat(fit.theta[None], len(values), axis=0)
        if variance > 0:
            near = near + (values - self.estimate)[:, None] * (covariance @ vector) / variance
        # Start far from the estimate too: where a term has vanished, the objective is flat around the estimate.
        grid = grid_starts(fit.law, fit.sample)
        sse = ((fit.sample.log_y - fit.law.log_value(grid, fit.sample.centred)) ** 2).sum(axis=1)
        gap = np.abs(grid @ vector - values[:, None])
        is_nearest = gap <= gap.min(axis=1, keepdims=True) + 1e-9
        return np.stack([near, grid[np.where(is_nearest, sse, np.inf).argmin(axis=1)]])

    def neighbours(self) -> Floats:
        """The fits at the two neighbours of each value [2, R, P]."""
        indices = np.arange(len(self.values)) + np.array([[-1], [1]])
        return self.theta[np.clip(indices, 0, len(self.values) - 1)]

    def improve(self, theta: Floats, objective: Floats) -> bool:
        """Keep the better of the fits at each value; returns whether one is better than before."""
        is_lower = objective < self.objective * (1 - MIN_IMPROVEMENT)
        self.theta[is_lower], self.objective[is_lower] = theta[is_lower], objective[is_lower]
        return bool(is_lower.any())

    def between(self) -> tuple[Floats, Floats]:
        """Values near the ends of the interval, where t is not known well enough, and starts [2, R, P] for them."""
        brackets = [_bracket(self.values, self.t, end) for end in (-self.critical, self.critical)]
        wide = [bracket for bracket in brackets if bracket and abs(np.diff(self.t[bracket])[0]) >= MAX_T_STEP]
        divided = [_divide(self.values[bracket], self.t[bracket], self.critical) for bracket in wide]
        ends = np.repeat(np.array(wide, int).reshape(-1, 2).T, [len(part) for part in divided], axis=1)
        return np.concatenate([np.empty(0), *divided]), self.theta[ends]

    def insert(self, values: Floats, theta: Floats, objective: Floats) -> None:
        """Add the fits at other values."""
        order = np.argsort(np.append(self.values, values))
        self.values = np.append(self.values, values)[order]
        self.theta = np.concatenate([self.theta, theta])[order]
        self.objective = np.append(self.objective, objective)[order]


def _search_all(refits: list[_Refits]) -> None:
    """Compute all refits; the searches of all parameters are one minimisation, which takes little longer than one."""
    searches = [(refit.values, refit.first_starts()) for refit in refits]
    for refit, (theta, objective) in zip(refits, _search(refits, searches), strict=True):
        refit.theta, refit.objective = theta, objective
    active = refits
    for _ in range(MAX_PASSES):  # a search may have missed a minimum that the search at the next value found
        better = _search(active, [(refit.values, refit.neighbours()) for refit in active])
        active = [refit for refit, fits in zip(active, better, strict=True) if refit.improve(*fits)]
    active = refits
    for _ in range(MAX_REFINEMENTS):
        added = {refit: between for refit in active if len((between := refit.between())[0])}
        active = list(added)
        for refit, fits in zip(active, _search(active, list(added.values())), strict=True):
            refit.insert(added[refit][0], *fits)


def _search(refits: list[_Refits], searches: list[tuple[Floats, Floats]]) -> list[tuple[Floats, Floats]]:
    """Search at values [R] from starts [2, R, P] of each; returns the coordinates [R, P] and the objectives [R]."""
    if not refits:
        return []
    lengths = [len(values) for values, _ in searches]
    vectors = np.repeat([refit.vector for refit in refits], lengths, axis=0)[:, None]
    values = np.concatenate([values for values, _ in searches])[:, None]
    starts = np.concatenate([starts for _, starts in searches], axis=1)
    R = len(values)
    theta, objective = minimise_held(
        refits[0].fit,
        np.concatenate([vectors, vectors]),
        np.concatenate([values, values]),
        np.concatenate(starts),
        tolerance=1e-7,
        max_steps=MAX_STEPS,
        rivals=2,
    )
    best = objective.reshape(2, R).argmin(axis=0) * R + np.arange(R)
    ends = np.cumsum(lengths)[:-1]
    return list(zip(np.split(theta[best], ends), np.split(objective[best], ends), strict=True))


def _limits(fit: Fit, vector: Floats, name: str) -> tuple[float, float]:
    """Return the smallest and the largest value at which the profile is computed."""
    index = fit.law.parameters.index(name)
    low, high = (float(bounds[index]) for bounds in coordinate_bounds(fit.law, fit.sample))
    # The log of a coefficient is its centred coordinate plus each exponent (at most 5) times a log reference size
    # (about 20). The margin of 100 allows for the change of that sum along the profile.
    exponent_part = float(vector @ fit.theta - fit.theta[index])
    margin = 100 if exponent_part else 0
    return low + min(exponent_part, 0) - margin, high + max(exponent_part, 0) + margin


def _divide(values: Floats, t: Floats, critical: float) -> Floats:
    """Return values inside a bracket, which lie closer together where linear interpolation expects the crossing."""
    fraction = (critical - abs(t[0])) / (abs(t[1]) - abs(t[0]))
    fractions = fraction + NEAR_CROSSING
    return np.asarray(values[0] + (values[1] - values[0]) * fractions[(fractions > 0) & (fractions < 1)])


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
