"""Intervals of predictions of a law: its value, the result of one more run, the gain of doubling N.

Notable: predictions of a law that is not a straight line in logs get profile-likelihood intervals. An artificial
observation pulls the law to another value at the point; the interval ends where the fit of the real rows has become
worse by t^2 s^2. In simulations (docs/scaling.md) this covers 95 to 97% even if the data hardly identify a floor; a
studentised bootstrap covers 92 to 95%.

Axes: M points, I rows, R replicates, P coordinates, V variables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from slm.scaling.clusters import Ensemble, Kind, standard_errors
from slm.scaling.fitting import Fit, single_block
from slm.scaling.forms import Curvature, Floats, gram
from slm.scaling.laws import Law
from slm.scaling.sample import Sample
from slm.scaling.solver import Curve, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts, raise_small_terms

MAX_CORRECTIONS = 12
"""Most corrections of an end of an interval."""
T_TOLERANCE = 5e-3
"""An end is accepted if the relative error of t there is below this."""
PULL_ERROR = 0.3
"""Standard error of the artificial observation over that of the law. If it is smaller, the squares have a valley too
narrow for quick minimisation; if it is larger, no end is found where a profile flattens."""
MIN_ERROR = 0.01
"""Least standard error of a law at the start of a search, over that of a row: coordinates at a bound have none."""


@dataclass(frozen=True)
class Band:
    """A quantity at each point [M]: estimate and interval. An end is NaN if the data set no bound there."""

    centre: Floats
    low: Floats
    high: Floats
    t: Floats
    """The quantile of Student's t of each interval."""

    def for_run(self, sigma: float) -> Band:
        """From a band of log L: the interval for the result of one run that scatters by `sigma` about the law."""
        reach = self.t * sigma
        low, high = np.hypot(self.centre - self.low, reach), np.hypot(self.high - self.centre, reach)
        return Band(self.centre, self.centre - low, self.centre + high, self.t)


@dataclass(frozen=True)
class Doubling:
    """The gain of doubling N, the first variable of the law: L(N) - L(2 N) with other variables held."""

    law: Law

    def _doubled(self, x_IV: Floats) -> Floats:
        return x_IV + np.log(2) * (np.arange(x_IV.shape[1]) == 0)

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """The gain [R, I]; not its logarithm, since it may be negative."""
        near, far = self.law.log_value(theta, x_IV), self.law.log_value(theta, self._doubled(x_IV))
        return np.asarray(np.exp(near) - np.exp(far))

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """The gain [R, I], its gradient [R, P, I] and its curvature: see `Curve`."""
        near, near_slope, near_curvature = self.law.derivatives(theta, x_IV)
        far, far_slope, far_curvature = self.law.derivatives(theta, self._doubled(x_IV))
        near, far = np.exp(near), np.exp(far)

        def curvature(weights: Floats) -> Floats:
            a, b = weights * near, weights * far
            return near_curvature(a) + gram(near_slope, a) - far_curvature(b) - gram(far_slope, b)

        return near - far, near[:, None] * near_slope - far[:, None] * far_slope, curvature


def band_kind(fit: Fit) -> Kind | None:
    """The bootstrap that a band of this fit needs, if any."""
    return None if np.isinf(fit.loss.delta) else "cluster"


def new_run_sigma(fit: Fit, runs: Sample) -> float:
    """Standard deviation of one more run about the law, if `fit` may have been fitted to means over seeds.

    A mean over k seeds has the variance misfit^2 + pure^2 / k, a run has misfit^2 + pure^2, where `pure` is the scatter
    between seeds of one cell, pooled over the cells of `runs`. Without repeated seeds it is the scatter of the fit.
    """
    means, inverse, squares = runs.by_cell()
    pure_df = len(inverse) - len(means)
    if len(fit.sample.log_y) != len(means) or pure_df < 1:
        return fit.sigma
    return float(np.sqrt(fit.sigma**2 + squares / pure_df * (1 - (1 / np.bincount(inverse)).mean())))


def band(
    fit: Fit, log_x: Floats, ensemble: Ensemble | None, *, level: float = 0.95, curve: Curve | None = None
) -> Band:
    """Interval of `curve`, by default log L, at log variables [M, V]. `Band.for_run` has that of a run's result.

    Least squares: Student's t for linear laws, which is exact, and profile likelihood for others. Both are widened by
    the cluster-robust standard error (`slm.scaling.clusters`) if rows share runs or shapes. Huber's loss: t intervals
    from the spread of the cluster bootstrap; without `ensemble` (see `band_kind`) that is a `ValueError`.
    """
    x, curve = log_x - fit.sample.refs, curve or fit.law
    centre = curve.log_value(fit.theta[None], x)[0]
    if fit.degrees_of_freedom < 1:
        unknown = np.full_like(centre, np.nan)
        return Band(centre, unknown, unknown, unknown)
    if band_kind(fit) is not None:
        if ensemble is None:
            raise ValueError("the band of this fit needs a bootstrap: see band_kind")
        groups = len(np.unique(fit.sample.clusters))
        df = max(groups - len(fit.theta), 1)
        t = np.full_like(centre, stats.t.ppf(0.5 + level / 2, df))
        error = curve.log_value(ensemble.theta, x).std(axis=0, ddof=1) * np.sqrt(groups / df)
        return Band(centre, centre - t * error, centre + t * error, t)
    gradients = curve.derivatives(fit.theta[None], x)[1][0].T
    usual, robust, degrees = np.array([standard_errors(fit, gradient) for gradient in gradients]).reshape(-1, 3).T
    widening, t = robust / usual, stats.t.ppf(0.5 + level / 2, degrees)
    if fit.law.is_linear and curve is fit.law:
        reach = t * widening * np.sqrt(_variance(fit, curve, x)[0])
        return Band(centre, centre - reach, centre + reach, t)
    below, above = _profiled(fit, curve, x, t * widening)
    return Band(centre, centre - below, centre + above, t)


def _variance(fit: Fit, curve: Curve, x: Floats) -> tuple[Floats, Floats]:
    """Delta-method variance of the curve [M], and its covariance with the coordinates [M, P]."""
    gradient = curve.derivatives(fit.theta[None], x)[1][0]
    move = np.nan_to_num(fit.covariance, nan=0.0) @ gradient
    return np.asarray((gradient * move).sum(axis=0)), move.T


