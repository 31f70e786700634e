"""Two families at the same sizes: the slope and the level of the logarithm of their losses' ratio.

Notable: what both families share, such as the deviation of a size from any smooth law, cancels in the ratio, so that
its slope tells differences of exponents apart that the families' own fits cannot. It takes no law for true; its t test
is exact whatever the two families' scatter (`Line.with_noise` says where seeds have a part in it). What a law can
change is the meaning: two families of one law above a floor that differ by a constant factor on N have a ratio that
changes with N all the same. So the slope is also tested against that, under every floor that the runs do not reject
(`p_any_floor`). Where the runs reject every straight line, exponents are compared above those floors (`above_floor`).

Axes: n matched points, G floors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from slm.scaling.floors import SHARES, at_floors, floors_not_rejected
from slm.scaling.forms import Floats
from slm.scaling.matching import Matched, match
from slm.scaling.pairs import adjust, holm
from slm.scaling.power import PairedDesign
from slm.scaling.tables import Table

Entry = dict[str, Any]


OWN_FLOORS = 0.01
"""Level, over all pairs, of the F test that a pair shares no floor: above floors of their own, exponents differ too."""


@dataclass(frozen=True)
class Line:
    """Least squares: intercept and slope, their errors, degrees of freedom, residuals [n]."""

    coefficients: Floats
    errors: Floats
    df: int
    residuals: Floats

    def with_noise(self, variance: float, df: int) -> Line:
        """With the variance of a point that seeds show, where that is more than the residuals'.

        A few points may lie on a line by luck; no mean over seeds scatters less than seeds do. Both are then one
        estimate. In simulations the test's level is 2.9 to 6.3% in this way, whatever the points' own deviation.
        """
        own = float(self.residuals @ self.residuals) / self.df
        if variance <= own:
            return self
        pooled = (self.df * own + df * variance) / (self.df + df)
        return replace(self, errors=self.errors * np.sqrt(pooled / own), df=self.df + df)

    def p(self, place: int) -> float:
        """Two-sided p of a coefficient being 0."""
        return float(2 * stats.t.sf(abs(self.coefficients[place]) / self.errors[place], self.df))


def regress(values: Floats, x: Floats, weights: Floats | None = None) -> Line:
    """Weighted least squares of values on a constant and `x`, with Student's t."""
    root = np.ones_like(x) if weights is None else np.sqrt(weights)
    design = np.stack([np.ones_like(x), x], axis=1) * root[:, None]
    inverse = np.linalg.pinv(design.T @ design)
    coefficients = inverse @ design.T @ (values * root)
    residuals = values * root - design @ coefficients
    variance = max(float(residuals @ residuals), 1e-30) / (len(x) - 2)
    return Line(coefficients, np.sqrt(variance * np.diag(inverse)), len(x) - 2, residuals)


