"""Compare two families at the same sizes: fit a line through the log ratio of their losses against log N.

Notable:
- The slope is minus the difference of the exponents; the height at the middle size is the difference in level.
- Deviations from a smooth law that both families share cancel, so the slope shows smaller differences than two fits.
- The t test of the slope is exact for any normal scatter of the ratio. `Line.with_noise` says how seeds enter.
- The ratio of L changes with N even if both families follow one law with a floor E and differ only by a constant factor
  on N; the ratio of L - E does not. So the slope is tested again with every E that the runs do not reject
  (`p_any_floor`). If they reject straight lines in logs, exponents of L - E are compared (`above_floor`), not slopes.
"""

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

SHARED_FLOOR_LEVEL = 0.01
"""Level of the F tests that reject a shared floor; it is divided by the number of pairs (Bonferroni)."""
BAND_POINTS = 40  # of the drawn interval of a line


@dataclass(frozen=True)
class Line:
    """A fitted line: `coefficients` (intercept, slope), their standard `errors`, and `residuals` [points]."""

    coefficients: Floats
    errors: Floats
    df: int  # degrees of freedom
    residuals: Floats

    def with_noise(self, noise_variance: float, noise_df: int) -> "Line":
        """Return the line with larger errors if its residuals vary less than `noise_variance`.

        `noise_variance` is the variance of a point that the scatter between seeds implies. Few residuals may vary less
        by chance; the two variances are then pooled, weighted by their degrees of freedom. In simulations a test at 5%
        then has a level of 2.9 to 6.3%, whatever the misfit of the points.
        """
        observed = float(self.residuals @ self.residuals) / self.df
        if noise_variance <= observed:
            return self
        df = self.df + noise_df
        pooled = (self.df * observed + noise_df * noise_variance) / df
        return replace(self, errors=self.errors * np.sqrt(pooled / observed), df=df)

    def p(self, index: int) -> float:
        """Two-sided p of the test that a coefficient (0: intercept, 1: slope) is 0."""
        return float(2 * stats.t.sf(abs(self.coefficients[index]) / self.errors[index], self.df))

    def difference(self, level: float) -> Entry:
        """The difference of the exponents (minus the slope), with its interval."""
        slope = float(self.coefficients[1])
        half_width = float(stats.t.ppf(0.5 + level / 2, self.df) * self.errors[1])
        return {"delta": -slope, "ci_low": -(slope + half_width), "ci_high": -(slope - half_width)}


def regress(y: Floats, x: Floats, weights: Floats | None = None) -> Line:
    """Fit a line through `y` against `x` by (weighted) least squares."""
    root_weights = np.ones_like(x) if weights is None else np.sqrt(weights)
    design = np.stack([np.ones_like(x), x], axis=1) * root_weights[:, None]
    inverse = np.linalg.pinv(design.T @ design)
    coefficients = inverse @ design.T @ (y * root_weights)
    residuals = y * root_weights - design @ coefficients
    variance = max(float(residuals @ residuals), 1e-30) / (len(x) - 2)
    return Line(coefficients, np.sqrt(variance * np.diag(inverse)), len(x) - 2, residuals)


