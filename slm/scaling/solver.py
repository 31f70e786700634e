"""Minimise a robust or squared loss of log residuals for many data sets at once, by a damped Newton method.

Notable:
- R replicates (starts, bootstrap samples, points of a profile likelihood) share the variables of the data. They differ
  in targets, weights, starts or offsets, so a thousand bootstrap fits are a few dozen array operations.
- The full Hessian, not Gauss-Newton's, makes convergence quadratic. The steps are those of `slm.scaling.step`.
- Each family f is a block of rows with coordinates theta_f = offset_f + M_f phi. The matrices M_f let families share
  exponents but not coefficients, or fix a linear function of the coordinates, as in a profile likelihood.

Axes (`x_IV` is [I, V]): R replicates, I rows, V variables, Q free parameters phi, P coordinates of a block.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import NamedTuple, Protocol

import numpy as np

from slm.scaling.forms import Curvature, Floats, moment
from slm.scaling.step import Bounds, State, Step, newton_step

FINE_TOLERANCE = 1e-13
"""Tolerance of fits whose parameters are reported. It makes these accurate to a millionth of their standard error."""
MIN_DAMPING = 1e-9  # relative to the curvature of each coordinate
DAMPING_GROWTH = 4.0  # after a step that does not lower the objective; doubled after each further one
PATIENCE = 15
"""Further steps of a search after another one for the same minimum has converged."""


@dataclass(frozen=True)
class Loss:
    """Huber's loss (1964) of a log residual r: r^2/2 up to |r| = `delta`, then delta (|r| - delta/2).

    An infinite delta gives least squares. Hoffmann et al. 2022 (arXiv:2203.15556), appendix D.3, use 1e-3.
    """

    delta: float = np.inf
    is_on_linear_scale: bool = False  # squares y - L, not r = log y - log L: the loss is y^2 (1 - exp(-r))^2 / 2

    @property
    def name(self) -> str:
        """The name of the loss in settings and files."""
        if self.is_on_linear_scale:
            return "linear"
        return "least_squares" if math.isinf(self.delta) else "huber"

    def scaled_residuals(self, r: Floats, log_y: Floats) -> Floats:
        """The residuals that the loss squares: y - L on the linear scale, else the log residuals `r`."""
        return np.asarray(-np.exp(log_y) * np.expm1(-r)) if self.is_on_linear_scale else r

    def weight(self, log_y: Floats) -> Floats:
        """The weight of each row: on the linear scale y^2, which turns the (1 - L/y)^2 of `value` into (y - L)^2."""
        return np.exp(2 * log_y) if self.is_on_linear_scale else np.ones_like(log_y)

    def value(self, r: Floats) -> Floats:
        """The loss of each log residual, without the factor `weight`."""
        if self.is_on_linear_scale:
            return 0.5 * np.expm1(-r) ** 2
        if math.isinf(self.delta):
            return 0.5 * r * r
        distance = np.abs(r)
        return np.where(distance <= self.delta, 0.5 * r * r, self.delta * (distance - 0.5 * self.delta))

    def first_derivative(self, r: Floats) -> Floats:
        """Derivative of `value`."""
        if self.is_on_linear_scale:
            return np.asarray(-np.exp(-r) * np.expm1(-r))
        return r if math.isinf(self.delta) else np.clip(r, -self.delta, self.delta)

    def second_derivative(self, r: Floats) -> Floats:
        """Second derivative of `value`."""
        if self.is_on_linear_scale:
            return np.asarray(np.exp(-r) * (2 * np.exp(-r) - 1))
        if math.isinf(self.delta):
            return np.ones_like(r)
        return (np.abs(r) <= self.delta).astype(np.float64)

    def scale(self, r: Floats) -> Floats:
        """The weights of iteratively reweighted least squares (`first_derivative` / r), which scale the damping."""
        if self.is_on_linear_scale:
            return np.exp(-2 * r)
        if math.isinf(self.delta):
            return np.ones_like(r)
        return np.minimum(1.0, self.delta / np.maximum(np.abs(r), 1e-300))


class Curve(Protocol):
    """A law, or another function of its coordinates. See `slm.scaling.forms.Law`."""

    @property
    def num_coefficients(self) -> int:
        """K: the first K coordinates are logarithms of coefficients."""

    @property
    def is_linear(self) -> bool:
        """Whether the values are linear in the coordinates."""

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """The values [R, I] with which rows are compared."""

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """The values [R, I], their gradient [R, P, I], and weighted sums of Hessians and squared gradients."""


@dataclass(frozen=True)
class Block:
    """Rows that follow `law` with coordinates theta = offset + matrix @ phi.

    Matrix and offset may differ between replicates: then they are [R, P, Q] and [R, P].
    """

    law: Curve
    x_IV: Floats
    rows: np.ndarray  # indices of the block's rows among all rows
    matrix: Floats  # [P, Q]
    offset: Floats  # [P]

    @cached_property
    def is_plain(self) -> bool:
        """Whether the coordinates are the free parameters."""
        return self.matrix.ndim == 2 and np.array_equal(self.matrix, np.eye(len(self.matrix))) and not self.offset.any()

    def subset(self, replicates: np.ndarray) -> "Block":
        """The block of some replicates."""
        if self.matrix.ndim == 2 and self.offset.ndim == 1:
            return self
        matrix = self.matrix if self.matrix.ndim == 2 else self.matrix[replicates]
        return replace(self, matrix=matrix, offset=self.offset if self.offset.ndim == 1 else self.offset[replicates])

    def theta(self, phi: Floats) -> Floats:
        """The coordinates [R, P] for free parameters `phi` [R, Q]."""
        return phi if self.is_plain else self.offset + _times(self.matrix, phi)


@dataclass(frozen=True)
class Optimum:
    """The result of a minimisation; each array has one entry per replicate."""

    phi: Floats
    objective: Floats
    decrement: Floats  # Newton's estimate of how much lower the objective can still get
    gradient_norm: Floats  # largest slope along a coordinate; residuals and coordinates are scaled to the data
    converged: np.ndarray

    @property
    def best(self) -> int:
        """The replicate with the lowest objective."""
        return int(np.argmin(self.objective))


def minimise(
    blocks: Sequence[Block],
    log_y: Floats,
    start: Floats,
    bounds: Bounds,
    *,
    loss: Loss = Loss(),
    weights: Floats | None = None,
    max_steps: int = 200,
    tolerance: float = 1e-9,
    rivals: int = 1,
    patience: int = PATIENCE,
) -> Optimum:
    """Minimise sum_i w_i loss(log_y_i - log L_i) from `start` [R, Q] within `bounds`, two of [Q] or [R, Q].

    `log_y` is [I] or [R, I], `weights` [R, I]. A replicate has converged when Newton's decrement is below `tolerance`
    times its objective. With S `rivals`, replicates r, r + R/S, r + 2R/S, ... search for the same minimum: once one of
    them has converged, the others go on for only `patience` steps.
    """
    # Where |r| > delta, the second derivative is 0, so with a small delta Newton's method must start near the minimum.
    # Rough minimisations with larger deltas find such a start (continuation).
    deltas = [loss.delta]
    while deltas[-1] < 0.03:
        deltas.append(4 * deltas[-1])
    for delta in reversed(deltas[1:]):
        problem = _problem(blocks, log_y, Loss(delta), weights)
        start = _newton(problem, start, bounds, 30, 1e-3, rivals, patience).phi
    return _newton(_problem(blocks, log_y, loss, weights), start, bounds, max_steps, tolerance, rivals, patience)


class _Problem(NamedTuple):
    loss: Loss
    blocks: list[Block]
    log_y: list[Floats]  # of each block, [I] or [R, I]
    weights: list[Floats]  # of each block, [I] or [R, I]

    def subset(self, replicates: np.ndarray) -> "_Problem":
        """The problem of some replicates."""
        log_y, weights = (
            [part if part.ndim == 1 else part[replicates] for part in parts] for parts in (self.log_y, self.weights)
        )
        return _Problem(self.loss, [block.subset(replicates) for block in self.blocks], log_y, weights)

    @property
    def is_log(self) -> np.ndarray:
        """Whether each free parameter is the log of a coefficient, so that steps are taken in it: [Q] or [R, Q]."""
        is_log = []
        for block in self.blocks:
            M, K = block.matrix, 0 if block.law.is_linear else block.law.num_coefficients
            is_log.append((M[..., K:, :] == 0).all(axis=-2) & np.isin(M[..., :K, :], (0, 1)).all(axis=-2))
        return np.all(is_log, axis=0)

    def state_at(self, phi: Floats) -> State:
        """The state at points `phi` [R, Q]."""
        parts = []
        for block, y, w in zip(self.blocks, self.log_y, self.weights, strict=True):
            fitted, jacobian, curvature = block.law.derivatives(block.theta(phi), block.x_IV)
            r = y - fitted
            slope = -w * self.loss.first_derivative(r)  # of the objective, by the fitted value
            gradient, scale = moment(jacobian, slope), moment(jacobian**2, w * self.loss.scale(r))
            hessian = curvature(slope, w * self.loss.second_derivative(r))
            if not block.is_plain:
                M = block.matrix
                gradient, hessian, scale = _times(M.mT, gradient), _in_free(hessian, M), _times(M.mT**2, scale)
            parts.append((np.vecdot(self.loss.value(r), w), gradient, hessian, scale))
        return State(phi, *(reduce(np.add, of_blocks) for of_blocks in zip(*parts, strict=True)))


def _problem(blocks: Sequence[Block], log_y: Floats, loss: Loss, weights: Floats | None) -> _Problem:
    """Take the rows of each block from targets [I] or [R, I] and weights [R, I]."""
    targets = [log_y[..., block.rows] for block in blocks]
    of_rows = [
        loss.weight(y) if weights is None else weights[:, block.rows] * loss.weight(y)
        for block, y in zip(blocks, targets, strict=True)
    ]
    return _Problem(loss, list(blocks), targets, of_rows)


def _times(M: Floats, vectors: Floats) -> Floats:
    """Return M v for each v of `vectors`, where M is one matrix, or one for each vector."""
    return np.asarray(vectors @ M.T if M.ndim == 2 else np.matmul(M, vectors[:, :, None])[:, :, 0])


def _in_free(matrices: Floats, M: Floats) -> Floats:
    """Return M' matrices M [R, Q, Q] of matrices [R, P, P]: large products are faster than many small ones."""
    if M.ndim == 3:
        return np.matmul(M.mT, np.matmul(matrices, M))
    R, P, _ = matrices.shape
    return np.matmul(M.T, (matrices.reshape(R * P, P) @ M).reshape(R, P, -1))


