"""What a design can tell: the smallest difference of exponents it detects, and the design that detects a given one.

The variance of an exponent is sigma^2 times its element of the inverse Fisher information of the law at the design
points (exact for laws that are linear in logs, first order otherwise), so the test of a difference between two families
of the same design has a noncentral t distribution (Cohen 1988, chapter 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

from slm.scaling.forms import Floats
from slm.scaling.laws import Law, get_law


@dataclass(frozen=True)
class Design:
    """Cells of one family under a law, and what one run scatters about it. Two families are taken to share it."""

    law: Law
    log_x: Floats
    """[cells, V], natural logarithms of the law's variables."""
    params: Mapping[str, float]
    """Quoted parameters of the law, assumed or fitted."""
    sigma: float
    """Standard deviation of one run's log loss about the law."""
    seeds: int = 1
    groups: int | None = None
    """Independent runs of one family, where several rows of `log_x` are of one run."""

    @property
    def runs(self) -> int:
        """Runs of one family."""
        return len(self.log_x) * self.seeds

    @property
    def degrees_of_freedom(self) -> int:
        """Of the pooled scatter of two families."""
        independent = self.runs if self.groups is None else self.groups * self.seeds
        return 2 * (independent - len(self.law.parameters))

    def error(self, exponent: str | None = None) -> float:
        """Standard error of one family's exponent (the law's first unless named); infinite if not identified."""
        refs = self.log_x.mean(axis=0)
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
        return float(self.sigma * np.sqrt(variance / self.seeds))

    def power(self, difference: float, *, exponent: str | None = None, level: float = 0.05, pairs: int = 1) -> float:
        """Chance to tell exponents `difference` apart, two-sided at `level` / `pairs` (Bonferroni)."""
        df, error = self.degrees_of_freedom, np.sqrt(2) * self.error(exponent)
        if df < 1 or not np.isfinite(error):
            return 0.0
        critical = stats.t.ppf(1 - level / pairs / 2, df)
        shift = abs(difference) / error if error > 0 else np.inf
        upper, lower = stats.nct.sf(critical, df, shift), stats.nct.cdf(-critical, df, shift)
        # For very large shifts scipy's noncentral t gives NaN, where the normal approximation is exact to rounding.
        return float(upper + np.nan_to_num(lower)) if np.isfinite(upper) else float(stats.norm.sf(critical - shift))

    def detectable(
        self, *, power: float = 0.8, exponent: str | None = None, level: float = 0.05, pairs: int = 1
    ) -> float | None:
        """Smallest difference of exponents found with chance `power`; None if the design cannot tell at all."""
        error = np.sqrt(2) * self.error(exponent)
        if self.degrees_of_freedom < 1 or not np.isfinite(error):
            return None
        if error == 0:
            return 0.0

        def short(size: float) -> float:
            return self.power(size * error, exponent=exponent, level=level, pairs=pairs) - power

        highest = 4.0
        while short(highest) < 0:
            highest *= 2
        return float(optimize.brentq(short, 0, highest) * error)


def plan(
    sizes: Mapping[str, Sequence[float]],
    *,
    law: str = "power",
    params: Mapping[str, float],
    sigma: float,
    seeds: int = 1,
) -> Design:
    """A design from columns of sizes: `plan({"N": [1e6, 2e6, 4e6]}, params={"A": 20, "alpha": 0.1}, sigma=0.01)`.

    `sizes` gives each of the law's variables a list, one entry a cell. Raises `ValueError` for a variable or parameter
    that is missing, lists that are empty or of different length, and for sizes, seeds or a `sigma` that cannot be.
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
        raise ValueError(f"sigma={sigma} must be above 0: it is the scatter of log loss between runs")
    if seeds < 1 or seeds != int(seeds):
        raise ValueError(f"seeds={seeds} must be a whole number of at least 1")
    return Design(chosen, np.log(x), params, sigma, seeds)


def seeds_needed(
    design: Design, difference: float, *, power: float = 0.8, level: float = 0.05, pairs: int = 1, most: int = 1000
) -> int | None:
    """Fewest seeds a cell with which `difference` is detected; None if `most` are not enough."""
    low, high = 1, most

    def enough(seeds: int) -> bool:
        changed = replace(design, seeds=seeds)
        return changed.power(difference, level=level, pairs=pairs) >= power

    if not enough(most):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def span_needed(
    design: Design, difference: float, *, power: float = 0.8, level: float = 0.05, pairs: int = 1, widest: float = 1e6
) -> float | None:
    """Least ratio of largest to smallest size, same number of cells and seeds, that detects `difference`.

    The cells are spread about the same middle, all variables alike in logs; None beyond a ratio of `widest`.
    """
    middle = design.log_x.mean(axis=0)
    now = float(np.ptp(design.log_x[:, 0]))
    if now == 0:
        return None

    def short(stretch: float) -> float:
        changed = replace(design, log_x=middle + stretch * (design.log_x - middle))
        return changed.power(difference, level=level, pairs=pairs) - power

    most = np.log(widest) / now
    if short(most) < 0:
        return None
    return float(np.exp(now * (optimize.brentq(short, 1e-3, most) if short(1e-3) < 0 else 1e-3)))
