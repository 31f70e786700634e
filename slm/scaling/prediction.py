"""Intervals for what a law predicts: its value at a point, the result of a new run, the gain of doubling N.

Notable: for a law that is not a straight line in logs, intervals are from the profile likelihood. An artificial
observation pulls the law to another value at the point. The interval ends where the pull has raised the sum of squares
of the real rows by t^2 s^2, where t is the quantile of Student's t and s the scatter. In simulations (docs/scaling.md)
such intervals cover 95 to 97%, even if the data hardly identify a floor; a studentised bootstrap covers 92 to 95%.

Axes: M points, I rows, R refits, S starts of each refit, P coordinates, V variables.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from slm.scaling.clusters import Ensemble, Kind, scatter_df, standard_errors
from slm.scaling.fitting import Fit, single_block
from slm.scaling.forms import Curvature, Floats, gram
from slm.scaling.laws import Law
from slm.scaling.sample import Sample
from slm.scaling.solver import Curve, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts, raise_small_terms

MAX_SEARCH_STEPS = 12
T_TOLERANCE = 5e-3  # an end is accepted if the relative error of t there is below this
PULL_ERROR = 0.3
"""Standard error of the artificial observation, in standard errors of the law at the point. If it is small, the sum of
squares has too narrow a valley for quick minimisation; if it is large, no end is found where a profile flattens."""
MIN_ERROR = 0.01  # least standard error of the law in a search, in units of `fit.sigma`; at bounds it would be 0


@dataclass(frozen=True)
class Band:
    """Estimate and interval of a quantity at each point [M]. An end is NaN if the data do not bound it."""

    centre: Floats
    low: Floats
    high: Floats
    t: Floats  # the quantile of Student's t of each interval
    t_of_run: float  # the quantile for the scatter of runs around the law

    def for_run(self, sigma: float) -> "Band":
        """Widen a band of log L to prediction intervals of single runs, which scatter by `sigma` around the law.

        The law and the scatter are estimated with different degrees of freedom; each has its own quantile, and the two
        distances add up like independent errors (Zou & Donner 2008).
        """
        distance_down = np.hypot(self.centre - self.low, self.t_of_run * sigma)
        distance_up = np.hypot(self.high - self.centre, self.t_of_run * sigma)
        return replace(self, low=self.centre - distance_down, high=self.centre + distance_up)


@dataclass(frozen=True)
class Doubling:
    """The gain of doubling N, the first variable of the law: L(N) - L(2 N) with the other variables held constant."""

    law: Law
    is_linear = False

    @property
    def num_coefficients(self) -> int:
        """The number of coefficients of the law, in which the gain is linear too."""
        return self.law.num_coefficients

    def _double_first(self, x_IV: Floats) -> Floats:
        doubled_IV = x_IV.copy()
        doubled_IV[:, 0] += np.log(2)
        return doubled_IV

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """The gain [R, I], not its log: a gain may be negative. The method has the name that `Curve` requires."""
        doubled_IV = self._double_first(x_IV)
        values = (self.law.from_scale(self.law.log_value(theta, x)) for x in (x_IV, doubled_IV))
        return np.asarray(next(values) - next(values))

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """The gain [R, I], its gradient [R, P, I] and its curvature: see `Curve`."""
        log_loss, slope, curvature = self.law.derivatives(theta, x_IV)
        doubled_log_loss, doubled_slope, doubled_curvature = self.law.derivatives(theta, self._double_first(x_IV))
        loss, doubled_loss = self.law.from_scale(log_loss), self.law.from_scale(doubled_log_loss)
        first, second = self.law.from_scale_derivatives(log_loss)
        doubled_first, doubled_second = self.law.from_scale_derivatives(doubled_log_loss)

        gradient = first[:, None] * slope - doubled_first[:, None] * doubled_slope

        def gain_curvature(weights: Floats, square_weights: Floats) -> Floats:
            at_x = curvature(weights * first, weights * second)
            at_double = doubled_curvature(weights * doubled_first, weights * doubled_second)
            return at_x - at_double + gram(gradient, square_weights)

        return loss - doubled_loss, gradient, gain_curvature


def needed_bootstrap(fit: Fit) -> Kind | None:
    """Return the kind of bootstrap that a band of this fit needs; None for squared losses, which need no bootstrap."""
    return None if np.isinf(fit.loss.delta) else "cluster"


def new_run_sigma(fit: Fit, runs: Sample) -> float:
    """Return the standard deviation of a new run around the law, also for a `fit` to means over seeds.

    A mean over k seeds has the variance misfit^2 + pure^2 / k, a run has misfit^2 + pure^2, where `pure` is the scatter
    between seeds of one cell, pooled over the cells of `runs`. If no cell has two seeds, returns the fit's scatter.
    """
    means, cell_of_run, squares = runs.by_cell()
    pure_df = len(cell_of_run) - len(means)
    if len(fit.sample.log_y) != len(means) or pure_df < 1:  # not a fit to means, or no cell has two seeds
        return fit.sigma
    pure_variance, seeds_of_cell = squares / pure_df, np.bincount(cell_of_run)
    return float(np.sqrt(fit.sigma**2 + pure_variance * (1 - (1 / seeds_of_cell).mean())))  # sigma^2 has pure^2 / k


def band(
    fit: Fit, log_x: Floats, ensemble: Ensemble | None, *, level: float = 0.95, curve: Curve | None = None
) -> Band:
    """Return intervals of `curve`, by default log L, at log variables [M, V]. See `Band.for_run` for single runs.

    The methods are those of `slm.scaling.intervals.uncertainty`. Raises `ValueError` if a needed `ensemble` is None.
    """
    x = log_x - fit.sample.refs
    curve = curve or fit.law
    centre = curve.log_value(fit.theta[None], x)[0]
    if fit.degrees_of_freedom < 1:
        unknown = np.full_like(centre, np.nan)
        return Band(centre, unknown, unknown, unknown, np.nan)
    t_of_run = float(stats.t.ppf(0.5 + level / 2, scatter_df(fit)))
    if needed_bootstrap(fit) is not None:
        if ensemble is None:
            raise ValueError("the band of this fit needs a bootstrap: see needed_bootstrap")
        num_clusters = len(np.unique(fit.sample.clusters))
        df = max(num_clusters - len(fit.theta), 1)
        t = np.full_like(centre, stats.t.ppf(0.5 + level / 2, df))
        error = curve.log_value(ensemble.theta, x).std(axis=0, ddof=1) * np.sqrt(num_clusters / df)
        return Band(centre, centre - t * error, centre + t * error, t, t_of_run)
    _, gradient_RPM, _ = curve.derivatives(fit.theta[None], x)  # R = 1: the fit
    errors = [standard_errors(fit, gradient) for gradient in gradient_RPM[0].T]
    usual, robust, dfs = np.array(errors).reshape(-1, 3).T  # reshaped for the case of no points
    widening, t = robust / usual, stats.t.ppf(0.5 + level / 2, dfs)
    if fit.law.is_linear and curve is fit.law:
        half_width = t * widening * np.sqrt(_variance(fit, curve, x)[0])
        return Band(centre, centre - half_width, centre + half_width, t, t_of_run)
    distance_down, distance_up = _profile_distances(fit, curve, x, t * widening)
    return Band(centre, centre - distance_down, centre + distance_up, t, t_of_run)


def bands(fit: Fit, points: Sequence[Floats], ensemble: Ensemble | None, *, level: float = 0.95) -> list[Band]:
    """Return the band of log L at each set of log variables [M, V]. One search for all takes little longer than one."""
    joined, ends = band(fit, np.concatenate(points), ensemble, level=level), np.cumsum([len(x) for x in points])[:-1]
    parts = zip(*(np.split(part, ends) for part in (joined.centre, joined.low, joined.high, joined.t)), strict=True)
    return [Band(centre, low, high, t, joined.t_of_run) for centre, low, high, t in parts]


def _variance(fit: Fit, curve: Curve, x: Floats) -> tuple[Floats, Floats]:
    """Return the delta-method variance of the curve [M], and its covariance with the coordinates [M, P]."""
    _, gradient_RPM, _ = curve.derivatives(fit.theta[None], x)
    covariance_PM = np.nan_to_num(fit.covariance, nan=0.0) @ gradient_RPM[0]
    return np.asarray((gradient_RPM[0] * covariance_PM).sum(axis=0)), covariance_PM.T


def _profile_distances(fit: Fit, curve: Curve, x: Floats, critical: Floats) -> tuple[Floats, Floats]:
    """Return how far `curve` at centred points [M, V] can go down, and up, until |t| is `critical` [M].

    Uses Newton's method on |t| as a function of the distance, for all ends at once, with bisection where a step fails.
    A refit with an artificial observation is the best of all fits whose curve has the value that this refit reaches.
    The slope of |t| follows from the residual of the observation. A distance is NaN if |t| never reaches `critical`.
    """
    M = len(x)
    variance, covariance = _variance(fit, curve, x)
    variance = np.maximum(variance, (MIN_ERROR * fit.sigma) ** 2)
    pull = _Pull(fit, curve, x, variance=PULL_ERROR**2 * variance, slope=covariance / variance[:, None])
    point, side = np.tile(np.arange(M), 2), np.repeat([-1.0, 1.0], M)  # of the M low ends, then of the M high ends
    # The offset is how far the observation is from the estimate. A linear curve reaches 1 / (1 + PULL_ERROR^2) of it.
    offsets = critical[point] * np.sqrt(variance)[point] * (1 + PULL_ERROR**2)
    inner, outer = np.zeros(2 * M), np.full(2 * M, np.inf)  # offsets between which the end lies
    distance = np.full(2 * M, np.nan)
    active = np.flatnonzero(np.isfinite(offsets))
    for _ in range(MAX_SEARCH_STEPS):
        if not len(active):
            break
        offset, target = offsets[active], critical[point[active]]
        reached, t, slope = pull(active, point[active], side[active] * offset)
        inner_offset = np.where(t < target, np.maximum(inner[active], offset), inner[active])
        outer_offset = np.where(t >= target, np.minimum(outer[active], offset), outer[active])
        inner[active], outer[active] = inner_offset, outer_offset
        distance[active] = np.where(t >= target * (1 - T_TOLERANCE), reached, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = offset * (1 + (target - t) / slope / reached)  # takes `reached` as proportional to `offset`
        bisected = np.where(np.isfinite(outer_offset), (inner_offset + outer_offset) / 2, 2 * offset)
        is_valid = (newton > inner_offset) & (newton < outer_offset) & (newton < 4 * offset)
        offsets[active] = np.where(is_valid, newton, bisected)
        active = active[abs(t - target) > T_TOLERANCE * target]
    return distance[:M], distance[M:]


class _Pull:
    """Refits in which an artificial observation with `variance` [M] pulls a curve to another value at one point.

    `slope` [M, P] has the derivatives of the best coordinates with respect to the value of the curve. `last` has the
    coordinates of the previous refit for each end of an interval (low ends, then high ends); the next one starts there.
    """

    def __init__(self, fit: Fit, curve: Curve, x: Floats, variance: Floats, slope: Floats) -> None:
        sample, law = fit.sample, fit.law
        n, P = len(sample.log_y), len(fit.theta)
        self.fit, self.curve, self.x, self.variance, self.slope = fit, curve, x, variance, slope
        fitted_rows = single_block(law, sample)
        observations = replace(fitted_rows, law=curve, x_IV=x, rows=np.arange(n, n + len(x)))
        self.blocks = [fitted_rows, observations]
        self.bounds = coordinate_bounds(law, sample)
        self.centre = curve.log_value(fit.theta[None], x)[0]
        self.grid = grid_starts(law, sample)
        self.grid_values = curve.log_value(self.grid, x)
        self.grid_sse = ((sample.log_y - law.log_value(self.grid, sample.centred)) ** 2).sum(axis=1)
        self.last = np.full((2 * len(x), P), np.nan)

    def __call__(self, end: np.ndarray, point: np.ndarray, offset: Floats) -> tuple[Floats, Floats, Floats]:
        """Refit for the ends with indices `end` [R]: observations lie at `point` [R], `offset` [R] from the estimate.

        Returns the distance that the curve reaches, |t| there, and the derivative of |t| by that distance, each [R].
        """
        fit, n, R = self.fit, len(self.fit.sample.log_y), len(end)
        value, refit = self.centre[point] + offset, np.arange(R)  # `refit` has the index of each refit
        weight = fit.sigma**2 / self.variance[point]
        # Each refit has the n real rows with weight 1, and of the M possible observations only its own.
        log_y, weights = np.zeros((R, n + len(self.x))), np.zeros((R, n + len(self.x)))
        log_y[:, :n], weights[:, :n] = fit.sample.log_y, 1
        log_y[refit, n + point], weights[refit, n + point] = value, weight
        starts = self._starts(end, point, value, weight)
        S = len(starts) // R
        targets, weights = np.tile(log_y, (S, 1)), np.tile(weights, (S, 1))
        optimum = minimise(
            self.blocks, targets, starts, self.bounds, weights=weights, tolerance=1e-7, max_steps=60, rivals=S
        )
        objective_SR = optimum.objective.reshape(S, R)
        theta = optimum.phi.reshape(S, R, -1)[objective_SR.argmin(axis=0), refit]
        self.last[end] = theta
        reached = self.curve.log_value(theta, self.x)[refit, point]
        residual = value - reached
        sse = 2 * objective_SR.min(axis=0) - weight * residual**2  # of the real rows
        t = np.sqrt(np.maximum(sse - fit.sse, 0)) / fit.sigma
        slope = abs(residual) / self.variance[point] / np.maximum(t, 1e-9)
        return abs(reached - self.centre[point]), t, slope

    def _starts(self, end: np.ndarray, point: np.ndarray, value: Floats, weight: Floats) -> Floats:
        """Return starts [S R, P]: the last refit (or a linear guess), the best of the grid, and one without a floor."""
        law, sample = self.fit.law, self.fit.sample
        moved = self.fit.theta + self.slope[point] * (value - self.centre[point])[:, None]
        last = self.last[end]
        near = np.where(np.isnan(last), raise_small_terms(law, sample, moved), last)
        cost = self.grid_sse[:, None] + weight * (self.grid_values[:, point] - value) ** 2
        starts = [near, self.grid[cost.argmin(axis=0)]]
        if law.floor is not None:
            without_floor = near.copy()
            without_floor[:, law.floor] = self.bounds[0][law.floor]
            starts.append(without_floor)
        return np.concatenate(starts)