def compare_pairs(
    table: Table,
    target: str,
    size: str,
    covariates: Sequence[str] = (),
    *,
    curved: bool = False,
    level: float = 0.95,
    power: float = 0.8,
) -> Entry:
    """`paired` of comparison.json: every pair of families that can be matched, and p-values adjusted over them (Holm).

    `unmatched` says of the others why not, `advice` what would detect half of the largest `detectable`. `p` is the
    least adjusted p of a slope: a test of all families whose level holds for any scatter and any correlation of the
    families. With `curved`, pairs that may share a floor have `above_floor`, and `advice` is for that.
    """
    pairs, unmatched = [], []
    families = len(table.families)
    possible = max(1, families * (families - 1) // 2)
    shared = OWN_FLOORS / possible if curved else None
    for a, b in combinations(table.families, 2):
        found = match(table, a, b, target, size, covariates)
        if isinstance(found, str):
            unmatched.append({"a": a, "b": b, "reason": found})
        elif np.isfinite((pair := _pair(found, level, shared))["p"]):
            pairs.append(pair)
        else:
            unmatched.append({"a": a, "b": b, "reason": "the rows leave no scatter to tell a slope by"})
    adjust(pairs)
    for pair, adjusted in zip(pairs, holm([pair["level_p"] for pair in pairs]), strict=True):
        pair["level_p_adjusted"] = adjusted
    asked: dict[str, Any] = {"power": power, "level": 1 - level, "pairs": possible}
    compared: list[tuple[Entry, PairedDesign]] = []  # what a verdict rests on
    for pair in pairs:
        design = PairedDesign(np.log(pair["sizes"]), pair["noise"], pair["misfit"], max(1, round(pair["seeds"])))
        pair["detectable"] = design.detectable(**asked)
        if (above := pair["above_floor"]) is not None:
            design = replace(design, unit=above["error"] / design.error())
            above["detectable"] = design.detectable(**asked)
        if above is not None or not curved:
            compared.append((pair if above is None else above, design))
    worst = max((design for _, design in compared), key=lambda one: one.error(), default=None)
    least = max((one["detectable"] or 0.0 for one, _ in compared), default=0.0)
    advice = worst.advice(least / 2, **asked) if worst and least else None
    return {
        "target": target,
        "size": size,
        "power": power,
        "curved": curved,
        "pairs": pairs,
        "unmatched": unmatched,
        "p": min((pair["p_adjusted"] for pair in pairs), default=None),
        "level_p": min((pair["level_p_adjusted"] for pair in pairs), default=None),
        "advice": advice and {**vars(advice), "text": advice.text},
    }


def _pair(of: Matched, level: float, shared: float | None) -> Entry:
    x = of.log_N - of.log_N.mean()
    own = 0.0 if of.noise is None else of.noise / np.sqrt(of.seeds)
    line, mean = (regress(values, x) for values in (of.log_ratio, (of.log_a + of.log_b) / 2))
    spread = float(np.sqrt((line.residuals**2).sum() / line.df))
    line = line.with_noise(own**2, of.noise_df)
    reach = stats.t.ppf(0.5 + level / 2, line.df) * line.errors[1]
    floors = _floors(of, x, level)
    local = min(floors, key=lambda one: one.squares).local
    by_size = [_worth(line, mean, shift, share, level) for shift, share in zip(x, local, strict=True)]
    return {
        "a": of.a,
        "b": of.b,
        "sizes": np.exp(of.log_N),
        "farthest": of.farthest,
        "seeds": of.seeds,
        "log_ratio": of.log_ratio,
        "delta": -float(line.coefficients[1]),
        "ci_low": -float(line.coefficients[1] + reach),
        "ci_high": -float(line.coefficients[1] - reach),
        "p": line.p(1),
        "df": line.df,
        "noise": None if of.noise is None else of.noise / np.sqrt(2),
        "misfit": float(np.sqrt(max(spread**2 - own**2, 0.0))),
        "spread": spread,
        "p_any_floor": _largest_p([line, *(one.line for one in floors)]),
        "above_floor": None if shared is None else _above_floor(of, floors, level, shared),
        "level_log_ratio": float(line.coefficients[0]),
        "level_above": float(np.expm1(line.coefficients[0])),
        "level_p": line.p(0),
        "worth": _worth(line, mean, 0.0, 1.0, level),
        "worth_by_size": [{"N": float(np.exp(N)), **one} for N, one in zip(of.log_N, by_size, strict=True)],
        "band": _band(line, x, of, level),
    }


def _worth(line: Line, mean: Line, at: float, share: float, level: float) -> Entry:
    """How many times the parameters of b a run of a is worth, at log size `at` above the mean: a ratio (Fieller 1954).

    Its logarithm is -log(a / b) over the local exponent: the slope of both families' mean, times its `share` there. An
    end is None where the data set none.
    """
    ratio = -float(line.coefficients[0] + line.coefficients[1] * at)
    exponent = -float(mean.coefficients[1]) * share
    t = stats.t.ppf(0.5 + level / 2, line.df)
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
    t = stats.t.ppf(0.5 + level / 2, line.df)
    reach = t * np.sqrt(line.errors[0] ** 2 + (line.errors[1] * along) ** 2)
    return {"N": np.exp(along + of.log_N.mean()), "centre": height, "low": height - reach, "high": height + reach}


@dataclass(frozen=True)
class _Floor:
    """A floor that is not rejected, the slope of the log ratio above it, and how well it fits."""

    height: float
    line: Line
    squares: float
    local: Floats
    """Mean local exponent of both families at each size, over its mean [n]."""


def _floors(of: Matched, x: Floats, level: float) -> list[_Floor]:
    """Floors, the same for both, that the two families do not reject; the best at least.

    Above a floor a constant factor on N is a constant in the log ratio of L - E, whose scatter at each size is that of
    log L over the share of L that lies above the floor. The two families' deviations may be the same, so that they
    count as those of one.
    """
    lowest = float(np.exp(min(of.log_a.min(), of.log_b.min())))
    a, b = (at_floors(of.log_N, log_y, SHARES * lowest) for log_y in (of.log_a, of.log_b))
    squares = a.squares + b.squares
    kept = floors_not_rejected(squares, len(x) - 3, level) | (squares == squares.min())
    found = []
    for g in np.flatnonzero(kept):
        above = [np.exp(log_y) - a.floors[g] for log_y in (of.log_a, of.log_b)]
        share = sum(one / (one + a.floors[g]) for one in above) / 2
        local = (a.local[g] + b.local[g]) / 2
        line = regress(np.log(above[0] / above[1]), x, share**2)
        line = line.with_noise(0.0 if of.noise is None else of.noise**2 / of.seeds, of.noise_df)
        found.append(_Floor(float(a.floors[g]), line, float(squares[g]), local / local.mean()))
    return found


def _largest_p(lines: Sequence[Line]) -> float:
    """The largest p of these slopes, 1 where their signs differ."""
    same = len({np.sign(one.coefficients[1]) for one in lines}) == 1
    return max(one.p(1) for one in lines) if same else 1.0


def _above_floor(of: Matched, floors: Sequence[_Floor], level: float, shared: float) -> Entry | None:
    """The difference of exponents above a floor that both families share, whichever of `floors` it is.

    Ends and p hold for each of the floors. None where an F test at the level `shared` rejects that there is one.
    """
    own = [
        at_floors(of.log_N, log_y, SHARES * float(np.exp(log_y.min()))).squares.min() for log_y in (of.log_a, of.log_b)
    ]
    best, spare = min(floors, key=lambda one: one.squares), 2 * len(of.log_N) - 6
    if spare < 1 or stats.f.sf((best.squares / sum(own) - 1) * spare, 1, spare) < shared:
        return None
    reach = [stats.t.ppf(0.5 + level / 2, one.line.df) * one.line.errors[1] for one in floors]
    slopes = [-one.line.coefficients[1] for one in floors]
    low = min(slope - by for slope, by in zip(slopes, reach, strict=True))
    high = max(slope + by for slope, by in zip(slopes, reach, strict=True))
    return {
        "floor": best.height,
        "delta": -float(best.line.coefficients[1]),
        "ci_low": float(low),
        "ci_high": float(high),
        "error": float((high - low) / 2 / stats.t.ppf(0.5 + level / 2, best.line.df)),
        "p": _largest_p([one.line for one in floors]),
    }
