"""How a floor would change a difference of slopes: comparisons under every floor that the runs do not reject.

A straight line in logs has a slope even if the truth has a floor. Two families of one law with a floor that differ by a
constant factor on N, or in their sizes, then have different slopes, although nothing scales differently. With a given
floor E, L - E is a straight line again, so the comparison can be repeated for each floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.pairs import Difference, welch_df

SHARES = np.r_[0.0, 1 - np.geomspace(1.0, 0.02, 16)[1:]]
"""Floors that are tried, as shares of the lowest target."""
STEPS = 40
"""Of the minimisation: quadratic convergence needs fewer than ten, damping some more."""


@dataclass(frozen=True)
class AtFloors:
    """Least squares of log L, L = floor + A N^-alpha, with each of G floors given."""

    floors: Floats
    alpha: Floats
    errors: Floats
    """Standard errors of alpha."""
    squares: Floats
    """Sums of squared log residuals."""
    local: Floats
    """-dlog L / dlog N at each row [G, n]: alpha (1 - floor / L)."""


def at_floors(log_n: Floats, log_y: Floats, floors: Floats) -> AtFloors:
    """Fit the law to rows [n] of log N and log targets with each floor [G], all below every target.

    Gauss-Newton with Levenberg's damping, all floors at once, from a weighted straight line through log(L - floor).
    """
    x, E = log_n.mean() - log_n, floors[:, None]
    above = np.exp(log_y) - E
    weights = (above / np.exp(log_y)) ** 2
    middle = (weights * x).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    alpha = (weights * (x - middle) * np.log(above)).sum(1) / (weights * (x - middle) ** 2).sum(1)
    level = (weights * np.log(above)).sum(1) / weights.sum(1) - alpha * middle[:, 0]

    def state(level: Floats, alpha: Floats) -> tuple[Floats, Floats]:
        """Residuals, and the share of the power in L, both [G, n]."""
        power = np.exp(np.clip(level[:, None] + alpha[:, None] * x, -500, 500))
        return log_y - np.log(E + power), power / (E + power)

    damping = np.full(len(floors), 1e-3)
    residuals, share = state(level, alpha)
    for _ in range(STEPS):
        slope = share * x  # derivatives: `share` in level, `slope` in alpha
        a, b, c = (share**2).sum(1) * (1 + damping), (share * slope).sum(1), (slope**2).sum(1) * (1 + damping)
        p, q = (share * residuals).sum(1), (slope * residuals).sum(1)
        determinant = np.maximum(a * c - b**2, 1e-300)
        moved = level + (c * p - b * q) / determinant, alpha + (a * q - b * p) / determinant
        trial, shares = state(*moved)
        better = (trial**2).sum(1) <= (residuals**2).sum(1)
        level, alpha = np.where(better, moved[0], level), np.where(better, moved[1], alpha)
        residuals, share = np.where(better[:, None], trial, residuals), np.where(better[:, None], shares, share)
        damping = np.where(better, damping / 10, damping * 10)
    squares = (residuals**2).sum(1)
    information = (share * x**2 * share).sum(1) - (share**2 * x).sum(1) ** 2 / (share**2).sum(1)
    errors = np.sqrt(squares / max(len(log_y) - 2, 1) / np.maximum(information, 1e-300))
    return AtFloors(floors, alpha, errors, squares, alpha[:, None] * share)


def floors_not_rejected(squares: Floats, spare: int, level: float) -> np.ndarray:
    """Which of some floors, by their sums of squares, an F test with `spare` degrees of freedom does not reject."""
    limit = squares.min() * (1 + stats.f.ppf(level, 1, spare) / spare) if spare > 0 else np.inf
    return np.asarray(np.isfinite(squares) & (squares <= limit))


def any_floor_p(a: Fit, b: Fit, test: Difference, level: float) -> float | None:
    """Largest p of equal exponents under any floor, the same for both, that the two families' runs do not reject.

    1 if one of them changes the sign of the difference. None for a law that is not a straight line in N, and if rows
    that belong together are not of one size.
    """
    points = [_one_a_cluster(fit) for fit in (a, b) if fit.law.is_linear and fit.law.variables == ("N",)]
    rows = [point for point in points if point is not None]
    df = [len(log_y) - 2 for _, log_y in rows]
    if len(rows) < 2 or min(df) < 1:
        return None
    lowest = float(np.exp(min(log_y.min() for _, log_y in rows)))
    one, two = (at_floors(log_n, log_y, SHARES * lowest) for log_n, log_y in rows)
    worst = test.p
    for g in np.flatnonzero(floors_not_rejected(one.squares + two.squares, sum(df) - 1, level)):
        delta = float(one.alpha[g] - two.alpha[g])
        if delta * test.delta < 0:
            return 1.0
        errors = [float(one.errors[g]), float(two.errors[g])]
        error = math.hypot(*errors)
        t = abs(delta) / error if error > 0 else math.inf
        worst = max(worst, float(2 * stats.t.sf(t, welch_df(errors, df))))
    return worst


def _one_a_cluster(fit: Fit) -> tuple[Floats, Floats] | None:
    """Log N and mean log target of each cluster of rows; None if a cluster spans sizes."""
    sample, groups = fit.sample, np.unique(fit.sample.clusters, return_inverse=True)[1]
    counts = np.bincount(groups)
    log_n, log_y = (np.bincount(groups, values) / counts for values in (sample.log_x[:, 0], sample.log_y))
    return None if np.abs(sample.log_x[:, 0] - log_n[groups]).max() > 1e-6 else (log_n, log_y)
