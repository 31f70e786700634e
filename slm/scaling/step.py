"""One damped Newton step within bounds, for many replicates at once.

Notable:
- Negative curvature is reversed and damped (Levenberg 1944; Dauphin et al. 2014, arXiv:1406.2572).
- Coordinates of coefficients are logarithms, but steps are taken in the coefficients, in which laws are linear. In
  logs, a term that vanishes would need dozens of steps, and valleys in which two terms trade off are more curved.
- An active set handles the bounds: if a step would leave them, the coordinates that stay inside are solved for again.

Axes: R replicates, Q free parameters phi.
"""

from typing import NamedTuple

import numpy as np

from slm.scaling.forms import Floats, diagonal

Bounds = tuple[Floats, Floats]
MIN_ELIMINATED = 32  # systems; fewer are decomposed into eigenvalues in less time
MIN_PIVOT = 1e-8  # of a Hessian that counts as positive definite


class State(NamedTuple):
    """Points phi [R, Q]; objective [R], gradient [R, Q], Hessian [R, Q, Q] and scale of damping [R, Q] at these."""

    phi: Floats
    value: Floats
    gradient: Floats
    hessian: Floats
    damping_scale: Floats


class Step(NamedTuple):
    """A step of R replicates; `decrement` and `predicted` are decreases of the objective under its quadratic model."""

    change: Floats  # of phi [R, Q]
    predicted: Floats  # by the step [R]
    decrement: Floats  # by the step without damping that would be best if no bound were near [R]
    slope: Floats  # along coordinates that no bound holds, in units of their curvature [R, Q]


def newton_step(state: State, damping: Floats, bounds: Floats, is_log: np.ndarray) -> Step:
    """Return the damped Newton step that stays within the lower and upper `bounds` [2, R, Q]."""
    scale = state.damping_scale
    unit = np.sqrt(np.maximum(scale, 1e-16 * scale.max(axis=1, keepdims=True) + 1e-300))  # of each coordinate
    # Local coordinates are u = phi' - phi, or exp(phi' - phi) - 1 for logs, in units of `unit`.
    gradient, hessian = state.gradient / unit, state.hessian / (unit[:, :, None] * unit[:, None, :])
    diagonal(hessian)[:] -= np.where(is_log, gradient / unit, 0.0)
    if not np.isfinite(gradient.sum() + hessian.sum()):
        gradient[~np.isfinite(gradient)] = 0.0
        hessian[~np.isfinite(hessian)] = 0.0
    distance = bounds - state.phi
    low, high = np.where(is_log, np.expm1(np.minimum(distance, 500.0)), distance) * unit
    is_free = np.where(gradient > 0, -low, high) > 0
    slope = gradient * is_free
    local, decrement = _step_within(_Model(gradient, hessian), damping, (low, high), is_free)
    predicted = -np.vecdot(gradient + 0.5 * np.matmul(hessian, local[:, :, None])[:, :, 0], local)
    # Where the curvature is negative, the quadratic model may predict an increase.
    predicted = np.where(predicted > 0, predicted, np.maximum(decrement, 1e-300))
    local /= unit
    change = np.where(is_log, np.log1p(np.maximum(local, -1 + 1e-12)), local)
    return Step(change, predicted, decrement, slope)


class _Model(NamedTuple):
    """A quadratic model of the objective in local coordinates: gradient [R, Q] and Hessian [R, Q, Q]."""

    gradient: Floats
    hessian: Floats

    def subset(self, replicates: np.ndarray | slice, is_free: np.ndarray, moved: Floats) -> "_Model":
        """The model of the coordinates that are free, of some replicates, after the others were `moved` [R, Q].

        A coordinate that is not free gets a gradient of 0 and a row of the identity as Hessian.
        """
        gradient, hessian = self.gradient[replicates], self.hessian[replicates]
        if is_free.all():
            return _Model(gradient, hessian)
        slope = gradient + np.matmul(hessian, moved[:, :, None])[:, :, 0]
        are_free = is_free[:, :, None] & is_free[:, None, :]
        return _Model(np.where(is_free, slope, 0.0), np.where(are_free, hessian, np.eye(is_free.shape[1])))


