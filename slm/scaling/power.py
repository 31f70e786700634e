"""The power of a design: the smallest difference of exponents that it detects, and how to detect a smaller one.

Notable: the scatter has two parts. Noise is the scatter between seeds of one size; more seeds average it out. Misfit is
the deviation of a size's mean from every smooth law; more seeds do not change it. In small models the misfit is larger
(results/first_study: 0.5% between seeds, 1.6% about a power law), so a power computed from noise alone is too high.
Families trained at the same sizes share most of the misfit, and a paired comparison removes what they share.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
from scipy import optimize, stats

from slm.scaling.advice import Advice, advise
from slm.scaling.forms import Floats
from slm.scaling.laws import Law, get_law

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
"""Quadrature over the scatter of each of two families: 48 nodes make the power exact to 1e-4."""


def _power(difference: float, errors: Sequence[float], dfs: Sequence[int], level: float) -> float:
    """Probability that a two-sided t test at `level` detects `difference`; 0 if the design cannot test at all.

    `errors` and `dfs` have one item, of the difference (Student's t), or two, of the two exponents (Welch's t).
    """
    error = math.hypot(*errors)
    if min(dfs) <= 0 or not math.isfinite(error):
        return 0.0
    if error == 0:
        return float(difference != 0)
    shift = abs(difference) / error  # in standard errors
    if len(errors) > 1:
        return _power_of_welch(shift, errors, dfs, level)
    # The power of Student's t test is a tail of the noncentral t (Cohen 1988, chapter 2).
    critical = stats.t.ppf(1 - level / 2, dfs[0])
    upper, lower = stats.nct.sf(critical, dfs[0], shift), stats.nct.cdf(-critical, dfs[0], shift)
    # For very large shifts scipy's noncentral t is NaN, and the normal approximation is exact to rounding.
    return float(upper + np.nan_to_num(lower)) if np.isfinite(upper) else float(stats.norm.sf(critical - shift))


@cache
def _chi_squared_nodes(df: int) -> Floats:
    """Quantiles of chi squared at the quadrature nodes, moved from [-1, 1] to [0, 1]."""
    return np.asarray(stats.chi2.ppf((_NODES + 1) / 2, df))


def _power_of_welch(shift: float, errors: Sequence[float], dfs: Sequence[int], level: float) -> float:
    """Average the probability of a significant t over the distribution of the two estimated variances.

    Welch's degrees of freedom depend on the estimated variances. A noncentral t with the degrees of freedom of the true
    variances gives a power of 80% where the test has 77.6% (two families with four degrees of freedom each).
    """
    variances = [error**2 * _chi_squared_nodes(own_df) / own_df for error, own_df in zip(errors, dfs, strict=True)]
    variance_a, variance_b = np.meshgrid(*variances, indexing="ij")
    total = variance_a + variance_b
    df = total**2 / (variance_a**2 / dfs[0] + variance_b**2 / dfs[1])
    critical = stats.t.ppf(1 - level / 2, df) * np.sqrt(total) / math.hypot(*errors)
    power = stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift)
    return float(_WEIGHTS @ power @ _WEIGHTS / 4)  # the weights sum to 2


class Comparison(ABC):
    """A design that compares the exponents of two families by a two-sided t test."""

    @abstractmethod
    def _test(self) -> tuple[Sequence[float], Sequence[int]]:
        """Return `errors` and `dfs` as in `_power`: standard errors, and their degrees of freedom."""

    @abstractmethod
    def _worse_design(self) -> "PairedDesign | Design":
        """The design with the larger error, from which `advice` starts."""

    @abstractmethod
    def changed(self, *, seeds: int | None = None, sizes: int | None = None, stretch: float = 1.0) -> Self:
        """Return a copy with other numbers of `seeds` per size or of `sizes`, or a log span `stretch` times as wide."""

    def error(self) -> float:
        """Standard error of the difference of two exponents; infinite if the design does not identify it."""
        return math.hypot(*self._test()[0])

    def power(self, difference: float, *, level: float = 0.05, num_tests: int = 1) -> float:
        """Probability of detecting `difference`, two-sided at `level` / `num_tests` (Bonferroni)."""
        return _power(difference, *self._test(), level / num_tests)

    def detectable(self, *, power: float = 0.8, level: float = 0.05, num_tests: int = 1) -> float | None:
        """Smallest difference of exponents detected with probability `power`; None if the design cannot test at all."""
        errors, dfs = self._test()
        error = self.error()
        if min(dfs) <= 0 or not math.isfinite(error):
            return None
        if error == 0:
            return 0.0

        def excess(shift: float) -> float:
            return _power(shift * error, errors, dfs, level / num_tests) - power

        highest = 4.0
        while excess(highest) < 0:
            highest *= 2
        return float(optimize.brentq(excess, 0, highest) * error)

    def advice(self, difference: float, *, power: float = 0.8, level: float = 0.05, num_tests: int = 1) -> Advice:
        """Find the least changes of the design with which it detects `difference` with probability `power`."""

        def suffices(**change: Any) -> bool:
            return self.changed(**change).power(difference, level=level, num_tests=num_tests) >= power

        design = self._worse_design()
        log_span = float(np.ptp(design.log_N if isinstance(design, PairedDesign) else design.log_x[:, 0]))
        return advise(suffices, difference, design, log_span)


@dataclass(frozen=True)
class PairedDesign(Comparison):
    """Two families trained at the same sizes, whose log ratio of losses is a straight line in log N.

    The slope of the line is the difference of the two exponents. Student's t test of the slope has two degrees of
    freedom fewer than there are sizes, and is exact for normal scatter. At each size, the log ratio of the means over
    seeds scatters around the line with variance misfit^2 + 2 noise^2 / seeds.
    """

    log_N: Floats  # [sizes], natural logarithms
    noise: float | None
    """Standard deviation of log loss between seeds of one size; if the families share seeds, the standard deviation of
    their log ratio between seeds, divided by sqrt(2). None if unknown: `misfit` is then all of the scatter."""
    misfit: float  # standard deviation of the log ratio around the line with infinitely many seeds
    seeds: int = 1  # runs per size and family
    exponent_per_slope: float = 1.0  # difference of exponents per unit of slope; 1 unless a floor is subtracted

    @property
    def num_sizes(self) -> int:
        """Number of sizes."""
        return len(self.log_N)

    def _test(self) -> tuple[Sequence[float], Sequence[int]]:
        spread = float(np.sqrt(((self.log_N - np.mean(self.log_N)) ** 2).sum()))
        scatter = float(np.hypot(self.misfit, (self.noise or 0.0) * np.sqrt(2 / self.seeds)))
        error = self.exponent_per_slope * scatter / spread if spread > 0 else np.inf
        return [error], [self.num_sizes - 2]

    def _worse_design(self) -> "PairedDesign":
        return self

    def changed(self, *, seeds: int | None = None, sizes: int | None = None, stretch: float = 1.0) -> "PairedDesign":
        """Return a copy as `Comparison.changed` does; new sizes are evenly spaced."""
        log_N = _respaced(self.log_N[:, None], sizes, stretch)[:, 0]
        return replace(self, log_N=log_N, seeds=seeds or self.seeds)


@dataclass(frozen=True)
class Design:
    """One family's cells (all runs with equal size and tokens), a law, and the scatter of the cells around the law.

    Cells are independent; the runs of one cell share its misfit. The variance of an exponent is the variance of a cell
    times the exponent's element of the inverse Fisher information (exact for laws linear in logs, else first order).
    """

    law: Law
    log_x: Floats  # [cells, V], natural logarithms of the law's V variables
    params: Mapping[str, float]  # parameters of the law, assumed or fitted
    noise: float | None  # standard deviation of log loss between seeds of a cell; None: see `PairedDesign`
    misfit: float = 0.0  # standard deviation of a cell's log loss around the law with infinitely many seeds
    seeds: int = 1  # runs per cell
    num_groups: int | None = None  # of independent cells, if several cells belong to one run or one shape

    @property
    def num_sizes(self) -> int:
        """Number of independent cells, or groups of cells."""
        return len(self.log_x) if self.num_groups is None else self.num_groups

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of the scatter of this family; more seeds do not add any."""
        return self.num_sizes - len(self.law.parameters)

    def error(self, exponent: str | None = None) -> float:
        """Standard error of the exponent (by default the law's first); infinite if not identified."""
        refs = np.zeros(self.log_x.shape[1]) if self.law.is_uncentred else self.log_x.mean(axis=0)
        theta = self.law.coordinates(self.params, refs)
        _, gradient, _ = self.law.derivatives(theta[None], self.log_x - refs)
        jacobian = gradient[0].T  # [cells, parameters]
        index = list(self.law.parameters).index(exponent or self.law.exponents[0])
        scale = np.linalg.norm(jacobian, axis=0)  # without scaling, the check of the rank would depend on units
        if len(jacobian) < len(theta) or not (scale > 0).all():
            return np.inf
        singular, vectors = np.linalg.svd(jacobian / scale, full_matrices=False)[1:]
        if singular[-1] < 1e-8 * singular[0]:
            return np.inf
        variance = ((vectors[:, index] / singular) ** 2).sum() / scale[index] ** 2
        scatter = float(np.hypot(self.misfit, (self.noise or 0.0) / np.sqrt(self.seeds)))
        return float(scatter * np.sqrt(variance))

    def changed(self, *, seeds: int | None = None, sizes: int | None = None, stretch: float = 1.0) -> "Design":
        """Return a copy as `Comparison.changed` does; `sizes` is the number of cells, or of groups if there are any."""
        num_cells, num_groups = sizes, self.num_groups
        if sizes is not None and num_groups is not None:
            num_cells = round(sizes * len(self.log_x) / num_groups)
            num_groups = sizes
        log_x = _respaced(self.log_x, num_cells, stretch)
        return replace(self, log_x=log_x, seeds=seeds or self.seeds, num_groups=num_groups)


@dataclass(frozen=True)
class UnpairedDesigns(Comparison):
    """Two families, not paired, each with its own scatter. Welch's t test compares the first exponent of their law."""

    a: Design
    b: Design

    def _test(self) -> tuple[Sequence[float], Sequence[int]]:
        return (self.a.error(), self.b.error()), (self.a.degrees_of_freedom, self.b.degrees_of_freedom)

    def _worse_design(self) -> Design:
        return max(self.a, self.b, key=Design.error)

    def changed(self, *, seeds: int | None = None, sizes: int | None = None, stretch: float = 1.0) -> "UnpairedDesigns":
        """Return a copy with both families changed in the same way."""
        a, b = (design.changed(seeds=seeds, sizes=sizes, stretch=stretch) for design in (self.a, self.b))
        return UnpairedDesigns(a, b)


def plan(
    sizes: Mapping[str, Sequence[float]],
    *,
    law: str = "power",
    params: Mapping[str, float],
    sigma: float,
    misfit: float = 0.0,
    seeds: int = 1,
) -> Design:
    """Make a design from columns of sizes: `plan({"N": [1e6, 2e6, 4e6]}, params={"A": 20, "alpha": 0.1}, sigma=0.01)`.

    `sizes` has a list per variable of the law, with one item per cell. Raises `ValueError` for a missing variable or
    parameter, for lists that are empty or of different length, and for impossible sizes, seeds or scatter.
    """
    chosen = get_law(law)
    for names, given, kind in ((chosen.variables, sizes, "sizes for"), (chosen.parameters, params, "params")):
        missing = [name for name in names if name not in given]
        if missing:
            raise ValueError(f"a design for {law} needs {kind} {', '.join(names)}; missing: {', '.join(missing)}")
    lengths = {len(sizes[variable]) for variable in chosen.variables}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError("all lists of sizes in a design must have the same length, and at least one item")
    x = np.stack([np.asarray(sizes[variable], float) for variable in chosen.variables], axis=1)
    impossible = x[~(np.isfinite(x) & (x > 0))]
    if len(impossible):
        raise ValueError(f"all sizes of a design must be finite numbers above 0, but one of them is {impossible[0]:g}")
    for name in chosen.parameters:
        if not np.isfinite(params[name]) or (params[name] <= 0 and name not in chosen.exponents):
            raise ValueError(f"params {name}={params[name]} must be a finite number; only exponents may be 0 or less")
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma={sigma} must be above 0: it is the scatter of log loss between seeds")
    if not 0 <= misfit < np.inf:
        raise ValueError(f"misfit={misfit} must be at least 0: it is the scatter of sizes around the law")
    if seeds < 1 or seeds != int(seeds):
        raise ValueError(f"seeds={seeds} must be a whole number of at least 1")
    return Design(chosen, np.log(x), params, sigma, misfit, seeds)


def _respaced(log_x: Floats, count: int | None, stretch: float) -> Floats:
    """Return `count` log sizes [count, V] about the same middle, in a log span `stretch` times as wide."""
    if count is not None and count != len(log_x):
        if log_x.shape[1] == 1:
            log_x = np.linspace(log_x.min(axis=0), log_x.max(axis=0), count)
        else:  # Points in several variables cannot be spaced evenly along a line, so the given points are repeated.
            log_x = np.resize(log_x, (count, log_x.shape[1]))
    middle = log_x.mean(axis=0)
    return np.asarray(middle + stretch * (log_x - middle))
