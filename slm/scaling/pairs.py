"""Test whether families share an exponent: pairwise tests, a joint test, floors, and Holm's adjustment.

Every family keeps its own scatter and degrees of freedom (Welch 1951). With a pooled variance, the tests would reject
equal exponents in 12 to 30% of tables where a noisy family has fewer runs. A family enters the tests as a curve of t
against the value of its exponent: a straight line for laws that are straight in logs, else the profile likelihood.

A straight line in logs can be fitted even if the true law has a floor E. If two families follow one law with a floor
but differ by a constant factor on N, or in their sizes, their lines have different slopes. In L - E the law is a
straight line, so the comparison is repeated with L - E for every E that the runs do not reject.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.intervals import Uncertainty

SIMULATIONS = 9999
"""Draws of the null distribution of the joint test. They take milliseconds, because nothing is refitted."""
FLOOR_SHARES = np.r_[0.0, 1 - np.geomspace(1.0, 0.02, 16)[1:]]  # of the lowest target, from 0 to 0.98: floors to try
FLOOR_STEPS = 40  # of `at_floors`; fewer than ten suffice if no step must be damped


@dataclass(frozen=True)
class Curve:
    """t of one family at each of the possible values `exponents` of its exponent; t is 0 at `estimate`.

    The standard `error` matches the interval. An end of the interval is open if the runs do not bound it.
    """

    exponents: Floats
    t: Floats
    df: float
    estimate: float
    error: float
    open_low: bool
    open_high: bool


def curve(fit: Fit, bounds: Uncertainty, exponent: str, level: float) -> Curve | None:
    """Return the profile of an exponent, or without a profile a straight line; None without a standard error."""
    estimate, error = fit.params[exponent], bounds.error(fit, exponent, level)
    df = bounds.degrees_of_freedom(fit, exponent)
    if df < 1 or not (np.isfinite(error) and error > 0):
        return None
    t = np.linspace(-200, 200, 401)
    exponents = estimate + error * t
    if (profile := bounds.profiles.get(exponent)) is not None:
        exponents, t = profile.values, profile.t
    low, high = bounds.ci[exponent]
    return Curve(exponents, t, df, estimate, error, open_low=low is None, open_high=high is None)


class Difference(NamedTuple):
    """The exponent of family a minus that of family b, its interval (None: an open end), a test of equal exponents."""

    delta: float
    ci_low: float | None
    ci_high: float | None
    p: float
    df: float


def difference(a: Curve, b: Curve, *, level: float = 0.95) -> Difference:
    """Return interval and p of the difference of one exponent between two families, each with its own scatter.

    t of a difference d is the smallest sqrt(t_a^2 + t_b^2) over all pairs of exponents that differ by d. For straight
    curves this is Welch's t. The degrees of freedom are Welch's (Satterthwaite's).
    """
    delta = a.estimate - b.estimate
    df = welch_df([a.error, b.error], [a.df, b.df])
    critical = float(stats.t.ppf(0.5 + level / 2, df))
    low = None if a.open_low or b.open_high else _end(a, b, delta, -1, critical)
    high = None if a.open_high or b.open_low else _end(a, b, delta, 1, critical)
    p = float(2 * stats.t.sf(_t_of_difference(a, b, 0.0), df))
    return Difference(delta, low, high, p, df)


def welch_df(errors: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a sum of independent estimates (Satterthwaite 1946)."""
    squares = np.square(errors)
    return float(squares.sum() ** 2 / (squares**2 / np.asarray(dfs, float)).sum())


def joint_p(curves: Sequence[Curve], rng: np.random.Generator) -> tuple[float, float]:
    """Test that all families have one exponent; return the smallest sum of squared t at a common exponent, and its p.

    The null distribution is simulated with these errors and degrees of freedom (Krishnamoorthy, Lu & Mathew 2007),
    because Welch's F does not keep its level if families have only two degrees of freedom each.
    """
    estimates, errors, dfs = np.array([(curve.estimate, curve.error, curve.df) for curve in curves]).T
    common_exponents = np.linspace(estimates.min(), estimates.max(), 401)
    squares = [np.interp(common_exponents, curve.exponents, curve.t) ** 2 for curve in curves]
    statistic = float(np.sum(squares, axis=0).min())
    shape = (SIMULATIONS, len(curves))
    drawn = errors * rng.standard_normal(shape)  # estimates if the common exponent is 0
    weights = 1 / (errors**2 * rng.chisquare(dfs, shape) / dfs)  # from their simulated errors
    mean = (weights * drawn).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    simulated = (weights * (drawn - mean) ** 2).sum(axis=1)
    return statistic, (1 + int((simulated >= statistic).sum())) / (SIMULATIONS + 1)


def _t_of_difference(a: Curve, b: Curve, delta: float) -> float:
    """The smallest sqrt(t_a^2 + t_b^2) over pairs of exponents that differ by `delta`; infinite if there is no pair."""
    shifted_a = a.exponents - delta
    # Knots are exponents of b. Both curves are straight between neighbours, so t_a^2 + t_b^2 is a parabola there.
    knots = np.union1d(b.exponents, shifted_a)
    is_in_both = (knots >= max(b.exponents[0], shifted_a[0])) & (knots <= min(b.exponents[-1], shifted_a[-1]))
    knots = knots[is_in_both]
    if not len(knots):
        return float("inf")
    t_a, t_b = np.interp(knots + delta, a.exponents, a.t), np.interp(knots, b.exponents, b.t)
    rise_a, rise_b = np.diff(t_a), np.diff(t_b)
    steepness = np.maximum(rise_a**2 + rise_b**2, np.finfo(float).tiny)
    lowest = np.clip(-(t_a[:-1] * rise_a + t_b[:-1] * rise_b) / steepness, 0, 1)  # share of the way to the next knot
    squares = (t_a[:-1] + lowest * rise_a) ** 2 + (t_b[:-1] + lowest * rise_b) ** 2
    return float(np.sqrt(np.min(np.append(squares, t_a[-1] ** 2 + t_b[-1] ** 2))))


def _end(a: Curve, b: Curve, delta: float, side: int, critical: float) -> float | None:
    """The difference below (`side` -1) or above (1) `delta` at which t reaches `critical`; None if it never does."""
    largest_step = np.ptp(a.exponents) + np.ptp(b.exponents)
    inner, step = delta, max(1e-4, 0.01 * abs(delta))
    while _t_of_difference(a, b, outer := delta + side * step) < critical:
        inner, step = outer, 2 * step
        if step > largest_step:
            return None
    for _ in range(50):  # bisection
        middle = 0.5 * (inner + outer)
        inner, outer = (middle, outer) if _t_of_difference(a, b, middle) < critical else (inner, middle)
    # Where the curves have no common part, t jumps to infinity; then it need not reach `critical` before.
    is_at_jump = np.isinf(_t_of_difference(a, b, outer)) and _t_of_difference(a, b, inner) < 0.98 * critical
    return None if is_at_jump else float(inner)


@dataclass(frozen=True)
class AtFloors:
    """Least-squares fits of L = floor + A N^-alpha to log L in n rows, one fit for each of G given floors.

    `errors` are the standard errors of `alpha`, and `squares` the sums of squared log residuals. `local_exponents`
    [G, n] are -dlog L / dlog N = alpha (1 - floor / L) at the rows.
    """

    alpha: Floats
    errors: Floats
    squares: Floats
    local_exponents: Floats


def at_floors(log_n: Floats, log_y: Floats, floors: Floats) -> AtFloors:
    """Fit L = floor + A N^-alpha to rows [n] of log N and log L, with each of the `floors` [G], all below every L.

    All floors are fitted at once, by Gauss-Newton steps with Levenberg's damping. The start is a weighted straight line
    through log(L - floor) = level + alpha x, where x is the distance of log N below its mean.
    """
    x = log_n.mean() - log_n
    E = floors[:, None]
    above_floor = np.exp(log_y) - E
    weights = (above_floor / np.exp(log_y)) ** 2
    middle = (weights * x).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    alpha = (weights * (x - middle) * np.log(above_floor)).sum(1) / (weights * (x - middle) ** 2).sum(1)
    level = (weights * np.log(above_floor)).sum(1) / weights.sum(1) - alpha * middle[:, 0]

    def evaluate(level: Floats, alpha: Floats) -> tuple[Floats, Floats]:
        """Residuals of log L, and the share (L - floor) / L of the law, both [G, n]."""
        power = np.exp(np.clip(level[:, None] + alpha[:, None] * x, -500, 500))
        return log_y - np.log(E + power), power / (E + power)

    damping = np.full(len(floors), 1e-3)
    residuals, share = evaluate(level, alpha)
    for _ in range(FLOOR_STEPS):
        slope = share * x  # derivatives of log L: `share` by level, `slope` by alpha
        # Normal equations [[a, b], [b, c]] step = [p, q], with a damped diagonal.
        a, b, c = (share**2).sum(1) * (1 + damping), (share * slope).sum(1), (slope**2).sum(1) * (1 + damping)
        p, q = (share * residuals).sum(1), (slope * residuals).sum(1)
        determinant = np.maximum(a * c - b**2, 1e-300)
        new_level = level + (c * p - b * q) / determinant
        new_alpha = alpha + (a * q - b * p) / determinant
        new_residuals, new_share = evaluate(new_level, new_alpha)
        is_better = (new_residuals**2).sum(1) <= (residuals**2).sum(1)
        level, alpha = np.where(is_better, new_level, level), np.where(is_better, new_alpha, alpha)
        residuals = np.where(is_better[:, None], new_residuals, residuals)
        share = np.where(is_better[:, None], new_share, share)
        damping = np.where(is_better, damping / 10, damping * 10)
    squares = (residuals**2).sum(1)
    information = (share * x**2 * share).sum(1) - (share**2 * x).sum(1) ** 2 / (share**2).sum(1)
    errors = np.sqrt(squares / max(len(log_y) - 2, 1) / np.maximum(information, 1e-300))
    return AtFloors(alpha, errors, squares, alpha[:, None] * share)


def floors_not_rejected(squares: Floats, df: int, level: float) -> np.ndarray:
    """Whether an F test with `df` degrees of freedom keeps each floor [G], given its sum of `squares` [G]."""
    limit = squares.min() * (1 + stats.f.ppf(level, 1, df) / df) if df > 0 else np.inf
    return np.asarray(np.isfinite(squares) & (squares <= limit))


def any_floor_p(a: Fit, b: Fit, test: Difference, level: float) -> float | None:
    """Return the largest p of equal exponents over all shared floors that the runs of both families do not reject.

    It is 1 if such a floor changes the sign of the difference. Returns None for laws that are not straight lines in
    log N, and if a cluster of rows has several sizes.
    """
    means = [_cluster_means(fit) for fit in (a, b) if fit.law.is_linear and fit.law.variables == ("N",)]
    rows = [row for row in means if row is not None]
    dfs = [len(log_y) - 2 for _, log_y in rows]
    if len(rows) < 2 or min(dfs) < 1:
        return None
    lowest = float(np.exp(min(log_y.min() for _, log_y in rows)))
    fit_a, fit_b = (at_floors(log_n, log_y, FLOOR_SHARES * lowest) for log_n, log_y in rows)
    largest_p = test.p
    for g in np.flatnonzero(floors_not_rejected(fit_a.squares + fit_b.squares, sum(dfs) - 1, level)):
        delta = float(fit_a.alpha[g] - fit_b.alpha[g])
        if delta * test.delta < 0:
            return 1.0
        errors = [float(fit_a.errors[g]), float(fit_b.errors[g])]
        error = math.hypot(*errors)
        t = abs(delta) / error if error > 0 else math.inf
        largest_p = max(largest_p, float(2 * stats.t.sf(t, welch_df(errors, dfs))))
    return largest_p


def _cluster_means(fit: Fit) -> tuple[Floats, Floats] | None:
    """Log N and mean log target of each cluster of rows; None if a cluster has several sizes."""
    sample = fit.sample
    groups = np.unique(sample.clusters, return_inverse=True)[1]
    counts = np.bincount(groups)
    log_n, log_y = (np.bincount(groups, column) / counts for column in (sample.log_x[:, 0], sample.log_y))
    return (log_n, log_y) if np.abs(sample.log_x[:, 0] - log_n[groups]).max() <= 1e-6 else None


def adjust(pairs: Sequence[dict[str, Any]]) -> None:
    """Add `p_adjusted` (Holm) to each pair, and `p_any_floor_adjusted`: `p_any_floor` raised by the same factor."""
    for pair, adjusted in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair |= {"p_adjusted": adjusted, "p_any_floor_adjusted": None}
        if adjusted is not None and pair["p_any_floor"] is not None:
            factor = adjusted / pair["p"] if pair["p"] > 0 else 1.0
            pair["p_any_floor_adjusted"] = max(adjusted, min(1.0, pair["p_any_floor"] * factor))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p by Holm's step-down method (1979), which bounds the chance of any false rejection. None stays None."""
    ranked = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p))
        adjusted[index] = highest
    return adjusted
