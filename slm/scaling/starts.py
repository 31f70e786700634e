"""Where to start, and within which bounds: variable projection over a grid of exponents.

Given its exponents a law is linear in its coefficients, so the best coefficients at every point of a grid of exponents
are non-negative least squares on relative residuals, which are log residuals to first order (Golub & Pereyra 1973).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from slm.scaling.forms import Floats, Law
from slm.scaling.sample import Sample

SMALLEST_SHARE = 1e-5
"""A term below this share of the smallest target at the centre of the data counts as absent."""
STARTING_SHARE = 0.03
"""No search starts with a smaller share."""


def grid_starts(law: Law, sample: Sample) -> Floats:
    """One start [R, P] for every combination of exponents in the grid."""
    exponents = law.shape(sample.log_y)[2]
    basis, target = law.basis(exponents, sample.centred, sample.log_y)
    low, high = coordinate_bounds(law, sample)
    with np.errstate(divide="ignore"):
        log_coefficients = np.log(_non_negative(basis, target))
    return off_plateau(law, sample, np.clip(law.join(log_coefficients, exponents), low, high))


def off_plateau(law: Law, sample: Sample, theta: Floats) -> Floats:
    """The same starts with no term so small that its gradient, which is its share of the loss, holds it there."""
    terms = law.coefficients
    if terms < 2:
        return theta
    raised = theta.copy()
    raised[..., :terms] = np.maximum(theta[..., :terms], sample.log_y.min() + np.log(STARTING_SHARE))
    return raised


def coordinate_bounds(law: Law, sample: Sample) -> tuple[Floats, Floats]:
    """Bounds of the coordinates ([P], [P]), wide enough that the data do not determine an estimate that ends at one."""
    P = len(law.parameters)
    if law.is_linear:  # a straight line in logs needs no bound, and may slope either way
        return np.full(P, -np.inf), np.full(P, np.inf)
    low, high, _ = law.shape(sample.log_y)
    coefficients = P - len(low)
    ends = sample.log_y.min() + np.log(SMALLEST_SHARE), sample.log_y.max() + 5.0
    if not law.coefficients:  # joint forms: log terms are not in units of the target
        ends = -60.0, 60.0
    return np.append(np.full(coefficients, ends[0]), low), np.append(np.full(coefficients, ends[1]), high)


def _non_negative(basis: Floats, target: Floats) -> Floats:
    """Non-negative least squares [R, K] of [R, I, K] on [R, I], by trying every subset of columns; K is at most 4."""
    R, _, K = basis.shape
    gram = np.matmul(basis.transpose(0, 2, 1), basis)
    moment = np.einsum("rik,ri->rk", basis, target)
    best, best_value = np.zeros((R, K)), np.zeros(R)
    for size in range(1, K + 1):
        for columns in combinations(range(K), size):
            chosen = np.ix_(range(R), columns, columns)
            ridge = 1e-12 * np.trace(gram[chosen], axis1=1, axis2=2)[:, None, None] * np.eye(size)
            part = np.linalg.solve(gram[chosen] + ridge, moment[:, list(columns), None])[:, :, 0]
            value = -(part * moment[:, list(columns)]).sum(axis=1)
            better = (part >= 0).all(axis=1) & (value < best_value)
            best_value[better] = value[better]
            best[better] = 0.0
            best[np.ix_(better, columns)] = part[better]
    return best
