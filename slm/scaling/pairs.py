"""Differences of exponents between two families, with intervals and p-values, and Holm's adjustment for many pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.intervals import Uncertainty
from slm.scaling.profiles import Profile


@dataclass(frozen=True)
class Difference:
    """exponent(a) - exponent(b). An end of None is open, and then p is None too where the data cannot tell at all."""

    a: str
    b: str
    exponent: str
    delta: float
    low: float | None
    high: float | None
    p: float | None
    method: str


def difference(
    a: tuple[str, Fit, Uncertainty],
    b: tuple[str, Fit, Uncertainty],
    exponent: str,
    *,
    level: float = 0.95,
    alike: bool = True,
) -> Difference:
    """Interval of the difference of one exponent between two families, with one variance for both if they are `alike`.

    Else each has its own, and the degrees of freedom are Welch's.

    Least squares: profile likelihood of the difference, that is, the least sum of both families' profiles over all
    pairs of exponents that far apart; for linear laws this is Student's t. Otherwise t on the bootstrap's errors.
    """
    (name_a, fit_a, of_a), (name_b, fit_b, of_b) = a, b
    delta = fit_a.params[exponent] - fit_b.params[exponent]
    one, two = of_a.profiles.get(exponent), of_b.profiles.get(exponent)
    if one is None or two is None:
        groups = sum(len(np.unique(f.sample.clusters)) for f in (fit_a, fit_b))
        spare = groups - 2 * len(fit_a.theta)
        error = float(np.hypot(of_a.error(fit_a, exponent, level), of_b.error(fit_b, exponent, level)))
        if spare < 1 or not error > 0:
            return Difference(name_a, name_b, exponent, delta, None, None, None, "none")
        reach = float(stats.t.ppf(0.5 + level / 2, spare)) * error
        p = float(2 * stats.t.sf(abs(delta) / error, spare))
        return Difference(name_a, name_b, exponent, delta, delta - reach, delta + reach, p, "bootstrap_t")
    df: float = fit_a.degrees_of_freedom + fit_b.degrees_of_freedom
    pooled = np.sqrt((fit_a.sse + fit_b.sse) / df)
    scales = (fit_a.sigma / pooled, fit_b.sigma / pooled) if alike else (1.0, 1.0)
    if not alike:
        parts = [of.error(f, exponent, level) ** 2 for f, of in ((fit_a, of_a), (fit_b, of_b))]
        each = (fit_a.degrees_of_freedom, fit_b.degrees_of_freedom)
        df = sum(parts) ** 2 / sum(part**2 / d for part, d in zip(parts, each, strict=True))
    root = _DifferenceProfile(one, two, *scales)
    critical = float(stats.t.ppf(0.5 + level / 2, df))
    low = None if one.low is None or two.high is None else root.end(delta, -1, critical)
    high = None if one.high is None or two.low is None else root.end(delta, 1, critical)
    return Difference(name_a, name_b, exponent, delta, low, high, float(2 * stats.t.sf(root(0.0), df)), "profile_t")


class _DifferenceProfile:
    """|t| of a difference of exponents, from the two profiles."""

    def __init__(self, one: Profile, two: Profile, scale_one: float, scale_two: float) -> None:
        self.one, self.two, self.scales = one, two, (scale_one, scale_two)

    def __call__(self, delta: float) -> float:
        """The least root sum of squares of both families' t, over pairs of exponents `delta` apart.

        Both profiles are straight between their values, so that the sum of squares is a parabola between any two
        neighbours of either; infinite where no such pair was looked at.
        """
        knots = np.union1d(self.two.values, self.one.values - delta)
        low = max(self.two.values[0], self.one.values[0] - delta)
        high = min(self.two.values[-1], self.one.values[-1] - delta)
        knots = knots[(knots >= low) & (knots <= high)]
        if not len(knots):
            return float("inf")
        at_one = np.interp(knots + delta, self.one.values, self.one.root) * self.scales[0]
        at_two = np.interp(knots, self.two.values, self.two.root) * self.scales[1]
        rise_one, rise_two = np.diff(at_one), np.diff(at_two)
        steep = np.maximum(rise_one**2 + rise_two**2, np.finfo(float).tiny)
        share = np.clip(-(at_one[:-1] * rise_one + at_two[:-1] * rise_two) / steep, 0, 1)
        between = (at_one[:-1] + share * rise_one) ** 2 + (at_two[:-1] + share * rise_two) ** 2
        return float(np.sqrt(np.min(np.append(between, at_one[-1] ** 2 + at_two[-1] ** 2))))

    def end(self, delta: float, side: int, critical: float) -> float | None:
        """Where t passes `critical`, by bisection; None if it does not within the profiles."""
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


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979): bounds the chance of any false rejection. None stays None, uncounted."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted
