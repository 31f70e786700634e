"""Two families at the same sizes: the slope and the level of the logarithm of their losses' ratio.

Notable: what both families share, such as the deviation of a size from any smooth law, cancels in the ratio, so its
slope shows differences of exponents that the families' own fits cannot. The t test assumes no law, and is exact
whatever the two families' scatter (`Line.with_noise` says how seeds enter). A law changes only the meaning: two
families of one law above a floor that differ by a constant factor on N have a ratio that changes with N. So the slope
is also tested against that, under every floor that the runs do not reject (`p_any_floor`). If the runs reject every
straight line, exponents are compared above those floors (`above_floor`).

Axes: n matched points, G floors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from slm.scaling.entries import Entry
from slm.scaling.forms import Floats
from slm.scaling.matching import Matched, match
from slm.scaling.pairs import FLOOR_SHARES, adjust, at_floors, floors_not_rejected, holm
from slm.scaling.power import PairedDesign
from slm.scaling.settings import Settings
from slm.scaling.tables import Table

OWN_FLOORS_LEVEL = 0.01
"""Level, over all pairs, of the F test that a pair shares no floor: above different floors, exponents differ too."""
BAND_POINTS = 40


@dataclass(frozen=True)
class Line:
    """Least squares: intercept and slope, their errors, degrees of freedom, residuals [n]."""

    coefficients: Floats
    errors: Floats
    df: int
    residuals: Floats

    def with_noise(self, variance: float, df: int) -> Line:
        """With the `variance` of a point that follows from seeds, if that is more than the residuals'.

        A few points may lie on a line by chance; no mean over seeds scatters less than seeds do. Both are then pooled.
        In simulations the level of the test is then 2.9 to 6.3%, whatever the points' own deviation.
        """
        observed = float(self.residuals @ self.residuals) / self.df
        if variance <= observed:
            return self
        pooled = (self.df * observed + df * variance) / (self.df + df)
        return replace(self, errors=self.errors * np.sqrt(pooled / observed), df=self.df + df)

    def p(self, place: int) -> float:
        """Two-sided p of a coefficient being 0."""
        return float(2 * stats.t.sf(abs(self.coefficients[place]) / self.errors[place], self.df))

    def difference(self, level: float) -> Entry:
        """Minus the slope, which is the difference of two exponents, with its interval."""
        slope, reach = float(self.coefficients[1]), float(stats.t.ppf(0.5 + level / 2, self.df) * self.errors[1])
        return {"delta": -slope, "ci_low": -(slope + reach), "ci_high": -(slope - reach)}


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
    table: Table, target: str, size: str, settings: Settings, covariates: Sequence[str] = (), *, curved: bool = False
) -> Entry:
    """`paired` of comparison.json: every pair of families that can be matched, and p-values adjusted over them (Holm).

    `unmatched` gives the reason for the others, `advice` what would detect half of the largest `detectable`. `p` is the
    least adjusted p of a slope: a test of all families whose level holds for any scatter and any correlation of the
    families. With `curved`, pairs that may share a floor have `above_floor`, and `advice` is for that.
    """
    level, power = settings.level, settings.power
    possible = max(1, len(table.families) * (len(table.families) - 1) // 2)
    pairs, unmatched = [], []
    for a, b in combinations(table.families, 2):
        matched = match(table, a, b, target, size, covariates)
        pair = matched if isinstance(matched, str) else _pair(matched, level, OWN_FLOORS_LEVEL / possible, curved)
        if isinstance(pair, str):
            unmatched.append({"a": a, "b": b, "reason": pair})
        else:
            pairs.append(pair)
    adjust(pairs)
    for pair, adjusted in zip(pairs, holm([pair["level_p"] for pair in pairs]), strict=True):
        pair["level_p_adjusted"] = adjusted
    return {
        "target": target,
        "size": size,
        "power": power,
        "curved": curved,
        "pairs": pairs,
        "unmatched": unmatched,
        "p": min((pair["p_adjusted"] for pair in pairs), default=None),
        "level_p": min((pair["level_p_adjusted"] for pair in pairs), default=None),
        "advice": _add_detectable(pairs, curved, {"power": power, "level": 1 - level, "pairs": possible}),
    }


def _add_detectable(pairs: Sequence[Entry], curved: bool, options: Entry) -> Entry | None:
    """Add `detectable` to every pair, and say what would detect half of the largest that a verdict rests on."""
    compared: list[tuple[float, PairedDesign]] = []
    for pair in pairs:
        design = PairedDesign(np.log(pair["sizes"]), pair["noise"], pair["misfit"], max(1, round(pair["seeds"])))
        pair["detectable"] = smallest = design.detectable(**options)
        if above := pair["above_floor"]:
            design = replace(design, unit=above["error"] / design.error())
            above["detectable"] = smallest = design.detectable(**options)
        if above or not curved:
            compared.append((smallest or 0.0, design))
    largest = max((smallest for smallest, _ in compared), default=0.0)
    if not largest:
        return None
    worst = max((design for _, design in compared), key=lambda design: design.error())
    return worst.advice(largest / 2, **options).entry()


def _pair(matched: Matched, level: float, floor_level: float, curved: bool) -> Entry | str:
    """One entry of `pairs`, or why there is none."""
    x = matched.log_N - matched.log_N.mean()
    noise = (matched.noise or 0.0) / np.sqrt(matched.seeds)
    line, mean = (regress(values, x) for values in (matched.log_ratio, (matched.log_a + matched.log_b) / 2))
    spread = float(np.sqrt((line.residuals**2).sum() / line.df))
    line = line.with_noise(noise**2, matched.noise_df)
    if not np.isfinite(line.p(1)):
        return "the rows leave no scatter to test a slope by"
    intercept = float(line.coefficients[0])
    floors = _floors(matched, x, level)
    places = zip(np.exp(matched.log_N).tolist(), x, min(floors, key=lambda floor: floor.squares).local, strict=True)
    return {
        "a": matched.a,
        "b": matched.b,
        "sizes": np.exp(matched.log_N),
        "farthest": matched.farthest,
        "seeds": matched.seeds,
        "log_ratio": matched.log_ratio,
        **line.difference(level),
        "p": line.p(1),
        "df": line.df,
        "noise": None if matched.noise is None else matched.noise / np.sqrt(2),
        "misfit": float(np.sqrt(max(spread**2 - noise**2, 0.0))),
        "spread": spread,
        "p_any_floor": _largest_p([line, *(floor.line for floor in floors)]),
        "above_floor": _above_floor(matched, floors, level, floor_level) if curved else None,
        "level_log_ratio": intercept,
        "level_above": float(np.expm1(intercept)),
        "level_p": line.p(0),
        "worth": _worth(line, mean, 0.0, 1.0, level),
        "worth_by_size": [{"N": N} | _worth(line, mean, shift, share, level) for N, shift, share in places],
        "band": _band(line, x, matched, level),
    }


def _worth(line: Line, mean: Line, at: float, share: float, level: float) -> Entry:
    """How many times the parameters of b a run of a is worth, at log size `at` above the mean: a ratio (Fieller 1954).

    Its logarithm is -log(a / b) over the local exponent: the slope of both families' mean, times its `share` there. An
    end is None if the data do not bound it.
    """
    ratio = -float(line.coefficients[0] + line.coefficients[1] * at)
    exponent = -float(mean.coefficients[1]) * share
    t = stats.t.ppf(0.5 + level / 2, line.df)
    ratio_variance, exponent_variance = line.errors[0] ** 2 + (line.errors[1] * at) ** 2, (mean.errors[1] * share) ** 2
    correlation = float(line.residuals @ mean.residuals) / max(float(np.linalg.norm(line.residuals)), 1e-300)
    correlation /= max(float(np.linalg.norm(mean.residuals)), 1e-300)
    covariance = at * share * correlation * line.errors[1] * mean.errors[1]
    square, middle = exponent**2 - t**2 * exponent_variance, exponent * ratio - t**2 * covariance
    if exponent <= 0 or square <= 0:
        return {"factor": None, "low": None, "high": None}
    root = np.sqrt(max(middle**2 - square * (ratio**2 - t**2 * ratio_variance), 0.0))
    ends = (ratio / exponent, (middle - root) / square, (middle + root) / square)
    with np.errstate(over="ignore"):
        return dict(zip(("factor", "low", "high"), (float(np.exp(end)) for end in ends), strict=True))


def _band(line: Line, x: Floats, matched: Matched, level: float) -> Entry:
    """The line of the log ratio along N, with the interval of its height."""
    along = np.linspace(x.min(), x.max(), BAND_POINTS)
    height = line.coefficients[0] + line.coefficients[1] * along
    t = stats.t.ppf(0.5 + level / 2, line.df)
    reach = t * np.sqrt(line.errors[0] ** 2 + (line.errors[1] * along) ** 2)
    return {"N": np.exp(along + matched.log_N.mean()), "centre": height, "low": height - reach, "high": height + reach}


@dataclass(frozen=True)
class _Floor:
    """A floor that is not rejected, the slope of the log ratio above it, and the sum of squares of its fit.

    `local` [n] is the mean local exponent of both families at each size, over its mean.
    """

    height: float
    line: Line
    squares: float
    local: Floats


def _floors(matched: Matched, x: Floats, level: float) -> list[_Floor]:
    """Floors, the same for both, that the two families do not reject; the best at least.

    Above a floor a constant factor on N is a constant in the log ratio of L - E, whose scatter at each size is that of
    log L over the share of L that lies above the floor. Both families may deviate together, so they count as one.
    """
    both = (matched.log_a, matched.log_b)
    a, b = (at_floors(matched.log_N, log_y, FLOOR_SHARES * float(np.exp(np.min(both)))) for log_y in both)
    squares = a.squares + b.squares
    kept = floors_not_rejected(squares, len(x) - 3, level) | (squares == squares.min())
    floors = []
    for g in np.flatnonzero(kept):
        above = [np.exp(log_y) - a.floors[g] for log_y in both]
        share = sum(height / (height + a.floors[g]) for height in above) / 2
        local = (a.local[g] + b.local[g]) / 2
        line = regress(np.log(above[0] / above[1]), x, share**2)
        line = line.with_noise((matched.noise or 0.0) ** 2 / matched.seeds, matched.noise_df)
        floors.append(_Floor(float(a.floors[g]), line, float(squares[g]), local / local.mean()))
    return floors


def _largest_p(lines: Sequence[Line]) -> float:
    """The largest p of these slopes, 1 if their signs differ."""
    have_one_sign = len({np.sign(line.coefficients[1]) for line in lines}) == 1
    return max(line.p(1) for line in lines) if have_one_sign else 1.0


def _above_floor(matched: Matched, floors: Sequence[_Floor], level: float, floor_level: float) -> Entry | None:
    """The difference of exponents above a floor that both families share; ends and p hold for each of `floors`.

    None if an F test at `floor_level` rejects that they share one.
    """
    separate_squares = sum(
        at_floors(matched.log_N, log_y, FLOOR_SHARES * float(np.exp(log_y.min()))).squares.min()
        for log_y in (matched.log_a, matched.log_b)
    )
    best, df = min(floors, key=lambda floor: floor.squares), 2 * len(matched.log_N) - 6
    if df < 1 or stats.f.sf((best.squares / separate_squares - 1) * df, 1, df) < floor_level:
        return None
    ends = [floor.line.difference(level) for floor in floors]
    low, high = min(row["ci_low"] for row in ends), max(row["ci_high"] for row in ends)
    entry = {"floor": best.height} | best.line.difference(level) | {"ci_low": low, "ci_high": high}
    entry["error"] = float((high - low) / 2 / stats.t.ppf(0.5 + level / 2, best.line.df))
    return entry | {"p": _largest_p([floor.line for floor in floors])}