def compare_pairs(
    table: Table, target: str, size: str, settings: Settings, covariates: Sequence[str] = (), *, curved: bool = False
) -> Entry:
    """Return `paired` of comparison.json, with Holm's adjustment of p-values over all pairs.

    `pairs` are those that can be matched, `unmatched` the others with reasons. `p` is the smallest adjusted p of a
    slope: a test of all families that keeps its level for any scatter and any correlation of the families. `advice`
    has changes of the design that would detect half of the largest `detectable`. If `curved` (the runs reject straight
    lines in logs), pairs that may share a floor have `above_floor`, and `advice` is about these pairs. Errors that are
    bounded by chance have none: a floor does not describe how they bend.
    """
    level, power = settings.level, settings.power
    num_pairs = max(1, len(table.families) * (len(table.families) - 1) // 2)
    pairs, unmatched = [], []
    for a, b in combinations(table.families, 2):
        pair_or_reason: Matched | Entry | str = match(table, a, b, target, size, covariates)
        if isinstance(pair_or_reason, Matched):
            has_floor = curved and settings.target_kind != "accuracy"
            pair_or_reason = _pair(pair_or_reason, level, SHARED_FLOOR_LEVEL / num_pairs, has_floor)
        if isinstance(pair_or_reason, str):
            unmatched.append({"a": a, "b": b, "reason": pair_or_reason})
        else:
            pairs.append(pair_or_reason)
    adjust(pairs)
    for pair, adjusted in zip(pairs, holm([pair["level_p"] for pair in pairs]), strict=True):
        pair["level_p_adjusted"] = adjusted
    entry: Entry = {"target": target, "size": size, "power": power, "curved": curved, "pairs": pairs}
    entry["unmatched"] = unmatched
    entry["p"] = min((pair["p_adjusted"] for pair in pairs), default=None)
    entry["level_p"] = min((pair["level_p_adjusted"] for pair in pairs), default=None)
    entry["advice"] = _add_detectable(pairs, curved, {"power": power, "level": 1 - level, "num_tests": num_pairs})
    return entry


def _add_detectable(pairs: Sequence[Entry], curved: bool, options: Entry) -> Entry | None:
    """Add `detectable` to every pair. Return advice on half of the largest one in the tests that the verdict uses."""
    designs: list[PairedDesign] = []
    for pair in pairs:
        design = PairedDesign(np.log(pair["sizes"]), pair["noise"], pair["misfit"], max(1, round(pair["seeds"])))
        pair["detectable"] = design.detectable(**options)
        if above_floor := pair["above_floor"]:
            design = replace(design, exponent_per_slope=above_floor["error"] / design.error())
            above_floor["detectable"] = design.detectable(**options)
        if above_floor or not curved:
            designs.append(design)
    largest = max((design.detectable(**options) or 0.0 for design in designs), default=0.0)
    if not largest:
        return None
    worst = max(designs, key=PairedDesign.error)
    return worst.advice(largest / 2, **options).entry()


def _pair(matched: Matched, level: float, floor_level: float, has_floor: bool) -> Entry | str:
    """Return one entry of `pairs`, or why the slope cannot be tested."""
    x = matched.log_N - matched.log_N.mean()
    noise_of_mean = (matched.noise or 0.0) / np.sqrt(matched.seeds)
    line = regress(matched.log_ratio, x)
    mean_line = regress((matched.log_a + matched.log_b) / 2, x)
    spread = float(np.sqrt((line.residuals**2).sum() / line.df))
    line = line.with_noise(noise_of_mean**2, matched.noise_df)
    if not np.isfinite(line.p(1)):
        return "without scatter a slope cannot be tested"
    floors = _floors(matched, x, level)
    best = min(floors, key=lambda floor: floor.squares)
    intercept = float(line.coefficients[0])
    entry: Entry = {"a": matched.a, "b": matched.b, "sizes": np.exp(matched.log_N), "farthest": matched.farthest}
    entry |= {"seeds": matched.seeds, "log_ratio": matched.log_ratio}
    entry |= line.difference(level) | {"p": line.p(1), "df": line.df}
    entry["noise"] = None if matched.noise is None else matched.noise / np.sqrt(2)  # of one run, not of a ratio
    entry |= {"misfit": float(np.sqrt(max(spread**2 - noise_of_mean**2, 0.0))), "spread": spread}
    entry["p_any_floor"] = _largest_p([line, *(floor.line for floor in floors)])
    entry["above_floor"] = _above_floor(matched, floors, level, floor_level) if has_floor else None
    entry |= {"level_log_ratio": intercept, "level_above": float(np.expm1(intercept)), "level_p": line.p(0)}
    entry["worth"] = _worth(line, mean_line, offset=0.0, relative_exponent=1.0, level=level)
    points = zip(np.exp(matched.log_N).tolist(), x, best.relative_exponent, strict=True)
    entry["worth_by_size"] = [{"N": N} | _worth(line, mean_line, offset, ratio, level) for N, offset, ratio in points]
    return entry | {"band": _band(line, x, matched, level)}


def _worth(line: Line, mean_line: Line, offset: float, relative_exponent: float, level: float) -> Entry:
    """Return the `factor` on N with which b would match a at log N = mean + `offset`, with Fieller's interval (1954).

    The log of the factor is log(b / a), which is minus the height of `line`, divided by the local exponent. The local
    exponent is `relative_exponent` times minus the slope of `mean_line`, the line through the mean of both families'
    log losses. The factor and its interval are None if the runs do not bound the factor.
    """
    log_ratio = -float(line.coefficients[0] + line.coefficients[1] * offset)
    exponent = -float(mean_line.coefficients[1]) * relative_exponent
    t = stats.t.ppf(0.5 + level / 2, line.df)
    ratio_variance = line.errors[0] ** 2 + (line.errors[1] * offset) ** 2
    exponent_variance = (mean_line.errors[1] * relative_exponent) ** 2
    line_norm, mean_norm = (max(float(np.linalg.norm(fit.residuals)), 1e-300) for fit in (line, mean_line))
    correlation = float(line.residuals @ mean_line.residuals) / line_norm / mean_norm
    covariance = offset * relative_exponent * correlation * line.errors[1] * mean_line.errors[1]
    # The ends are the roots u of square u^2 - 2 middle u + log_ratio^2 - t^2 ratio_variance.
    square, middle = exponent**2 - t**2 * exponent_variance, exponent * log_ratio - t**2 * covariance
    if exponent <= 0 or square <= 0:
        return {"factor": None, "low": None, "high": None}
    root = np.sqrt(max(middle**2 - square * (log_ratio**2 - t**2 * ratio_variance), 0.0))
    log_factors = [log_ratio / exponent, (middle - root) / square, (middle + root) / square]
    with np.errstate(over="ignore"):
        factor, low, high = np.exp(log_factors).tolist()
    return {"factor": factor, "low": low, "high": high}


def _band(line: Line, x: Floats, matched: Matched, level: float) -> Entry:
    """Points on the line of the log ratio against N, each with an interval."""
    grid = np.linspace(x.min(), x.max(), BAND_POINTS)
    centre = line.coefficients[0] + line.coefficients[1] * grid
    t = stats.t.ppf(0.5 + level / 2, line.df)
    half_width = t * np.sqrt(line.errors[0] ** 2 + (line.errors[1] * grid) ** 2)
    N = np.exp(grid + matched.log_N.mean())
    return {"N": N, "centre": centre, "low": centre - half_width, "high": centre + half_width}


@dataclass(frozen=True)
class _Floor:
    """A floor E: its `height`, the `line` through the log ratio of L - E, and the misfit of both families' laws with E.

    `squares` is the sum of squared residuals of these laws. `relative_exponent` [n] is the local exponent at each size
    (mean of both families), divided by its mean over sizes.
    """

    height: float
    line: Line
    squares: float
    relative_exponent: Floats


def _floors(matched: Matched, x: Floats, level: float) -> list[_Floor]:
    """Return the shared floors that the two families do not reject; the best floor is always among them.

    The scatter of log(L - E) is that of log L divided by the share (L - E) / L, so points are weighted by the squared
    share. The F test counts the rows of only one family, since the two may deviate from their laws together.
    """
    log_targets = (matched.log_a, matched.log_b)
    heights = FLOOR_SHARES * float(np.exp(np.min(log_targets)))
    fit_a, fit_b = (at_floors(matched.log_N, log_y, heights) for log_y in log_targets)
    squares = fit_a.squares + fit_b.squares
    is_kept = floors_not_rejected(squares, len(x) - 3, level) | (squares == squares.min())
    floors = []
    for g in np.flatnonzero(is_kept):
        above_a, above_b = (np.exp(log_y) - heights[g] for log_y in log_targets)
        share = (above_a / (above_a + heights[g]) + above_b / (above_b + heights[g])) / 2
        line = regress(np.log(above_a / above_b), x, share**2)
        line = line.with_noise((matched.noise or 0.0) ** 2 / matched.seeds, matched.noise_df)
        exponents = (fit_a.local_exponents[g] + fit_b.local_exponents[g]) / 2
        floors.append(_Floor(float(heights[g]), line, float(squares[g]), exponents / exponents.mean()))
    return floors


def _largest_p(lines: Sequence[Line]) -> float:
    """The largest p of the slopes of `lines`; 1 if not all slopes have one sign."""
    have_one_sign = len({np.sign(line.coefficients[1]) for line in lines}) == 1
    return max(line.p(1) for line in lines) if have_one_sign else 1.0


def _above_floor(matched: Matched, floors: Sequence[_Floor], level: float, floor_level: float) -> Entry | None:
    """Return the difference of the exponents of L - E, with an interval and a p that hold for every E in `floors`."""
    log_targets = (matched.log_a, matched.log_b)
    fits = [at_floors(matched.log_N, log_y, FLOOR_SHARES * float(np.exp(log_y.min()))) for log_y in log_targets]
    separate_squares = sum(fit.squares.min() for fit in fits)
    best = min(floors, key=lambda floor: floor.squares)
    df = 2 * len(matched.log_N) - 6  # three parameters per family
    if df < 1 or stats.f.sf((best.squares / separate_squares - 1) * df, 1, df) < floor_level:
        return None  # the F test rejects a shared floor; exponents above two different floors are not compared
    differences = [floor.line.difference(level) for floor in floors]
    low, high = min(row["ci_low"] for row in differences), max(row["ci_high"] for row in differences)
    entry = {"floor": best.height} | best.line.difference(level) | {"ci_low": low, "ci_high": high}
    entry["error"] = float((high - low) / 2 / stats.t.ppf(0.5 + level / 2, best.line.df))
    return entry | {"p": _largest_p([floor.line for floor in floors])}
