"""Where to start, and within which bounds: variable projection over a grid of exponents.

Given its exponents a law is linear in its coefficients, so the best coefficients at every point of a grid of exponents
are non-negative least squares on relative residuals, which are log residuals to first order (Golub & Pereyra 1973).
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

from slm.scaling.forms import Floats
from slm.scaling.laws import Law
from slm.scaling.sample import Sample

GRIDS = {
    1: (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3, 2.0),
    2: (0.05, 0.12, 0.22, 0.35, 0.55, 0.8, 1.2, 1.8),
    3: (0.1, 0.3, 0.6, 1.2),
}
EXPONENT_BOUNDS = (1e-3, 5.0)
SMALLEST_SHARE = 1e-5
"""A term below this share of the smallest target at the centre of the data counts as absent."""
STARTING_SHARE = 0.03
"""No search starts with a smaller share."""


def grid_starts(law: Law, sample: Sample) -> Floats:
    """One start [R, P] for every combination of exponents in the grid."""
    count, own = len(law.exponents), law.shape(sample.log_y)
    exponents = np.array(list(product(GRIDS[count], repeat=count))) if own is None else own[2]
    basis, target = law.basis(exponents, sample.centred, sample.log_y)
    coefficients = _non_negative(basis, target)
    low, high = coordinate_bounds(law, sample)
    with np.errstate(divide="ignore"):
        return off_plateau(law, sample, np.clip(law.join(np.log(coefficients), exponents), low, high))


def off_plateau(law: Law, sample: Sample, theta: Floats) -> Floats:
    """The same starts with no term so small that its gradient, which is its share of the whole, holds it there."""
    terms = law.coefficients
    if terms < 2:
        return theta
    raised = theta.copy()
    raised[..., :terms] = np.maximum(theta[..., :terms], sample.log_y.min() + np.log(STARTING_SHARE))
    return raised


def coordinate_bounds(law: Law, sample: Sample) -> tuple[Floats, Floats]:
    """Bounds of the coordinates ([P], [P]), wide enough that an estimate at one says that the data do not hold it."""
    if law.is_linear:  # a straight line in logs needs no bound, and may slope either way
        return np.full(len(law.parameters), -np.inf), np.full(len(law.parameters), np.inf)
    own = law.shape(sample.log_y)
    coefficients = len(law.parameters) - (len(law.exponents) if own is None else len(own[0]))
    low = np.full(coefficients, sample.log_y.min() + np.log(SMALLEST_SHARE))
    high = np.full(coefficients, sample.log_y.max() + 5.0)
    if own is not None:
        return np.concatenate([low, own[0]]), np.concatenate([high, own[1]])
    count = len(law.exponents)
    if not law.coefficients:  # joint forms: log terms are not in units of the target
        low, high = np.full(coefficients, -60.0), np.full(coefficients, 60.0)
    return (
        np.concatenate([low, np.full(count, EXPONENT_BOUNDS[0])]),
        np.concatenate([high, np.full(count, EXPONENT_BOUNDS[1])]),
    )


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
