"""Differences of exponents between two families, with intervals and p-values, and Holm's adjustment for many pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
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
        self.grid = _dense(two)

    def __call__(self, delta: float) -> float:
        """The least root sum of squares of both families' t, over pairs of exponents `delta` apart."""
        at_two = np.interp(self.grid, self.two.values, self.two.root) * self.scales[1]
        at_one = _inside(self.grid + delta, self.one) * self.scales[0]
        return float(np.sqrt(np.min(at_one**2 + at_two**2)))

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


def _dense(one: Profile) -> Floats:
    """Values between which the profile is close to straight."""
    near = np.interp(np.linspace(-8, 8, 1601), one.root, one.values) if np.all(np.diff(one.root) > 0) else one.values
    return np.unique(np.concatenate([one.values, near]))


def _inside(values: Floats, one: Profile) -> Floats:
    """The profile's root at `values`, infinite where it was not looked at."""
    return np.interp(values, one.values, one.root, left=np.inf, right=np.inf)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979): bounds the chance of any false rejection. None stays None, uncounted."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted
