"""Two families at the same sizes: the slope and the level of the logarithm of their losses' ratio.

Notable: what both families share, such as the deviation of a size from any smooth law, cancels in the ratio, so that
its slope tells differences of exponents apart that the families' own fits cannot. It takes no law for true; its t test
is exact whatever the two families' scatter. What a law can change is the meaning: two families of one law above a floor
that differ by a constant factor on N have a ratio that changes with N all the same. So the slope is also tested against
that, under every floor that the runs do not reject (`p_any_floor`; None where tokens or other columns vary from size to
size, so that there is no one curve to put a floor under).

Axes: n matched points, G floors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from slm.scaling.floors import SHARES, at_floors, floors_not_rejected
from slm.scaling.forms import Floats
from slm.scaling.matching import Matched, match
from slm.scaling.pairs import adjust, holm
from slm.scaling.power import PairedDesign
from slm.scaling.robust import cluster_error
from slm.scaling.tables import Table

Entry = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """Least squares of values on columns: coefficients, their errors, degrees of freedom of each, residuals."""

    coefficients: Floats
    errors: Floats
    df: Floats
    residuals: Floats

    def p(self, place: int) -> float:
        """Two-sided p of a coefficient being 0."""
        return float(2 * stats.t.sf(abs(self.coefficients[place]) / self.errors[place], self.df[place]))


def regress(values: Floats, columns: Sequence[Floats], groups: np.ndarray) -> Line:
    """Least squares with Student's t, or with cluster-robust errors where several rows are of one of `groups`."""
    design = np.stack(columns, axis=1)
    inverse = np.linalg.pinv(design.T @ design)
    coefficients = inverse @ design.T @ values
    residuals = values - design @ coefficients
    n, k = design.shape
    if len(np.unique(groups)) == n:
        variance = max(float(residuals @ residuals), 1e-30) / (n - k)
        return Line(coefficients, np.sqrt(variance * np.diag(inverse)), np.full(k, float(n - k)), residuals)
    found = np.array([cluster_error(design, residuals, groups, unit) for unit in np.eye(k)])
    return Line(coefficients, np.maximum(found[:, 0], 1e-15), found[:, 1], residuals)


