"""Do families share an exponent? Differences of two, one test of all, and Holm's adjustment for many pairs.

Every family keeps its own scatter and its own degrees of freedom (Welch 1951): a pooled variance says "differ" in 12 to
30% of tables in which a noisy family has fewer runs and nothing differs. Each family enters as a curve, t of its
exponent at every value, which is straight for laws that are straight in logs and the profile likelihood for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.intervals import Uncertainty

SIMULATIONS = 9999
"""Draws of the null distribution of the joint test: numbers, not refits, so that they cost milliseconds."""


@dataclass(frozen=True)
class Curve:
    """t of one family's exponent at `values`, with `df` degrees of freedom, 0 at the estimate."""

    values: Floats
    root: Floats
    df: float
    estimate: float
    error: float
    """Standard error that agrees with the interval."""
    open_low: bool
    open_high: bool
    """Whether the data set no bound on that side."""


def curve(found: Fit, of: Uncertainty, exponent: str, level: float) -> Curve | None:
    """The profile of an exponent, or a straight line by its standard error; None where there is neither."""
    estimate, error = found.params[exponent], of.error(found, exponent, level)
    df, (low, high) = of.degrees_of_freedom(found, exponent), of.ci[exponent]
    if df < 1 or not (np.isfinite(error) and error > 0):
        return None
    one = of.profiles.get(exponent)
    if one is not None:
        return Curve(one.values, one.root, df, estimate, error, low is None, high is None)
    steps = np.linspace(-200, 200, 401)
    return Curve(estimate + error * steps, steps, df, estimate, error, low is None, high is None)


@dataclass(frozen=True)
class Difference:
    """exponent(a) - exponent(b). An end of None is open."""

    a: str
    b: str
    exponent: str
    delta: float
    low: float | None
    high: float | None
    p: float
    df: float


def difference(a: tuple[str, Curve], b: tuple[str, Curve], exponent: str, *, level: float = 0.95) -> Difference:
    """Interval and p of the difference of one exponent between two families, each with its own scatter.

    t of a difference is the least root sum of squares of both families' t over all pairs of exponents that far apart,
    which for straight laws is Welch's t; the degrees of freedom are Welch's (Satterthwaite's).
    """
    (name_a, one), (name_b, two) = a, b
    delta = one.estimate - two.estimate
    df = welch_df([one.error, two.error], [one.df, two.df])
    root = _DifferenceRoot(one, two)
    critical = float(stats.t.ppf(0.5 + level / 2, df))
    low = None if one.open_low or two.open_high else root.end(delta, -1, critical)
    high = None if one.open_high or two.open_low else root.end(delta, 1, critical)
    return Difference(name_a, name_b, exponent, delta, low, high, float(2 * stats.t.sf(root(0.0), df)), df)


def welch_df(errors: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a sum of independent estimates (Satterthwaite 1946)."""
    squares = np.square(errors)
    return float(squares.sum() ** 2 / (squares**2 / np.asarray(dfs, float)).sum())


def joint_p(curves: Sequence[Curve], rng: np.random.Generator) -> tuple[float, float]:
    """Test that all families have one exponent: the least sum of squared t over common values, and its p.

    The null distribution is that of Welch's statistic with these errors and degrees of freedom, simulated
    (Krishnamoorthy, Lu & Mathew 2007): it keeps its level where families have two degrees of freedom each, and Welch's
    F does not.
    """
    estimates = np.array([one.estimate for one in curves])
    common = np.linspace(estimates.min(), estimates.max(), 401)
    statistic = float(sum(np.interp(common, one.values, one.root) ** 2 for one in curves).min())  # type: ignore[union-attr]
    errors, dfs = (np.array([getattr(one, name) for one in curves]) for name in ("error", "df"))
    shape = (SIMULATIONS, len(curves))
    drawn = errors * rng.standard_normal(shape)
    weights = 1 / (errors**2 * rng.chisquare(dfs, shape) / dfs)
    mean = (weights * drawn).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    simulated = (weights * (drawn - mean) ** 2).sum(axis=1)
    return statistic, (1 + int((simulated >= statistic).sum())) / (SIMULATIONS + 1)


class _DifferenceRoot:
    """|t| of a difference of exponents, from two curves."""

    def __init__(self, one: Curve, two: Curve) -> None:
        self.one, self.two = one, two

    def __call__(self, delta: float) -> float:
        """The least root sum of squares of both families' t, over pairs of exponents `delta` apart.

        Both curves are straight between their values, so that the sum of squares is a parabola between any two
        neighbours of either; infinite where no such pair was looked at.
        """
        knots = np.union1d(self.two.values, self.one.values - delta)
        low = max(self.two.values[0], self.one.values[0] - delta)
        high = min(self.two.values[-1], self.one.values[-1] - delta)
        knots = knots[(knots >= low) & (knots <= high)]
        if not len(knots):
            return float("inf")
        at_one = np.interp(knots + delta, self.one.values, self.one.root)
        at_two = np.interp(knots, self.two.values, self.two.root)
        rise_one, rise_two = np.diff(at_one), np.diff(at_two)
        steep = np.maximum(rise_one**2 + rise_two**2, np.finfo(float).tiny)
        share = np.clip(-(at_one[:-1] * rise_one + at_two[:-1] * rise_two) / steep, 0, 1)
        between = (at_one[:-1] + share * rise_one) ** 2 + (at_two[:-1] + share * rise_two) ** 2
        return float(np.sqrt(np.min(np.append(between, at_one[-1] ** 2 + at_two[-1] ** 2))))

    def end(self, delta: float, side: int, critical: float) -> float | None:
        """Where t passes `critical`, by bisection; None if it does not within the curves."""
        reach = np.ptp(self.one.values) + np.ptp(self.two.values)
        inner, step = delta, max(1e-4, 0.01 * abs(delta))
        outer = delta + side * step
        while self(outer) < critical:
            inner, step = outer, 2 * step
            outer = delta + side * step
            if step > reach:
                return None
        for _ in range(50):
            middle = 0.5 * (inner + outer)
            inner, outer = (middle, outer) if self(middle) < critical else (inner, middle)
        return None if np.isinf(self(outer)) and self(inner) < 0.98 * critical else float(inner)


def adjust(pairs: Sequence[dict[str, Any]]) -> None:
    """Add `p_adjusted` (Holm) to rows with `p`, and `p_any_floor_adjusted`: `p_any_floor` by the same factor."""
    for pair, adjusted in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_adjusted"], pair["p_any_floor_adjusted"] = adjusted, None
        if adjusted is not None and pair["p_any_floor"] is not None:
            factor = adjusted / pair["p"] if pair["p"] > 0 else 1.0
            pair["p_any_floor_adjusted"] = max(adjusted, min(1.0, pair["p_any_floor"] * factor))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979): bounds the chance of any false rejection. None stays None, uncounted."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted
