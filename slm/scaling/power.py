"""What a design can tell: the smallest difference of exponents it detects, and what would detect a smaller one.

Notable: two things scatter. Runs of one size differ between seeds (noise), which more seeds average away; and the mean
of a size deviates from every smooth law (misfit), which more seeds leave as it is. In small models the misfit is larger
(results/first_study: 0.5% between seeds, 1.6% about a power law), so a power that knows noise alone promises too much.
Families that were trained at the same sizes share most of the misfit, which a paired comparison takes out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, Self

import numpy as np
from scipy import optimize, stats

from slm.scaling.forms import Floats
from slm.scaling.laws import Law, get_law

MOST_SEEDS = 100
MOST_SIZES = 1000
WIDEST = 1e6
"""How far advice looks."""
NODES = 48
"""Of a quadrature over the scatter of each of two families: the power is exact to 1e-4."""


@dataclass(frozen=True)
class DifferenceTest:
    """A two-sided test of a difference by Student's t, or by Welch's where two families have errors of their own."""

    errors: tuple[float, ...]
    """Standard error of the difference, or of each of the two exponents."""
    degrees_of_freedom: tuple[int, ...]
    """Of the scatter behind each error."""

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return math.hypot(*self.errors)

    def power(self, difference: float, *, level: float = 0.05, pairs: int = 1) -> float:
        """Chance to find `difference` at `level` / `pairs` (Bonferroni); 0 if the design cannot tell at all."""
        if not self._can_tell:
            return 0.0
        if self.error == 0:
            return float(difference != 0)
        shift = abs(difference) / self.error
        if len(self.errors) == 1:
            return _power_of_student(shift, self.degrees_of_freedom[0], level / pairs)
        return _power_of_welch(shift, self.errors, self.degrees_of_freedom, level / pairs)

    def detectable(self, *, power: float = 0.8, level: float = 0.05, pairs: int = 1) -> float | None:
        """Smallest difference that is found with chance `power`; None if the design cannot tell at all."""
        if not self._can_tell:
            return None
        if self.error == 0:
            return 0.0

        def missing(size: float) -> float:
            return self.power(size * self.error, level=level, pairs=pairs) - power

        highest = 4.0
        while missing(highest) < 0:
            highest *= 2
        return float(optimize.brentq(missing, 0, highest) * self.error)

    @property
    def _can_tell(self) -> bool:
        return min(self.degrees_of_freedom) > 0 and math.isfinite(self.error)


def _power_of_student(shift: float, df: int, level: float) -> float:
    """A noncentral t (Cohen 1988, chapter 2); `shift` is the difference in standard errors."""
    critical = stats.t.ppf(1 - level / 2, df)
    upper, lower = stats.nct.sf(critical, df, shift), stats.nct.cdf(-critical, df, shift)
    # For very large shifts scipy's noncentral t gives NaN, where the normal approximation is exact to rounding.
    return float(upper + np.nan_to_num(lower)) if np.isfinite(upper) else float(stats.norm.sf(critical - shift))


@cache
def _quadrature() -> tuple[Floats, Floats]:
    return np.polynomial.legendre.leggauss(NODES)


@cache
def _chi_squared_nodes(df: int) -> Floats:
    return np.asarray(stats.chi2.ppf((_quadrature()[0] + 1) / 2, df))


def _power_of_welch(shift: float, errors: Sequence[float], dfs: Sequence[int], level: float) -> float:
    """The mean, over all scatters that the families may show, of the chance to exceed what each makes critical.

    A noncentral t with the degrees of freedom of the true errors promises 80% and gives 77.6% at twice four, because
    the errors that are seen have fewer.
    """
    weights = _quadrature()[1]
    seen = [e**2 * _chi_squared_nodes(n) / n for e, n in zip(errors, dfs, strict=True)]
    a, b = np.meshgrid(*seen, indexing="ij")
    df = (a + b) ** 2 / (a**2 / dfs[0] + b**2 / dfs[1])
    critical = stats.t.ppf(1 - level / 2, df) * np.sqrt(a + b) / math.hypot(*errors)
    chance = stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift)
    return float(weights @ chance @ weights / 4)


@dataclass(frozen=True)
class Advice:
    """What would detect a difference: the least of each means by itself. None where that does not suffice."""

    difference: float
    seeds: int | None
    """Seeds a size, of at most `MOST_SEEDS`; None also where the noise is unknown."""
    sizes: int | None
    """Sizes, evenly spaced in the span of now, of at most `MOST_SIZES`."""
    span: float | None
    """Largest size / smallest, with as many sizes as now, of at most `WIDEST`."""
    seeds_now: int
    sizes_now: int
    span_now: float
    noise: float | None
    misfit: float

    @property
    def text(self) -> str:
        """The means in words, and why further seeds are not among them."""
        means = []
        if self.seeds is not None:
            means.append(f"{self.seeds} seeds a size instead of {self.seeds_now}")
        if self.sizes is not None:
            means.append(f"{self.sizes} sizes in the same span instead of {self.sizes_now}")
        if self.span is not None:
            means.append(f"sizes over a factor of {_plain(self.span)} instead of {_plain(self.span_now)}")
        said = ", or ".join(means) if means else "no number of sizes or seeds and no span in reach"
        if self.seeds is None and self.noise is None:
            return f"{said}; what more seeds would help is unknown, since no size has several"
        if self.seeds is None:
            return (
                f"{said}; more seeds do not suffice, since sizes deviate from a smooth law by {self.misfit:.2g} in log "
                f"loss whatever the seeds (one seed: {self.noise:.2g})"
            )
        return said


def _plain(value: float) -> str:
    """Three significant digits, as people write them: 2,000 and not 2e+03."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


class Comparison(ABC):
    """The comparison of two families' exponents by a design, whichever its test is."""

    @property
    @abstractmethod
    def test(self) -> DifferenceTest:
        """The test and its error."""

    @abstractmethod
    def changed(self, *, seeds: int | None = None, sizes: int | None = None, stretch: float = 1.0) -> Self:
        """With other seeds a size, as many sizes in the same span, or a span `stretch` times as wide in logs."""

    @abstractmethod
    def _now(self) -> _Now:
        """What advice departs from."""

    def error(self) -> float:
        """Standard error of the difference of two exponents; infinite if it is not identified."""
        return self.test.error

    def power(self, difference: float, *, level: float = 0.05, pairs: int = 1) -> float:
        """Chance to tell exponents `difference` apart, two-sided at `level` / `pairs` (Bonferroni)."""
        return self.test.power(difference, level=level, pairs=pairs)

    def detectable(self, *, power: float = 0.8, level: float = 0.05, pairs: int = 1) -> float | None:
        """Smallest difference of exponents found with chance `power`; None if the design cannot tell at all."""
        return self.test.detectable(power=power, level=level, pairs=pairs)

    def advice(self, difference: float, *, power: float = 0.8, level: float = 0.05, pairs: int = 1) -> Advice:
        """What would detect `difference` with chance `power`."""

        def enough(seeds: int | None = None, sizes: int | None = None, stretch: float = 1.0) -> bool:
            design = self.changed(seeds=seeds, sizes=sizes, stretch=stretch)
            return design.power(difference, level=level, pairs=pairs) >= power

        now = self._now()
        stretch = _least_stretch(lambda by: enough(stretch=by), now.log_span)
        return Advice(
            difference=difference,
            seeds=_least(lambda n: enough(seeds=n), now.seeds, MOST_SEEDS) if now.noise else None,
            sizes=_least(lambda n: enough(sizes=n), now.sizes, MOST_SIZES) if now.log_span > 0 else None,
            span=None if stretch is None else math.exp(stretch * now.log_span),
            seeds_now=now.seeds,
            sizes_now=now.sizes,
            span_now=math.exp(now.log_span),
            noise=now.noise,
            misfit=now.misfit,
        )


class _Now(NamedTuple):
    seeds: int
    sizes: int
    log_span: float
    noise: float | None
    misfit: float


