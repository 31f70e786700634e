"""Match the points of two families at the same size and tokens. A point is the mean over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling.forms import Floats
from slm.scaling.tables import Table

SAME_SIZE = 0.10
"""Sizes that differ by at most this share are paired; both losses are moved along curves to the geometric mean."""
SAME_TOKENS = 0.02  # points whose tokens, or tokens per parameter, differ by at most this share are paired
MIN_SIZES = 4  # fewest common sizes that are compared: with fewer, a slope has fewer than two degrees of freedom


@dataclass(frozen=True)
class Matched:
    """Log targets of two families at their common sizes, in order of size.

    Each log target is a mean over runs, `seeds` of them on average (harmonic means of both families). `noise` is the
    standard deviation between seeds of the log ratio of two single runs, with `noise_df` degrees of freedom; None if no
    size has two seeds. `farthest` is the largest relative difference between two matched sizes.
    """

    a: str
    b: str
    log_N: Floats
    log_a: Floats
    log_b: Floats
    seeds: float
    noise: float | None
    noise_df: int
    farthest: float

    @property
    def log_ratio(self) -> Floats:
        """log(a / b)."""
        return self.log_a - self.log_b


def match(table: Table, a: str, b: str, target: str, size: str, covariates: Sequence[str] = ()) -> Matched | str:
    """Return the matched points of two families, or a sentence that says why they cannot be matched.

    Runs of a point are paired by seed if one family has only seeds that the other has too, which then keeps only these:
    runs with equal seeds saw the same data in the same order. Points must also agree in the columns `covariates`.
    """
    points_a, points_b = (points_of(table.family(name).frame, target, size, covariates) for name in (a, b))
    i, j = nearest(points_a, points_b)  # positions of the matched points in each family
    num_sizes = len(set(points_a.log_N[i]))
    if num_sizes < MIN_SIZES:
        fewest = min(len(set(points.log_N)) for points in (points_a, points_b))
        return f"{num_sizes} of {fewest} sizes agree within {SAME_SIZE:.0%} at the same tokens; {MIN_SIZES} are needed"
    log_n = np.stack([points_a.log_N[i], points_b.log_N[j]], axis=1)
    middle = log_n.mean(axis=1)
    size_index = np.unique(np.round(log_n[:, 0], 9), return_inverse=True)[1]  # of each point
    columns = np.column_stack([points_a.log_D, np.log(points_a.covariates)])[i].T
    others = [column for column in columns if not np.isnan(column).any() and _varies_beyond_size(middle, column)]
    if not _is_balanced(size_index, others):
        return "tokens or other columns vary at a size, but not in the same way at every size"
    runs = [_by_seed(points_a, points_b, index_a, index_b) for index_a, index_b in zip(i, j, strict=True)]
    points_per_size = np.bincount(size_index)
    is_curve = len(points_per_size) == len(size_index)  # one point per size
    means = np.array([[log_y.mean() for log_y in pair] for pair in runs])
    moved = [_at_sizes(middle, log_n[:, k], means[:, k], is_curve, others) for k in (0, 1)]
    # If every size was run at the same several token counts (or values of covariates), average over them.
    log_N, log_a, log_b = (np.bincount(size_index, column) / points_per_size for column in (middle, *moved))
    # The ratio of means over n and m runs scatters like that of means over 2 / (1/n + 1/m) runs each.
    seeds_of_points = [2 / (1 / len(runs_a) + 1 / len(runs_b)) for runs_a, runs_b in runs]
    seeds = float(np.mean(seeds_of_points) * len(size_index) / len(points_per_size))
    noise, noise_df = _noise(runs)
    farthest = float(np.expm1(np.abs(np.diff(log_n)).max()))
    return Matched(a, b, log_N, log_a, log_b, seeds, noise, noise_df, farthest)


def _is_balanced(size_index: np.ndarray, others: Sequence[Floats]) -> bool:
    """Whether every size was run at the same combinations of values in the columns `others`."""
    combinations: dict[float, list[list[float]]] = {}
    for size, *combination in np.round(np.column_stack([size_index, *others]), 2).tolist():
        combinations.setdefault(size, []).append(combination)
    first, *rest = (sorted(rows) for rows in combinations.values())
    return not others or all(rows == first for rows in rest)


@dataclass(frozen=True)
class Points:
    """All points of a family, in order of size. `covariates` is [points, covariates].

    `runs` has the log targets of each point, indexed by seed, or by row number if seeds are unknown.
    """

    log_N: Floats
    log_D: Floats
    covariates: Floats
    runs: list[pd.Series]
    has_seeds: bool


def points_of(frame: pd.DataFrame, target: str, size: str, covariates: Sequence[str] = ()) -> Points:
    """The points of a family's rows."""
    has_seeds = "seed" in frame and bool(frame["seed"].notna().all())
    rows = pd.DataFrame({"N": frame[size], "D": frame.get("tokens", np.nan)}, index=frame.index)
    rows["log_y"] = np.log(frame[target].astype(float))
    rows["seed"] = frame["seed"] if has_seeds else np.arange(len(frame))
    covariate_keys = [f"covariate {name}" for name in covariates]
    rows[covariate_keys] = frame[list(covariates)]
    keys, groups = zip(*rows.groupby(["N", "D", *covariate_keys], dropna=False), strict=True)
    points = np.array(keys, float)
    log_N, log_D = np.log(points[:, :2]).T
    runs = [group.groupby("seed")["log_y"].mean() for group in groups]
    return Points(log_N, log_D, points[:, 2:], runs, has_seeds)


def nearest(points_a: Points, points_b: Points) -> tuple[np.ndarray, np.ndarray]:
    """Positions in both families of mutually nearest points with similar sizes and tokens, and equal covariates."""
    size_gap = abs(points_a.log_N[:, None] - points_b.log_N)
    token_gap = abs(points_a.log_D[:, None] - points_b.log_D)
    ratio_gap = abs((points_a.log_D - points_a.log_N)[:, None] - (points_b.log_D - points_b.log_N))
    is_same = np.isnan(token_gap) | (np.minimum(token_gap, ratio_gap) <= np.log1p(SAME_TOKENS))  # NaN: unknown
    is_same &= (size_gap <= np.log1p(SAME_SIZE)) & (points_a.covariates[:, None] == points_b.covariates).all(axis=2)
    # Tokens have a small weight: they decide only between points of one size.
    distance = np.where(is_same, size_gap + 1e-3 * np.nan_to_num(token_gap), np.inf)
    i, j = np.arange(len(distance)), distance.argmin(axis=1)
    is_mutual = is_same[i, j] & (distance.argmin(axis=0)[j] == i)
    return i[is_mutual], j[is_mutual]


def paired_seeds(runs_a: pd.Series, runs_b: pd.Series, *, has_seeds: bool) -> list[Any]:
    """The seeds by which runs, indexed by seed, are paired; empty if all runs are compared.

    If both families have seeds of their own, means over all seeds scatter less than those over the common seeds, unless
    runs of equal seeds are correlated by more than a half. (In results/first_study they are by 0.2, the mean of six
    pairs of families.)
    """
    common = runs_a.index.intersection(runs_b.index).tolist() if has_seeds else []
    return common if len(common) == min(len(runs_a), len(runs_b)) else []


def _by_seed(points_a: Points, points_b: Points, i: int, j: int) -> tuple[Floats, Floats]:
    """Log targets at two points, for paired seeds in the same order, or for all seeds."""
    left, right = points_a.runs[i], points_b.runs[j]
    if paired := paired_seeds(left, right, has_seeds=points_a.has_seeds and points_b.has_seeds):
        left, right = left[paired], right[paired]
    return left.to_numpy(float), right.to_numpy(float)


def _noise(runs: list[tuple[Floats, Floats]]) -> tuple[float | None, int]:
    """Standard deviation of a log ratio between the seeds of a point, pooled over points, and its degrees of freedom.

    It is computed from the ratios at points where both families have equally many seeds. Without such points, it is
    computed from the seeds of each family, as if both families scattered equally.
    """
    paired = [left - right for left, right in runs if len(left) == len(right) > 1]
    unpaired = [side for pair in runs for side in pair if len(side) > 1]
    for groups, factor in ((paired, 1.0), (unpaired, 2.0)):  # the variance of a ratio is twice that of one run
        df = sum(len(group) - 1 for group in groups)
        if df:
            return float(np.sqrt(factor * sum(np.var(group) * len(group) for group in groups) / df)), df
    return None, 0


def _varies_beyond_size(log_n: Floats, column: Floats) -> bool:
    """Whether a log column deviates from a straight line in log N by more than 0.05 (root mean square)."""
    residuals = column - np.polyval(np.polyfit(log_n, column, 1), log_n)
    return bool(np.sqrt((residuals**2).mean()) > 0.05)


def _at_sizes(new_log_n: Floats, log_n: Floats, log_y: Floats, is_curve: bool, others: Sequence[Floats]) -> Floats:
    """Move log targets from sizes `log_n` to sizes `new_log_n` along a curve, or a plane in log N and `others`."""
    if is_curve:  # the slope between neighbouring sizes
        order = np.argsort(log_n)
        slopes = np.gradient(log_y[order], log_n[order])
        return np.asarray(log_y + slopes[np.argsort(order)] * (new_log_n - log_n))
    plane = np.stack([np.ones_like(log_n), log_n, *others], axis=1)
    slope = np.linalg.lstsq(plane, log_y, rcond=None)[0][1]
    return np.asarray(log_y + slope * (new_log_n - log_n))
