"""What a floor would make of a difference of slopes: comparisons under every floor that the runs do not reject.

A straight line in logs has a slope where the truth may have a floor. Two families of one floored law that differ by a
constant factor on N, or whose sizes are not the same, then have slopes that differ, although nothing scales
differently. With a given floor, L - E is a straight line again, so that the comparison can be made anew for each floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.pairs import Difference, welch_df
from slm.scaling.starts import is_linear

SHARES = np.r_[0.0, 1 - np.geomspace(1.0, 0.02, 16)[1:]]
"""Floors that are looked at, as shares of the lowest target."""


@dataclass(frozen=True)
class AtFloor:
    """Least squares of log L, L = floor + A N^-alpha with the floor given."""

    floor: float
    alpha: float
    error: float
    """Standard error of alpha."""
    squares: float
    """Sum of squared log residuals."""
    local: Floats
    """-dlog L / dlog N at each row [n]: alpha (1 - floor / L)."""


def at_floor(log_n: Floats, log_y: Floats, floor: float) -> AtFloor:
    """Fit the law with its floor given to rows [n] of log N and log targets, all above the log of the floor."""
    columns = np.stack([np.ones_like(log_n), log_n.mean() - log_n], axis=1)
    weights = 1 - floor / np.exp(log_y)
    start = np.linalg.lstsq(columns * weights[:, None], np.log(np.exp(log_y) - floor) * weights, rcond=None)[0]

    def power(theta: Floats) -> Floats:
        return np.asarray(np.exp(np.clip(columns @ theta, -500, 500)))

    def residuals(theta: Floats) -> Floats:
        return np.asarray(log_y - np.log(floor + power(theta)))

    def slope(theta: Floats) -> Floats:
        return np.asarray(-columns * (power(theta) / (floor + power(theta)))[:, None])

    found = optimize.least_squares(residuals, start, slope, method="lm", xtol=1e-12, ftol=1e-12, gtol=1e-12)
    squares = float((found.fun**2).sum())
    inverse = np.linalg.pinv(found.jac.T @ found.jac)
    error = float(np.sqrt(squares / max(len(log_y) - 2, 1) * inverse[1, 1]))
    local = found.x[1] * power(found.x) / (floor + power(found.x))
    return AtFloor(floor, float(found.x[1]), error, squares, np.asarray(local))


def floors_not_rejected(squares: Floats, spare: int, level: float) -> np.ndarray:
    """Which of some floors, by their sums of squares, an F test with `spare` degrees of freedom does not reject."""
    least = squares.min()
    limit = least * (1 + stats.f.ppf(level, 1, spare) / spare) if spare > 0 else np.inf
    return np.asarray(np.isfinite(squares) & (squares <= limit))


def any_floor_p(a: Fit, b: Fit, found: Difference, level: float) -> float | None:
    """Largest p of equal exponents under any floor, the same for both, that the two families' runs do not reject.

    1 where one of them turns the difference round. None for a law that is not a straight line in N.
    """
    if not (is_linear(a.law) and a.law.variables == ("N",)) or not (a.sample.independent and b.sample.independent):
        return None
    lowest = float(np.exp(min(a.sample.log_y.min(), b.sample.log_y.min())))
    fits = [[at_floor(f.sample.log_x[:, 0], f.sample.log_y, share * lowest) for f in (a, b)] for share in SHARES]
    df = [len(f.sample.log_y) - 2 for f in (a, b)]
    squares = np.array([one.squares + two.squares for one, two in fits])
    worst = found.p
    for (one, two), kept in zip(fits, floors_not_rejected(squares, sum(df) - 1, level), strict=True):
        if not kept:
            continue
        if (one.alpha - two.alpha) * found.delta < 0:
            return 1.0
        error = float(np.hypot(one.error, two.error))
        t = abs(one.alpha - two.alpha) / error if error > 0 else np.inf
        worst = max(worst, float(2 * stats.t.sf(t, welch_df([one.error, two.error], df))))
    return worst