def _step_within(model: _Model, damping: Floats, bounds: Bounds, is_free: np.ndarray) -> tuple[Floats, Floats]:
    """Return steps [R, Q] that stop at bounds [R, Q], and decrements [R].

    A coordinate that would leave the bounds is moved to its bound, and the others are solved for again.
    """
    low, high = bounds
    step, decrement = np.zeros_like(low), np.zeros(len(low))
    moved = np.zeros_like(low)  # of coordinates that are not free
    todo: np.ndarray | slice = slice(None)  # at first all, as a slice, which copies nothing: most steps stay inside
    while True:
        free, moved_now = is_free[todo], moved[todo]
        solution, decrement_now = _solve(model.subset(todo, free, moved_now), damping[todo])
        step_now = np.where(free, -solution, moved_now)
        step[todo] = step_now
        # Moves to bounds that are still some way off are not part of the decrement.
        decrement[todo] = np.where(moved_now.any(axis=1), decrement[todo], decrement_now)
        leaves = free & ((step_now < low[todo]) | (step_now > high[todo]))
        if not leaves.any():
            return step, decrement
        todo, leaves = np.arange(len(low))[todo][leaves.any(axis=1)], leaves[leaves.any(axis=1)]
        moved[todo] = np.where(leaves, np.clip(step[todo], low[todo], high[todo]), moved[todo])
        is_free[todo] &= ~leaves


def _solve(model: _Model, damping: Floats) -> tuple[Floats, Floats]:
    """Return (|H| + damping)^-1 gradient [R, Q] and gradient' |H|^-1 gradient / 2 [R].

    |H| is the Hessian with the absolute values of its eigenvalues.
    """
    if len(damping) < MIN_ELIMINATED:
        return _decompose(model, damping)
    solution, decrement, is_positive = _eliminate(model, damping)
    if not is_positive.all():
        rest = np.flatnonzero(~is_positive)
        rest_of_model = _Model(model.gradient[rest], model.hessian[rest])
        solution[rest], decrement[rest] = _decompose(rest_of_model, damping[rest])
    return solution, decrement


def _decompose(model: _Model, damping: Floats) -> tuple[Floats, Floats]:
    """As `_solve`, from eigenvalues and eigenvectors."""
    eigenvalues, eigenvectors = np.linalg.eigh(model.hessian)
    projected = np.matmul(model.gradient[:, None], eigenvectors)[:, 0]
    curvatures = np.maximum(np.abs(eigenvalues), 1e-10)
    shrunken = projected / (curvatures + damping[:, None])
    solution = np.matmul(eigenvectors, shrunken[:, :, None])[:, :, 0]
    return solution, 0.5 * np.vecdot(projected, projected / curvatures)


def _eliminate(model: _Model, damping: Floats) -> tuple[Floats, Floats, np.ndarray]:
    """As `_solve`, where the Hessian is positive definite; the third result is whether it is so [R].

    Gaussian elimination of all systems at once is several times faster than LAPACK, which takes them one by one.
    """
    R, Q = model.gradient.shape
    upper, x = np.empty((Q, Q, 2, R)), np.empty((Q, 2, R))  # 2: without and with damping
    upper[:], x[:] = model.hessian.T[:, :, None], model.gradient.T[:, None]
    upper[range(Q), range(Q), 1] += damping
    for j in range(Q - 1):
        factor = upper[j, j + 1 :] / upper[j, j]
        upper[j + 1 :, j + 1 :] -= factor[:, None] * upper[j, j + 1 :]
        x[j + 1 :] -= factor * x[j]
    # x is now L^-1 gradient, where L D L' is the matrix and D has the pivots.
    pivots = upper[range(Q), range(Q)]
    decrement = 0.5 * (x[:, 0] ** 2 / pivots[:, 0]).sum(axis=0)
    solution = x[:, 1]
    for j in reversed(range(Q)):
        solution[j] = (solution[j] - (upper[j, j + 1 :, 1] * solution[j + 1 :]).sum(axis=0)) / pivots[j, 1]
    is_positive = np.asarray((pivots[:, 0] > MIN_PIVOT).all(axis=0))
    return solution.T, decrement, is_positive
