"""Minimise a robust or squared loss of log residuals for many data sets at once, by a damped Newton method.

Notable: R replicates (starts, bootstrap samples, points of a profile) share the data matrix and differ in targets,
weights, starts or fixed offsets, so a thousand bootstrap fits are a few dozen array operations. The Hessian is the full
one, not Gauss-Newton's, so convergence is quadratic. Negative curvature is reversed and damped (Levenberg 1944; Dauphin
et al. 2014, arXiv:1406.2572); an active set handles the bounds.

Families are blocks: block f has coordinates theta_f = offset_f + M_f phi. A choice of matrices lets families share
exponents but not coefficients, or fixes one linear function of the coordinates, as in a profile.

Axes: R replicates, I rows, Q free parameters phi, P coordinates of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from slm.scaling.forms import Curvature, Floats, gram, moment

_Bounds = tuple[Floats, Floats]
FINE_TOLERANCE = 1e-13
"""Tolerance of fits whose parameters are quoted: they are then accurate to a millionth of their standard error."""


@dataclass(frozen=True)
class Loss:
    """Huber's loss of a log residual r: r^2/2 within `delta`, delta (|r| - delta/2) beyond; least squares if infinite.

    Huber 1964; with delta 1e-3 on log losses it is Hoffmann et al. 2022 (arXiv:2203.15556), appendix D.3.
    """

    delta: float = np.inf
    linear: bool = False
    """Least squares of the target itself: with r = log y - log L it is y^2 (1 - exp(-r))^2 / 2."""

    @property
    def name(self) -> str:
        """The name in settings and files."""
        return "linear" if self.linear else "least_squares" if np.isinf(self.delta) else "huber"

    def residuals(self, r: Floats, log_y: Floats) -> Floats:
        """The residuals that are squared: log residuals `r`, or y - L for the linear loss."""
        return np.asarray(-np.exp(log_y) * np.expm1(-r)) if self.linear else r

    def weight(self, log_y: Floats) -> Floats:
        """The weight of each row: y^2 for the linear loss, so that residuals are those of the target itself."""
        return np.exp(2 * log_y) if self.linear else np.ones_like(log_y)

    def value(self, r: Floats) -> Floats:
        """Loss of each residual."""
        if self.linear:
            return 0.5 * np.expm1(-r) ** 2
        if np.isinf(self.delta):
            return 0.5 * r * r
        size = np.abs(r)
        return np.where(size <= self.delta, 0.5 * r * r, self.delta * (size - 0.5 * self.delta))

    def first_derivative(self, r: Floats) -> Floats:
        """Derivative of `value`."""
        if self.linear:
            return np.asarray(-np.exp(-r) * np.expm1(-r))
        return np.clip(r, -self.delta, self.delta)

    def second_derivative(self, r: Floats) -> Floats:
        """Second derivative of `value`."""
        if self.linear:
            return np.asarray(np.exp(-r) * (2 * np.exp(-r) - 1))
        return (np.abs(r) <= self.delta).astype(np.float64)

    def scale(self, r: Floats) -> Floats:
        """first_derivative / r: the weights of iteratively reweighted least squares, which set the scale of damping."""
        if self.linear:
            return np.exp(-2 * r)
        return np.minimum(1.0, self.delta / np.maximum(np.abs(r), 1e-300))


class Curve(Protocol):
    """A law, or another function of its coordinates. See `slm.scaling.forms.Law`."""

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """The values [R, I] that rows are compared with."""

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """The values [R, I], their gradient [R, P, I], and weighted sums of Hessians as a function of weights."""


@dataclass(frozen=True)
class Block:
    """Rows that follow `law` with coordinates offset + matrix @ phi. `offset` is [P], or [R, P] if it differs."""

    law: Curve
    x_IV: Floats
    rows: np.ndarray
    matrix: Floats
    offset: Floats

    def theta(self, phi: Floats, chosen: np.ndarray) -> Floats:
        """Coordinates [R, P] of free parameters [R, Q] of the replicates `chosen`."""
        offset = self.offset if self.offset.ndim == 1 else self.offset[chosen]
        return offset + phi @ self.matrix.T


@dataclass(frozen=True)
class Optimum:
    """The result of a minimisation; each array has one row per replicate."""

    phi: Floats
    objective: Floats
    decrement: Floats
    """Newton's estimate of how much lower the objective can still get."""
    gradient_norm: Floats
    """Largest slope along a coordinate, with residuals and coordinates both scaled to the data (no units)."""
    converged: np.ndarray

    @property
    def best(self) -> int:
        """The replicate with the lowest objective."""
        return int(np.argmin(self.objective))


def minimise(
    blocks: Sequence[Block],
    log_y: Floats,
    start: Floats,
    bounds: _Bounds,
    *,
    loss: Loss = Loss(),
    weights: Floats | None = None,
    max_steps: int = 200,
    tolerance: float = 1e-9,
) -> Optimum:
    """Minimise sum_i w_i loss(log_y_i - log L_i) from `start` [R, Q] within `bounds` ([Q], [Q]).

    `log_y` is [I] or [R, I], `weights` [R, I]. A replicate has converged when Newton's decrement is below `tolerance`
    times its objective.
    """
    # Beyond delta the second derivative is 0, so with a small delta Newton's method must start near the minimum. Rough
    # minimisations with larger deltas lead there (continuation).
    deltas = [loss.delta]
    while deltas[-1] < 0.03:
        deltas.append(4 * deltas[-1])
    for delta in reversed(deltas[1:]):
        problem = _Problem(blocks, log_y, Loss(delta), weights)
        start = _newton(problem, start, bounds, max_steps=30, tolerance=1e-3).phi
    return _newton(_Problem(blocks, log_y, loss, weights), start, bounds, max_steps, tolerance)


class _State(NamedTuple):
    """Points [R, Q], with objective [R], gradient, Hessian [R, Q, Q] and scale of damping [R, Q] there."""

    phi: Floats
    value: Floats
    gradient: Floats
    hessian: Floats
    damping_scale: Floats


class _Problem(NamedTuple):
    blocks: Sequence[Block]
    log_y: Floats
    loss: Loss
    weights: Floats | None

    def at(self, phi: Floats, chosen: np.ndarray) -> _State:
        """The state at points [R, Q] of the replicates `chosen`."""
        R, Q = phi.shape
        state = _State(phi, np.zeros(R), np.zeros((R, Q)), np.zeros((R, Q, Q)), np.zeros((R, Q)))
        for block in self.blocks:
            y = self.log_y[block.rows] if self.log_y.ndim == 1 else self.log_y[np.ix_(chosen, block.rows)]
            fitted, jacobian, curvature = block.law.derivatives(block.theta(phi, chosen), block.x_IV)
            r, M = y - fitted, block.matrix
            w: Floats = np.broadcast_to(self.loss.weight(y), r.shape)
            if self.weights is not None:
                w = w * self.weights[np.ix_(chosen, block.rows)]
            slope = w * self.loss.first_derivative(r)
            state.value[:] += (w * self.loss.value(r)).sum(1)
            state.gradient[:] -= moment(jacobian, slope) @ M
            state.hessian[:] += M.T @ (gram(jacobian, w * self.loss.second_derivative(r)) - curvature(slope)) @ M
            state.damping_scale[:] += moment(jacobian**2, w * self.loss.scale(r)) @ M**2
        state.value[~np.isfinite(state.value)] = np.inf  # a law by formula that is not above 0 has no log
        return state


def _newton(problem: _Problem, start: Floats, bounds: _Bounds, max_steps: int, tolerance: float) -> Optimum:
    (low, high), R = bounds, len(start)
    phi, objective = np.clip(start, low, high), np.zeros(R)
    decrement, norm, converged = np.full(R, np.inf), np.full(R, np.inf), np.zeros(R, dtype=bool)
    chosen = np.arange(R)
    # Objectives below this consist of the rounding errors of log_y.
    rounding = 1e-26 * max(1, problem.log_y.shape[-1])
    with np.errstate(all="ignore"):
        state = problem.at(phi.copy(), chosen)
        damping = np.full(R, 1e-3)
        for _ in range(max_steps):
            free = ~(((state.phi <= low) & (state.gradient > 0)) | ((state.phi >= high) & (state.gradient < 0)))
            step, decrement[chosen], norm[chosen] = _step(state, damping, free)
            phi[chosen], objective[chosen] = state.phi, state.value
            is_possible, decrement_now = np.isfinite(state.value), decrement[chosen]
            is_finished = is_possible & (decrement_now <= tolerance * state.value + rounding)
            # If no step helps any more, only rounding errors are left, even if `tolerance` is not reached.
            is_stuck = (damping >= 1e12) & (decrement_now <= 1e-9 * state.value)
            converged[chosen] = is_finished | is_stuck
            active = is_possible & ~is_finished & (damping < 1e12)
            if not active.any():
                break
            chosen, damping, step = chosen[active], damping[active], step[active]
            state = _State(*(part[active] for part in state))
            trial = problem.at(np.clip(state.phi + step, low, high), chosen)
            better = trial.value < state.value
            damping = np.where(better, damping / 5, damping * 4)
            for part, new in zip(state, trial, strict=True):
                part[better] = new[better]
    return Optimum(phi, objective, decrement, norm, converged)


def _step(state: _State, damping: Floats, free: np.ndarray) -> tuple[Floats, Floats, Floats]:
    """Damped Newton step [R, Q], the decrement of an undamped one [R], and the scaled gradient norm [R]."""
    scale = state.damping_scale
    unit = np.sqrt(np.maximum(scale, 1e-16 * scale.max(axis=1, keepdims=True) + 1e-300))
    gradient = np.where(free, state.gradient / unit, 0.0)
    free_pairs = free[:, :, None] & free[:, None, :]
    hessian = np.where(free_pairs, state.hessian / (unit[:, :, None] * unit[:, None, :]), 0.0)
    hessian += np.where(free, 0.0, 1.0)[:, :, None] * np.eye(free.shape[1])
    hessian = np.nan_to_num(hessian)
    values, vectors = np.linalg.eigh(hessian)
    projected = np.einsum("rqk,rq->rk", vectors, np.nan_to_num(gradient))
    curvatures = np.maximum(np.abs(values), 1e-10)  # a negative curvature is reversed
    step = -np.einsum("rqk,rk->rq", vectors, projected / (curvatures + damping[:, None])) / unit
    decrement = 0.5 * (projected**2 / curvatures).sum(axis=1)
    return step, decrement, np.abs(gradient).max(axis=1) / np.sqrt(2 * state.value + 1e-300)
