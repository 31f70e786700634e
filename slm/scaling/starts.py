"""Starts and bounds of the search for a fit, by variable projection over a grid of exponents (Golub & Pereyra 1973).

For given exponents, a law is linear in its coefficients. So at every point of the grid, the coefficients come from
non-negative least squares of relative residuals, which are log residuals to first order. Axes: `slm.scaling.forms`.
"""

from itertools import combinations

import numpy as np

from slm.scaling.forms import Floats, Law
from slm.scaling.sample import Sample

MIN_TERM_SHARE = 1e-5
"""A term is absent from a fit if, at the centre of the data, it is below this share of the smallest target."""
MIN_STARTING_SHARE = 0.03  # of a term, relative to the smallest target, at the start of a search


def grid_starts(law: Law, sample: Sample) -> Floats:
    """Starts [R, P], one for each combination of exponents in the grid."""
    log_target = law.log_target(sample.log_y)
    exponents = law.bounds_and_starts(log_target)[2]
    basis, target = law.basis(exponents, sample.centred, log_target)
    low, high = coordinate_bounds(law, sample)
    with np.errstate(divide="ignore"):
        log_coefficients = np.log(_non_negative(basis, target))
    return raise_small_terms(law, sample, np.clip(law.join(log_coefficients, exponents), low, high))


def raise_small_terms(law: Law, sample: Sample, theta: Floats) -> Floats:
    """Raise small terms of starts: the gradient of a term is its share of the loss, so a tiny term would not move."""
    raised = theta.copy()
    if (K := law.num_coefficients) > 1:
        lowest = law.log_target(sample.log_y).min() + np.log(MIN_STARTING_SHARE)
        raised[..., :K] = np.maximum(theta[..., :K], lowest)
    return raised


def coordinate_bounds(law: Law, sample: Sample) -> tuple[Floats, Floats]:
    """Lower and upper bounds [P] of the coordinates. They are wide: an estimate at a bound is not identified."""
    P = len(law.parameters)
    if law.is_linear:  # a straight line in logs needs no bound, and may slope either way
        return np.full(P, -np.inf), np.full(P, np.inf)
    log_target = law.log_target(sample.log_y)
    low, high, _ = law.bounds_and_starts(log_target)  # of the last coordinates; the first are of coefficients
    lowest, highest = log_target.min() + np.log(MIN_TERM_SHARE), log_target.max() + 5.0
    if law.num_coefficients == 0:  # Kaplan's joint law: its log terms are not in units of the target
        lowest, highest = -60.0, 60.0
    num_first = P - len(low)
    return np.append(np.full(num_first, lowest), low), np.append(np.full(num_first, highest), high)


def _non_negative(basis: Floats, target: Floats) -> Floats:
    """Least-squares solutions [R, K] >= 0 of basis [R, I, K] and target [R, I], by trying all subsets of columns."""
    R, _, K = basis.shape
    gram, moment = np.matmul(basis.transpose(0, 2, 1), basis), np.einsum("rik,ri->rk", basis, target)
    # A value is the sum of squared residuals of a solution, minus the sum of squares of the target.
    best, best_value = np.zeros((R, K)), np.zeros(R)
    for num_columns in range(1, K + 1):
        for columns in combinations(range(K), num_columns):
            gram_of_columns = gram[np.ix_(range(R), columns, columns)]
            moment_of_columns = moment[:, list(columns)]
            ridge = 1e-12 * np.trace(gram_of_columns, axis1=1, axis2=2)[:, None, None] * np.eye(num_columns)
            solution = np.linalg.solve(gram_of_columns + ridge, moment_of_columns[:, :, None])[:, :, 0]
            value = -(solution * moment_of_columns).sum(axis=1)
            is_better = (solution >= 0).all(axis=1) & (value < best_value)
            best_value[is_better] = value[is_better]
            best[is_better] = 0.0
            best[np.ix_(is_better, columns)] = solution[is_better]
    return best