@dataclass(frozen=True)
class PairedDesign(Comparison):
    """Two families trained at the same sizes, whose log ratio of losses is a straight line in log N.

    At each size the log ratio of the means over seeds scatters about the line with variance
    misfit^2 + 2 noise^2 / seeds. The test is Student's t of the slope, the difference of two exponents, with two
    degrees of freedom fewer than sizes: exact for normal scatter.
    """

    log_N: Floats
    """[sizes], natural logarithms."""
    noise: float | None
    """Standard deviation of one run's log loss between seeds; if seeds are paired too, that of the log ratio of one
    seed / sqrt(2). None if it is unknown: then `misfit` is all of the scatter."""
    misfit: float
    """Standard deviation of the log ratio about the line, whatever the seeds."""
    seeds: int = 1
    unit: float = 1.0
    """Difference of exponents per slope of the log ratio: more than 1 above a floor."""

    @property
    def scatter(self) -> float:
        """Standard deviation of the log ratio of a size about the line."""
        return float(np.hypot(self.misfit, (self.noise or 0.0) * np.sqrt(2 / self.seeds)))

    @property
    def test(self) -> DifferenceTest:
        """The paired test of this design."""
        deviations = np.asarray(self.log_N, float) - np.mean(self.log_N)
        root = float(np.sqrt((deviations**2).sum()))
        return DifferenceTest((self.unit * self.scatter / root if root > 0 else np.inf,), (len(deviations) - 2,))

    def changed(self, *, seeds: int | None = None, sizes: int | None = None, stretch: float = 1.0) -> PairedDesign:
        """With other seeds a size, as many sizes evenly spaced in the same span, or a span `stretch` times as wide."""
        log_N = _placed(np.asarray(self.log_N, float)[:, None], sizes, stretch)[:, 0]
        return replace(self, log_N=log_N, seeds=seeds or self.seeds)

    def _now(self) -> _Now:
        return _Now(self.seeds, len(self.log_N), float(np.ptp(self.log_N)), self.noise, self.misfit)


@dataclass(frozen=True)
class Design:
    """Cells of one family under a law, and how they scatter about it: the cells, not the runs, are independent.

    The variance of an exponent is the scatter of a cell squared, times its element of the inverse Fisher information of
    the law (exact for laws that are linear in logs, first order otherwise).
    """

    law: Law
    log_x: Floats
    """[cells, V], natural logarithms of the law's variables."""
    params: Mapping[str, float]
    """Quoted parameters of the law, assumed or fitted."""
    sigma: float | None
    """Standard deviation of one run's log loss between seeds. None if it is unknown: then `misfit` is all of the
    scatter."""
    misfit: float = 0.0
    """Standard deviation of a cell's log loss about the law, whatever the seeds."""
    seeds: int = 1
    groups: int | None = None
    """Independent groups of cells, where several rows of `log_x` are of one, such as one run or one shape."""

    @property
    def scatter(self) -> float:
        """Standard deviation of the mean of a cell about the law."""
        return float(np.hypot(self.misfit, (self.sigma or 0.0) / np.sqrt(self.seeds)))

    @property
    def degrees_of_freedom(self) -> int:
        """Of the scatter of this family: seeds add none."""
        return (len(self.log_x) if self.groups is None else self.groups) - len(self.law.parameters)

    def error(self, exponent: str | None = None) -> float:
        """Standard error of the exponent (the law's first unless named); infinite if not identified."""
        refs = np.zeros(self.log_x.shape[1]) if self.law.absolute else self.log_x.mean(axis=0)
        theta = self.law.coordinates(self.params, refs)
        jacobian = self.law.derivatives(theta[None], self.log_x - refs)[1][0].T
        place = list(self.law.parameters).index(exponent or self.law.exponents[0])
        scale = np.linalg.norm(jacobian, axis=0)
        if len(jacobian) < len(theta) or not (scale > 0).all():
            return np.inf
        singular, vectors = np.linalg.svd(jacobian / scale, full_matrices=False)[1:]
        if singular[-1] < 1e-8 * singular[0]:
            return np.inf
        variance = ((vectors[:, place] / singular) ** 2).sum() / scale[place] ** 2
        return float(self.scatter * np.sqrt(variance))

    def changed(self, *, seeds: int | None = None, sizes: int | None = None, stretch: float = 1.0) -> Design:
        """With other seeds a cell, as many cells (groups, if there are) in the same span, or a wider span.

        `stretch` widens it in logs. Cells of laws in several variables are repeated where they are.
        """
        groups = self.groups if sizes is None or self.groups is None else sizes
        rows = sizes if sizes is None or self.groups is None else round(sizes * len(self.log_x) / self.groups)
        log_x = _placed(self.log_x, rows, stretch)
        return replace(self, log_x=log_x, seeds=seeds or self.seeds, groups=groups)