def compare_pairs(
    table: Table, target: str, size: str, covariates: Sequence[str] = (), *, level: float = 0.95, power: float = 0.8
) -> Entry:
    """`paired` of comparison.json: every pair of families that can be matched, and p-values adjusted over them (Holm).

    `unmatched` says of the others why not, `advice` what would detect half of the largest `detectable`. `p` is the
    least adjusted p of a slope: a test of all families whose level holds for any scatter and any correlation of the
    families.
    """
    pairs, unmatched = [], []
    for a, b in combinations(table.families, 2):
        found = match(table, a, b, target, size, covariates)
        if isinstance(found, str):
            unmatched.append({"a": a, "b": b, "reason": found})
        elif np.isfinite((pair := _pair(found, level))["p"]):
            pairs.append(pair)
        else:
            unmatched.append({"a": a, "b": b, "reason": "the rows leave no scatter to tell a slope by"})
    adjust(pairs)
    for pair, adjusted in zip(pairs, holm([pair["level_p"] for pair in pairs]), strict=True):
        pair["level_p_adjusted"] = adjusted
    families = len(table.families)
    asked: dict[str, Any] = {"power": power, "level": 1 - level, "pairs": families * (families - 1) // 2}
    designs = [
        PairedDesign(np.log(pair["sizes"]), pair["noise"], pair["misfit"], max(1, round(pair["seeds"])))
        for pair in pairs
    ]
    for pair, design in zip(pairs, designs, strict=True):
        pair["detectable"] = design.detectable(**asked)
    worst = max(designs, key=lambda one: one.error(), default=None)
    least = max((pair["detectable"] or 0.0 for pair in pairs), default=0.0)
    advice = worst.advice(least / 2, **asked) if worst and least else None
    return {
        "target": target,
        "size": size,
        "power": power,
        "pairs": pairs,
        "unmatched": unmatched,
        "p": min((pair["p_adjusted"] for pair in pairs), default=None),
        "level_p": min((pair["level_p_adjusted"] for pair in pairs), default=None),
        "advice": advice and {**vars(advice), "text": advice.text},
    }


def _pair(of: Matched, level: float) -> Entry:
    x = of.log_N - of.log_N.mean()
    columns = [np.ones_like(x), x, *(column - column.mean() for column in of.rest)]
    line, mean = (regress(values, columns, of.shapes) for values in (of.log_ratio, (of.log_a + of.log_b) / 2))
    reach = stats.t.ppf(0.5 + level / 2, line.df[1]) * line.errors[1]
    floors = None if of.rest else _floors(of, x, level)
    residuals = np.bincount(of.shapes, line.residuals) / np.bincount(of.shapes)
    spread = float(np.sqrt((residuals**2).sum() / max(len(residuals) - 2, 1)))
    own = 0.0 if of.noise is None else of.noise / np.sqrt(of.seeds)
    log_sizes = np.unique(np.bincount(of.shapes, of.log_N) / np.bincount(of.shapes))
    at = [(float(N - of.log_N.mean()), _local(N, of.log_N, floors)) for N in log_sizes]
    by_size = [_worth(line, mean, shift, share, level) for shift, share in at]
    return {
        "a": of.a,
        "b": of.b,
        "sizes": np.exp(log_sizes),
        "farthest": of.farthest,
        "seeds": of.seeds,
        "points": {"N": np.exp(of.log_N), "log_ratio": of.log_ratio},
        "delta": -float(line.coefficients[1]),
        "ci_low": -float(line.coefficients[1] + reach),
        "ci_high": -float(line.coefficients[1] - reach),
        "p": line.p(1),
        "df": float(line.df[1]),
        "noise": None if of.noise is None else of.noise / np.sqrt(2),
        "misfit": float(np.sqrt(max(spread**2 - own**2, 0.0))),
        "spread": spread,
        "p_any_floor": None if floors is None else _largest_p(line, [one.line for one in floors]),
        "level_log_ratio": float(line.coefficients[0]),
        "level_p": line.p(0),
        "worth": _worth(line, mean, 0.0, 1.0, level),
        "worth_by_size": [{"N": float(np.exp(N)), **one} for N, one in zip(log_sizes, by_size, strict=True)],
        "band": _band(line, x, of, level),
    }


def _worth(line: Line, mean: Line, at: float, share: float, level: float) -> Entry:
    """How many times the parameters of b a run of a is worth, at log size `at` above the mean: a ratio (Fieller 1954).

    Its logarithm is -log(a / b) over the local exponent: the slope of both families' mean, times its `share` there. An
    end is None where the data set none.
    """
    ratio = -float(line.coefficients[0] + line.coefficients[1] * at)
    exponent = -float(mean.coefficients[1]) * share
    df = line.df[:2].min()
    t = stats.t.ppf(0.5 + level / 2, df)
    of_ratio, of_exponent = line.errors[0] ** 2 + (line.errors[1] * at) ** 2, (mean.errors[1] * share) ** 2
    common = float(line.residuals @ mean.residuals) / max(float(np.linalg.norm(line.residuals)), 1e-300)
    common /= max(float(np.linalg.norm(mean.residuals)), 1e-300)
    both = at * share * common * line.errors[1] * mean.errors[1]
    square, middle = exponent**2 - t**2 * of_exponent, exponent * ratio - t**2 * both
    if exponent <= 0 or square <= 0:
        return {"factor": None, "low": None, "high": None}
    root = np.sqrt(max(middle**2 - square * (ratio**2 - t**2 * of_ratio), 0.0))
    ends = (ratio / exponent, (middle - root) / square, (middle + root) / square)
    with np.errstate(over="ignore"):
        return dict(zip(("factor", "low", "high"), (float(np.exp(end)) for end in ends), strict=True))


def _band(line: Line, x: Floats, of: Matched, level: float) -> Entry:
    """The line of the log ratio along N, with the interval of its height."""
    along = np.linspace(x.min(), x.max(), 40)
    height = line.coefficients[0] + line.coefficients[1] * along
    t = stats.t.ppf(0.5 + level / 2, line.df[:2].min())
    reach = t * np.sqrt(line.errors[0] ** 2 + (line.errors[1] * along) ** 2)
    return {"N": np.exp(along + of.log_N.mean()), "centre": height, "low": height - reach, "high": height + reach}


@dataclass(frozen=True)
class _Floor:
    """A floor that is not rejected, the log ratio's regression that allows for it, and how well it fits."""

    line: Line
    squares: float
    local: Floats
    """Local exponent at each point over its mean [n]."""


def _floors(of: Matched, x: Floats, level: float) -> list[_Floor]:
    """Floors that the mean of both families does not reject.

    Under a floor a constant factor on N changes the ratio in proportion to the local exponent, alpha (1 - E / L) at
    each size, which takes the place of the constant.
    """
    mean = (of.log_a + of.log_b) / 2
    fits = at_floors(of.log_N, mean, SHARES * float(np.exp(mean.min())))
    kept = floors_not_rejected(fits.squares, len(x) - 3, level) & (fits.alpha > 0)
    return [
        _Floor(regress(of.log_ratio, [local, x], of.shapes), float(fits.squares[g]), local)
        for g in np.flatnonzero(kept)
        for local in [fits.local[g] / fits.local[g].mean()]
    ]


def _local(log_size: float, log_n: Floats, floors: Sequence[_Floor] | None) -> float:
    """The local exponent at a size over its mean, by the floor that fits best; 1 where none was fitted."""
    if not floors:
        return 1.0
    best = min(floors, key=lambda one: one.squares)
    return float(np.interp(log_size, log_n, best.local))


def _largest_p(line: Line, floors: Sequence[Line]) -> float:
    """The largest p of the slope without and with these floors, 1 where one of them turns its sign."""
    sign = np.sign(line.coefficients[1])
    if any(np.sign(one.coefficients[1]) != sign for one in floors):
        return 1.0
    return max([line.p(1), *(one.p(1) for one in floors)])
