"""Pairs of points of two families at the same size and budget, which a matched design provides.

If every size was run at the same token counts (and covariates), a size is one point: the mean over them.

Axes: n matched sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from slm.scaling.forms import Floats
from slm.scaling.tables import Table

SAME_SIZE = 0.10
"""Sizes that differ by at most this share are paired; losses are then moved along each family's curve to the geometric
mean of the two sizes."""
SAME_TOKENS = 0.02
"""Budgets that differ by at most this share, in tokens or in tokens per parameter, are paired."""
MIN_SIZES = 4
"""Fewest sizes in common that are compared: with fewer, a slope has fewer than two degrees of freedom."""


@dataclass(frozen=True)
class Matched:
    """Log targets of two families at their n common sizes, in order of size.

    A value is the mean over `seeds` runs on average. `noise` is the standard deviation between seeds of the log ratio
    of two single runs, with `noise_df` degrees of freedom; None if no size has two seeds. `farthest` is the largest
    relative difference between two matched sizes.
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
    """The matched points of two families, or a sentence saying why they cannot be matched.

    Where both families ran a seed at a point, their runs are paired by seed: they saw the same data in the same order.
    Points must also agree in the columns `covariates`.
    """
    points_a, points_b = (_points(table.family(name).frame, target, size, covariates) for name in (a, b))
    i, j = _nearest(points_a, points_b)
    num_sizes = len(set(points_a.log_N[i]))
    if num_sizes < MIN_SIZES:
        most = min(len(set(points.log_N)) for points in (points_a, points_b))
        return f"{num_sizes} of {most} sizes agree within {SAME_SIZE:.0%} at the same tokens; {MIN_SIZES} are needed"
    log_n = np.stack([points_a.log_N[i], points_b.log_N[j]], axis=1)
    middle = log_n.mean(axis=1)
    shapes = np.unique(np.round(log_n[:, 0], 9), return_inverse=True)[1]
    columns = np.column_stack([points_a.log_D, np.log(points_a.others)])[i].T
    others = [column for column in columns if not np.isnan(column).any() and _varies_beyond_size(middle, column)]
    if not _is_balanced(shapes, others):
        return "tokens or other columns vary at a size, but not in the same way at every size"
    runs = [_by_seed(points_a, points_b, *places) for places in zip(i, j, strict=True)]
    counts = np.bincount(shapes)
    is_curve = len(counts) == len(shapes)  # one point per size
    means = np.array([[values.mean() for values in pair] for pair in runs])
    moved = [_at_sizes(middle, log_n[:, k], means[:, k], is_curve, others) for k in (0, 1)]
    log_N, log_a, log_b = (np.bincount(shapes, column) / counts for column in (middle, *moved))
    seeds = float(np.mean([len(left) for left, _ in runs]) * len(shapes) / len(counts))
    return Matched(a, b, log_N, log_a, log_b, seeds, *_noise(runs), float(np.expm1(np.abs(np.diff(log_n)).max())))


def _is_balanced(shapes: np.ndarray, others: Sequence[Floats]) -> bool:
    """Whether every shape was run at the same combinations of values in the columns `others`."""
    points: dict[int, list[tuple[float, ...]]] = {}
    for shape, *values in zip(shapes, *(np.round(column, 2) for column in others), strict=True):
        points.setdefault(shape, []).append(tuple(values))
    return not others or len({tuple(sorted(values)) for values in points.values()}) == 1


@dataclass(frozen=True)
class _Points:
    """All points of a family, in order of size: log size, log budget, and covariates `others` [points, covariates].

    `runs` has the log targets of each point by seed, or by row number if seeds are unknown.
    """

    log_N: Floats
    log_D: Floats
    others: Floats
    runs: list[pd.Series]
    has_seeds: bool


def _points(frame: pd.DataFrame, target: str, size: str, covariates: Sequence[str]) -> _Points:
    has_seeds = "seed" in frame and bool(frame["seed"].notna().all())
    rows = pd.DataFrame({"N": frame[size], "D": frame.get("tokens", np.nan)}, index=frame.index)
    rows["log_y"] = np.log(frame[target].astype(float))
    rows["seed"] = frame["seed"] if has_seeds else np.arange(len(frame))
    others = [f"other {name}" for name in covariates]
    rows[others] = frame[list(covariates)]
    keys, groups = zip(*rows.groupby(["N", "D", *others], dropna=False), strict=True)
    values = np.array(keys, float)
    log_N, log_D = np.log(values[:, :2]).T
    runs = [group.groupby("seed")["log_y"].mean() for group in groups]
    return _Points(log_N, log_D, values[:, 2:], runs, has_seeds)


def _nearest(points_a: _Points, points_b: _Points) -> tuple[np.ndarray, np.ndarray]:
    """Indices into both families of mutually nearest points: size and budget about equal, covariates exactly."""
    size_gap = abs(points_a.log_N[:, None] - points_b.log_N)
    budget_gap = abs(points_a.log_D[:, None] - points_b.log_D)
    ratio_gap = abs((points_a.log_D - points_a.log_N)[:, None] - (points_b.log_D - points_b.log_N))
    is_same = np.isnan(budget_gap) | (np.minimum(budget_gap, ratio_gap) <= np.log1p(SAME_TOKENS))
    is_same &= (size_gap <= np.log1p(SAME_SIZE)) & (points_a.others[:, None] == points_b.others).all(axis=2)
    # Of several points of one size, the nearest in budget.
    distance = np.where(is_same, size_gap + 1e-3 * np.nan_to_num(budget_gap), np.inf)
    i, j = np.arange(len(distance)), distance.argmin(axis=1)
    is_mutual = is_same[i, j] & (distance.argmin(axis=0)[j] == i)
    return i[is_mutual], j[is_mutual]


def _by_seed(points_a: _Points, points_b: _Points, i: int, j: int) -> tuple[Floats, Floats]:
    """Log targets at two points: of common seeds, in the order of `points_a`, or of all seeds if none is common."""
    left, right = points_a.runs[i], points_b.runs[j]
    common = left.index.intersection(right.index) if points_a.has_seeds and points_b.has_seeds else []
    if len(common):
        left, right = left[common], right[common]
    return left.to_numpy(float), right.to_numpy(float)


def _noise(values: list[tuple[Floats, Floats]]) -> tuple[float | None, int]:
    """Standard deviation of a log ratio between the seeds of a point, pooled over points, and its degrees of freedom.

    From ratios at points where both families have equally many seeds; if there are none, from the seeds of each family,
    as if both scattered equally.
    """
    paired = [left - right for left, right in values if len(left) == len(right) > 1]
    unpaired = [side for pair in values for side in pair if len(side) > 1]
    for groups, factor in ((paired, 1.0), (unpaired, 2.0)):
        df = sum(len(group) - 1 for group in groups)
        if df:
            return float(np.sqrt(factor * sum(np.var(group) * len(group) for group in groups) / df)), df
    return None, 0


def _varies_beyond_size(log_n: Floats, column: Floats) -> bool:
    """Whether a column departs from a straight line in log N by a root mean square of more than 0.05."""
    residuals = column - np.polyval(np.polyfit(log_n, column, 1), log_n)
    return bool(np.sqrt((residuals**2).mean()) > 0.05)


def _at_sizes(to: Floats, log_n: Floats, log_y: Floats, is_curve: bool, others: Sequence[Floats]) -> Floats:
    """Log targets moved from sizes `log_n` to sizes `to`.

    Along the slope between neighbouring sizes if `is_curve`, else along a plane in log N and the columns `others`.
    """
    if is_curve:
        order = np.argsort(log_n)
        slopes = np.gradient(log_y[order], log_n[order])
        return np.asarray(log_y + slopes[np.argsort(order)] * (to - log_n))
    slope = np.linalg.lstsq(np.stack([np.ones_like(log_n), log_n, *others], axis=1), log_y, rcond=None)[0][1]
    return np.asarray(log_y + slope * (to - log_n))