@dataclass(frozen=True)
class UnpairedDesigns(Comparison):
    """Two families that share nothing, compared by Welch's test, each with the error of its own scatter."""

    a: Design
    b: Design
    exponent: str | None = None
    """The law's first unless named."""

    @property
    def test(self) -> DifferenceTest:
        """Welch's test of these designs."""
        both = (self.a, self.b)
        errors, df = zip(*((one.error(self.exponent), one.degrees_of_freedom) for one in both), strict=True)
        return DifferenceTest(errors, df)

    def changed(self, *, seeds: int | None = None, sizes: int | None = None, stretch: float = 1.0) -> UnpairedDesigns:
        """Both families changed alike."""
        a, b = (one.changed(seeds=seeds, sizes=sizes, stretch=stretch) for one in (self.a, self.b))
        return replace(self, a=a, b=b)

    def _now(self) -> _Now:
        """Of the family whose exponent has the larger error."""
        one = max(self.a, self.b, key=lambda design: design.error(self.exponent))
        sizes = len(one.log_x) if one.groups is None else one.groups
        return _Now(one.seeds, sizes, float(np.ptp(one.log_x[:, 0])), one.sigma, one.misfit)


def plan(
    sizes: Mapping[str, Sequence[float]],
    *,
    law: str = "power",
    params: Mapping[str, float],
    sigma: float,
    misfit: float = 0.0,
    seeds: int = 1,
) -> Design:
    """A design from columns of sizes: `plan({"N": [1e6, 2e6, 4e6]}, params={"A": 20, "alpha": 0.1}, sigma=0.01)`.

    `sizes` gives each of the law's variables a list, one entry a cell. Raises `ValueError` for a variable or parameter
    that is missing, lists that are empty or of different length, and for sizes, seeds or scatter that cannot be.
    """
    chosen = get_law(law)
    missing = [v for v in chosen.variables if v not in sizes]
    if missing:
        raise ValueError(f"a design for {law} needs sizes for {', '.join(chosen.variables)}; {missing[0]} is missing")
    if len({len(sizes[v]) for v in chosen.variables}) > 1:
        raise ValueError("all sizes of a design need the same number of cells")
    x = np.stack([np.asarray(sizes[v], float) for v in chosen.variables], axis=1)
    if not len(x):
        raise ValueError("a design needs at least one cell: its sizes are empty")
    impossible = x[~(np.isfinite(x) & (x > 0))]
    if len(impossible):
        raise ValueError(f"all sizes of a design must be finite numbers above 0, and {impossible[0]:g} is among them")
    absent = [name for name in chosen.parameters if name not in params]
    if absent:
        raise ValueError(f"a design for {law} needs params {', '.join(chosen.parameters)}; {', '.join(absent)} missing")
    for name in chosen.parameters:
        if not np.isfinite(params[name]) or (params[name] <= 0 and name not in chosen.exponents):
            raise ValueError(f"params {name}={params[name]} must be a finite number, and above 0 unless an exponent")
    if not (sigma > 0 and np.isfinite(sigma)):
        raise ValueError(f"sigma={sigma} must be above 0: it is the scatter of log loss between seeds")
    if not (misfit >= 0 and np.isfinite(misfit)):
        raise ValueError(f"misfit={misfit} must be at least 0: it is the scatter of sizes about the law")
    if seeds < 1 or seeds != int(seeds):
        raise ValueError(f"seeds={seeds} must be a whole number of at least 1")
    return Design(chosen, np.log(x), params, sigma, misfit, seeds)


def _least(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """The least whole number from `low` to `high` that is enough; None if `high` is not."""
    if low > high or not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _least_stretch(enough: Callable[[float], bool], log_span: float) -> float | None:
    """The least factor of a span in logs that is enough, to 0.1%; None if that to `WIDEST` is not."""
    low, high = 1.0, math.log(WIDEST) / log_span if log_span > 0 else 0.0
    if high <= 1 or not enough(high):
        return None
    while high > low * 1.001:
        middle = np.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(high)


def _placed(log_x: Floats, count: int | None, stretch: float) -> Floats:
    """Sizes spread about the same middle, all variables alike; `count` of them evenly spaced, or repeated if several
    variables leave no order."""
    if count is not None and count != len(log_x):
        one = log_x.shape[1] == 1
        log_x = (
            np.linspace(log_x.min(axis=0), log_x.max(axis=0), count)
            if one
            else np.resize(log_x, (count, log_x.shape[1]))
        )
    middle = log_x.mean(axis=0)
    return np.asarray(middle + stretch * (log_x - middle))