def _profiled(fit: Fit, curve: Curve, x: Floats, critical: Floats) -> tuple[Floats, Floats]:
    """Distances by which `curve` at centred points [M, V] can go down and up until |t| is `critical` [M].

    Newton's method on |t| as a function of the distance, for all ends at once. Each refit with an artificial
    observation is the best fit for the value that the curve reaches, and the slope of t there follows from the residual
    of the observation. An end that is not reached is NaN.
    """
    M = len(x)
    variance, covariance = _variance(fit, curve, x)
    variance = np.maximum(variance, (MIN_ERROR * fit.sigma) ** 2)
    pull = _Pull(fit, curve, x, PULL_ERROR**2 * variance, covariance / variance[:, None])
    point, side = np.tile(np.arange(M), 2), np.repeat([-1.0, 1.0], M)
    offset = critical[point] * np.sqrt(variance)[point] * (1 + PULL_ERROR**2)
    inside, outside, end = np.zeros(2 * M), np.full(2 * M, np.inf), np.full(2 * M, np.nan)
    active = np.flatnonzero(np.isfinite(offset))
    for _ in range(MAX_CORRECTIONS):
        if not len(active):
            break
        at, target = offset[active], critical[point[active]]
        reached, t, slope = pull(active, point[active], side[active] * at)
        inside[active] = np.where(t < target, np.maximum(inside[active], at), inside[active])
        outside[active] = np.where(t >= target, np.minimum(outside[active], at), outside[active])
        end[active] = np.where(t >= target * (1 - T_TOLERANCE), reached, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = at * (1 + (target - t) / slope / reached)
        is_bracketed = np.isfinite(outside[active])
        bisected = np.where(is_bracketed, (inside[active] + np.where(is_bracketed, outside[active], 0)) / 2, 2 * at)
        is_valid = (step > inside[active]) & (step < outside[active]) & (step < 4 * at)
        offset[active] = np.where(is_valid, step, bisected)
        active = active[abs(t - target) > T_TOLERANCE * target]
    return end[:M], end[M:]


class _Pull:
    """Refits in which an artificial observation of `variance` [M] pulls a curve to another value at one of its points.

    `slope` [M, P] has the derivatives of the best coordinates by the value of the curve. Each refit starts at the last.
    """

    def __init__(self, fit: Fit, curve: Curve, x: Floats, variance: Floats, slope: Floats) -> None:
        sample, law = fit.sample, fit.law
        n, P = len(sample.log_y), len(fit.theta)
        self.fit, self.curve, self.x, self.variance, self.slope = fit, curve, x, variance, slope
        rows = single_block(law, sample)
        self.blocks = [rows, replace(rows, law=curve, x_IV=x, rows=np.arange(n, n + len(x)))]
        self.bounds = coordinate_bounds(law, sample)
        self.centre = curve.log_value(fit.theta[None], x)[0]
        self.grid = grid_starts(law, sample)
        self.grid_values = curve.log_value(self.grid, x)
        self.grid_sse = ((sample.log_y - law.log_value(self.grid, sample.centred)) ** 2).sum(axis=1)
        self.last = np.full((2 * len(x), P), np.nan)

    def __call__(self, which: np.ndarray, point: np.ndarray, offset: Floats) -> tuple[Floats, Floats, Floats]:
        """Refit with observations at distances `offset` [R] from the estimate at `point` [R], for the ends `which` [R].

        Returns the distance that the curve reaches, |t| there, and the slope of |t| by that distance, each [R].
        """
        fit, n, R = self.fit, len(self.fit.sample.log_y), len(which)
        value, replicate = self.centre[point] + offset, np.arange(len(which))
        weight = fit.sigma**2 / self.variance[point]
        log_y, weights = np.zeros((R, n + len(self.x))), np.zeros((R, n + len(self.x)))
        log_y[:, :n], weights[:, :n] = fit.sample.log_y, 1
        log_y[replicate, n + point], weights[replicate, n + point] = value, weight
        starts = self._starts(which, point, value, weight)
        S = len(starts) // R
        targets, weights = np.tile(log_y, (S, 1)), np.tile(weights, (S, 1))
        optimum = minimise(self.blocks, targets, starts, self.bounds, weights=weights, tolerance=1e-7, max_steps=60)
        objective = optimum.objective.reshape(S, R)
        best = objective.argmin(axis=0)
        theta = optimum.phi.reshape(S, R, -1)[best, replicate]
        self.last[which] = theta
        reached = self.curve.log_value(theta, self.x)[replicate, point]
        residual = value - reached
        sse = 2 * objective.min(axis=0) - weight * residual**2
        t = np.sqrt(np.maximum(sse - fit.sse, 0)) / fit.sigma
        return abs(reached - self.centre[point]), t, abs(residual) / self.variance[point] / np.maximum(t, 1e-9)

    def _starts(self, which: np.ndarray, point: np.ndarray, value: Floats, weight: Floats) -> Floats:
        """Starts [S R, P]: the last refit, or else the estimate moved linearly; the best of the grid; no floor."""
        law, sample = self.fit.law, self.fit.sample
        moved = self.fit.theta + self.slope[point] * (value - self.centre[point])[:, None]
        last = self.last[which]
        near = np.where(np.isnan(last), raise_small_terms(law, sample, moved), last)
        cost = self.grid_sse[:, None] + weight * (self.grid_values[:, point] - value) ** 2
        starts = [near, self.grid[cost.argmin(axis=0)]]
        if law.floor is not None:
            starts.append(near.copy())
            starts[-1][:, law.floor] = self.bounds[0][law.floor]
        return np.concatenate(starts)
