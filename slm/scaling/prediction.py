"""Intervals of what a law says beside its parameters: its value, the result of one more run, the gain of doubling N.

Notable: a law that is no straight line gets profile-likelihood intervals here as its parameters do. An artificial
observation pulls the law to another value at the point; the interval ends where the fit of the real rows has become
worse by t^2 s^2. In simulations (docs/scaling.md) this covers 95 to 97% also where the data hardly identify a floor,
where a studentised bootstrap covers 92 to 95%.

Axes: M asked points, I rows, R replicates, P coordinates, V variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Curvature, Floats, gram
from slm.scaling.laws import Law
from slm.scaling.resample import Ensemble, Kind
from slm.scaling.robust import standard_errors
from slm.scaling.sample import Sample
from slm.scaling.solver import Block, Curve, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts, raise_small_terms

MAX_SEARCHES = 12
"""Corrections of an interval's end."""
CLOSE = 5e-3
"""An end is accepted when t there is right to this share."""
PULL = 0.3
"""Standard error of the artificial observation, in standard errors of the law there. A smaller one makes a valley of
the squares that is too narrow for quick minimisation, a larger one finds no end where a profile flattens."""
LEAST_ERROR = 0.01
"""Least standard error of a law, in those of a row, that a search starts with: coordinates at a bound have none."""


@dataclass(frozen=True)
class Band:
    """A quantity at each asked point [M]: estimate and interval. NaN is an end that the data do not set."""

    centre: Floats
    low: Floats
    high: Floats
    t: Floats
    """Quantile of Student's t that each interval goes by."""

    def of_run(self, sigma: float) -> Band:
        """Where log L is the quantity: the interval of one run's result that scatters by `sigma` about the law."""
        reach = self.t * sigma
        low, high = np.hypot(self.centre - self.low, reach), np.hypot(self.high - self.centre, reach)
        return Band(self.centre, self.centre - low, self.centre + high, self.t)


@dataclass(frozen=True)
class Doubling:
    """L(N) - L(2 N), with other variables held: what doubling N gains. N is the law's first variable."""

    law: Law

    def _doubled(self, x_IV: Floats) -> Floats:
        return x_IV + np.log(2) * (np.arange(x_IV.shape[1]) == 0)

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """The gain itself (it may be negative, so not its logarithm) [R, I]."""
        near, far = self.law.log_value(theta, x_IV), self.law.log_value(theta, self._doubled(x_IV))
        return np.asarray(np.exp(near) - np.exp(far))

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """The gain [R, I], its gradient [R, P, I] and its curvature. See `Law`."""
        near, near_slope, near_curvature = self.law.derivatives(theta, x_IV)
        far, far_slope, far_curvature = self.law.derivatives(theta, self._doubled(x_IV))
        near, far = np.exp(near), np.exp(far)

        def curvature(weights: Floats) -> Floats:
            a, b = weights * near, weights * far
            smaller = near_curvature(a) + gram(near_slope, a)
            return np.asarray(smaller - far_curvature(b) - gram(far_slope, b))

        return near - far, near[:, None] * near_slope - far[:, None] * far_slope, curvature


def band(fit: Fit, log_x: Floats, ensemble: Ensemble | None, *, level: float = 0.95) -> Band:
    """Interval of log L, as the law has it, at log variables [M, V]. See `Band.of_run` for the result of a run.

    Linear laws, least squares: Student's t, exact. Other laws: profile likelihood. Either is widened where rows share
    runs or shapes, by the cluster-robust standard error (`slm.scaling.robust`). Huber's loss: t on the spread of the
    cluster bootstrap; `ensemble` is then `bootstrap(fit, band_kind(fit), ...)`, and `ValueError` is raised without.
    """
    return _band(fit, fit.law, log_x, ensemble, level)


def doubling(fit: Fit, log_x: Floats, ensemble: Ensemble | None, *, level: float = 0.95) -> Band:
    """Interval of L(N) - L(2 N) along the law at log variables [M, V], by profile likelihood or bootstrap as `band`."""
    return _band(fit, Doubling(fit.law), log_x, ensemble, level)


def band_kind(fit: Fit) -> Kind | None:
    """Which bootstrap a band of this fit rests on; None if it needs none."""
    return None if np.isinf(fit.loss.delta) else "cluster"


def new_run_sigma(fit: Fit, runs: Sample) -> float:
    """Standard deviation of one further run about the law, where `fit` may be fitted to means over seeds.

    A mean over k seeds scatters by misfit^2 + pure^2 / k, a run by misfit^2 + pure^2, where `pure` is the scatter
    between seeds of one cell, pooled over the cells of `runs`. Without repeated seeds it is the fit's own scatter.
    """
    means, inverse, squares = runs.by_cell()
    spare = len(inverse) - len(means)
    if len(fit.sample.log_y) != len(means) or spare < 1:
        return fit.sigma
    return float(np.sqrt(fit.sigma**2 + squares / spare * (1 - (1 / np.bincount(inverse)).mean())))


def _band(fit: Fit, curve: Curve, log_x: Floats, ensemble: Ensemble | None, level: float) -> Band:
    x = log_x - fit.sample.refs
    centre = curve.log_value(fit.theta[None], x)[0]
    if fit.degrees_of_freedom < 1:
        nothing = np.full_like(centre, np.nan)
        return Band(centre, nothing, nothing, nothing)
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
    """Delta-method variance of the curve [M]; how the coordinates move with its value [M, P], times that variance."""
    gradient = curve.derivatives(fit.theta[None], x)[1][0]
    move = np.nan_to_num(fit.covariance, nan=0.0) @ gradient
    return np.asarray((gradient * move).sum(axis=0)), move.T


def _profiled(fit: Fit, curve: Curve, x: Floats, critical: Floats) -> tuple[Floats, Floats]:
    """How far `curve` at centred points [M, V] can go down and up until |t| is `critical` [M].

    Newton's method on |t| as a function of the distance, for all ends at once. Where the artificial observation leaves
    the curve is the best fit for that value of it, and the slope of t there follows from the observation's residual. An
    end that is not reached is NaN.
    """
    M = len(x)
    variance, move = _variance(fit, curve, x)
    variance = np.maximum(variance, (LEAST_ERROR * fit.sigma) ** 2)
    pull = _Pull(fit, curve, x, PULL**2 * variance, move / variance[:, None])
    point, side = np.tile(np.arange(M), 2), np.repeat([-1.0, 1.0], M)
    observed = critical[point] * np.sqrt(variance)[point] * (1 + PULL**2)
    inside, outside = np.zeros(2 * M), np.full(2 * M, np.inf)
    end = np.full(2 * M, np.nan)
    going = np.flatnonzero(np.isfinite(observed))
    for _ in range(MAX_SEARCHES):
        if not len(going):
            break
        at, wanted = observed[going], critical[point[going]]
        reached, t, slope = pull(going, point[going], side[going] * at)
        inside[going] = np.where(t < wanted, np.maximum(inside[going], at), inside[going])
        outside[going] = np.where(t >= wanted, np.minimum(outside[going], at), outside[going])
        end[going] = np.where(t >= wanted * (1 - CLOSE), reached, np.nan)
        far = abs(t - wanted) > CLOSE * wanted
        with np.errstate(divide="ignore", invalid="ignore"):
            step = at * (1 + (wanted - t) / slope / reached)
        is_bracketed = np.isfinite(outside[going])
        bisected = np.where(is_bracketed, (inside[going] + np.where(is_bracketed, outside[going], 0)) / 2, 2 * at)
        good = (step > inside[going]) & (step < outside[going]) & (step < 4 * at)
        observed[going] = np.where(good, step, bisected)
        going = going[far]
    return end[:M], end[M:]


class _Pull:
    """Refits in which artificial observations pull a curve to other values at its points, each from the last refit."""

    def __init__(self, fit: Fit, curve: Curve, x: Floats, variance: Floats, move: Floats) -> None:
        sample, law = fit.sample, fit.law
        n, P = len(sample.log_y), len(fit.theta)
        self.fit, self.curve, self.x, self.variance, self.move = fit, curve, x, variance, move
        self.blocks = [
            Block(law, sample.centred, np.arange(n), np.eye(P), np.zeros(P)),
            Block(curve, x, np.arange(n, n + len(x)), np.eye(P), np.zeros(P)),
        ]
        self.bounds = coordinate_bounds(law, sample)
        self.centre = curve.log_value(fit.theta[None], x)[0]
        self.grid = grid_starts(law, sample)
        self.grid_values = curve.log_value(self.grid, x)
        self.grid_sse = ((sample.log_y - law.log_value(self.grid, sample.centred)) ** 2).sum(axis=1)
        self.last = np.full((2 * len(x), P), np.nan)

    def __call__(self, which: np.ndarray, point: np.ndarray, offset: Floats) -> tuple[Floats, Floats, Floats]:
        """Observe values that lie `offset` [R] from the estimate at `point` [R].

        Returns how far the curve follows [R], |t| of that [R], and the slope of |t| in how far it follows [R].
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
        """Starts [S R, P]: the last refit, or the estimate moved linearly; the best of the grid; no floor at all."""
        law, sample = self.fit.law, self.fit.sample
        moved = self.fit.theta + self.move[point] * (value - self.centre[point])[:, None]
        last = self.last[which]
        near = np.where(np.isnan(last), raise_small_terms(law, sample, moved), last)
        cost = self.grid_sse[:, None] + weight * (self.grid_values[:, point] - value) ** 2
        starts = [near, self.grid[cost.argmin(axis=0)]]
        if law.floor is not None:
            starts.append(near.copy())
            starts[-1][:, law.floor] = self.bounds[0][law.floor]
        return np.concatenate(starts)