def _newton(
    problem: _Problem, start: Floats, bounds: Bounds, max_steps: int, tolerance: float, rivals: int, patience: int
) -> Optimum:
    """Take damped Newton steps until each replicate has converged, or no step lowers its objective any more."""
    R = len(start)
    limits, is_log = np.empty((2, *start.shape)), np.broadcast_to(problem.is_log, start.shape)
    limits[0], limits[1] = bounds
    phi, objective = np.clip(start, *limits), np.zeros(R)
    decrement, gradient_norm, converged = np.full(R, np.inf), np.full(R, np.inf), np.zeros(R, dtype=bool)
    replicates = np.arange(R)  # those that still improve; all but the results have only these from here on
    num_rows = sum(y.shape[-1] for y in problem.log_y)
    rounding = 1e-26 * max(1, num_rows)  # smaller objectives consist of rounding errors of log_y
    with np.errstate(all="ignore"):
        state = problem.state_at(phi.copy())
        damping, growth = np.full(R, 1e-3), np.full(R, DAMPING_GROWTH)
        last_step = np.full(R // rivals, max_steps - 1)  # of each group of rivals
        groups = replicates % len(last_step)
        for i in range(max_steps):
            step = newton_step(state, damping, limits, is_log)
            is_finite, is_stuck = np.isfinite(state.value), damping >= 1e12
            is_finished = is_finite & (step.decrement <= tolerance * state.value + rounding)
            if is_finished.any():
                finished = groups[is_finished]
                last_step[finished] = np.minimum(last_step[finished], i + patience)
            is_active = is_finite & ~is_finished & ~is_stuck & (last_step[groups] > i)
            if not is_active.all():
                ended, kept = np.flatnonzero(~is_active), np.flatnonzero(is_active)
                rows = replicates[ended]
                # A formula may be 0 or negative, which has no log.
                value, phi[rows] = np.where(is_finite, state.value, np.inf)[ended], state.phi[ended]
                objective[rows], decrement[rows] = value, step.decrement[ended]
                gradient_norm[rows] = np.abs(step.slope[ended]).max(axis=1) / np.sqrt(2 * value + 1e-300)
                # If no step lowers the objective any more, a decrement above `tolerance` may be due to rounding errors.
                converged[rows] = is_finished[ended] | is_stuck[ended] & (step.decrement[ended] <= 1e-9 * value)
                if not len(kept):
                    break
                problem, replicates, groups = problem.subset(kept), replicates[kept], groups[kept]
                damping, growth = damping[kept], growth[kept]
                limits, is_log = limits[:, kept], is_log[kept]
                state = State(*(part[kept] for part in state))
                step = Step(*(part[kept] for part in step))
            trial = problem.state_at(np.clip(state.phi + step.change, *limits))
            gain = (state.value - trial.value) / step.predicted  # near 1 where the quadratic model holds
            is_better = trial.value < state.value
            factor = np.where(gain > 0.75, 0.1, np.where(gain < 0.25, 2.0, 1.0))
            damping = np.maximum(damping * np.where(is_better, factor, growth), MIN_DAMPING)
            growth = np.where(is_better, DAMPING_GROWTH, 2 * growth)
            if is_better.all():
                state = trial
            else:
                for part, trial_part in zip(state, trial, strict=True):
                    np.copyto(part.T, trial_part.T, where=is_better)  # .T: replicates come last, as in `is_better`
    return Optimum(phi, objective, decrement, gradient_norm, converged)
