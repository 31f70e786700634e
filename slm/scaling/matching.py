"""Runs of two families at the same sizes and budgets, as pairs: what a matched design is made for.

Where every size has the same tokens (and covariates), a size is one point: the mean over them.

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
"""Sizes closer than this are one size; the losses are then moved to their geometric mean along each family's curve."""
SAME_TOKENS = 0.02
"""Budgets closer than this, in tokens or in tokens a parameter, are one budget."""
FEWEST = 4
"""Sizes in common below which nothing is paired: a slope then has fewer than two degrees of freedom."""


@dataclass(frozen=True)
class Matched:
    """Log targets of two families at n sizes that both have, in order of size."""

    a: str
    b: str
    log_N: Floats
    log_a: Floats
    log_b: Floats
    seeds: float
    """Mean number of runs of a family behind a value."""
    noise: float | None
    """Scatter of a log ratio of two single runs between seeds; None where no size has two."""
    noise_df: int
    """Degrees of freedom of that."""
    farthest: float
    """Largest distance of two matched sizes, as a share."""

    @property
    def log_ratio(self) -> Floats:
        """log(a / b)."""
        return self.log_a - self.log_b


def match(table: Table, a: str, b: str, target: str, size: str, covariates: Sequence[str] = ()) -> Matched | str:
    """The matched points of two families, or why there are too few.

    Where both families ran a seed at a point, single runs are paired by seed: they saw the same data in the same order.
    Points must also agree in the columns `covariates`.
    """
    one, two = (_points(table.of(name).frame, target, size, covariates) for name in (a, b))
    pairs = _nearest(one, two)
    sizes = len({one[i].log_N for i, _ in pairs})
    if sizes < FEWEST:
        have = min(len({point.log_N for point in points}) for points in (one, two))
        return f"{sizes} of {have} sizes are the same to {SAME_SIZE:.0%}, at the same tokens; {FEWEST} are needed"
    values = [_by_seed(one[i], two[j]) for i, j in pairs]
    log_n = np.array([[one[i].log_N, two[j].log_N] for i, j in pairs])
    others = np.array([[one[i].log_D, *np.log(one[i].others)] for i, _ in pairs])
    middle = log_n.mean(axis=1)
    left, right = (np.array([value[k].mean() for value in values]) for k in (0, 1))
    shapes = np.unique(np.round(log_n[:, 0], 9), return_inverse=True)[1]
    rest = tuple(column for column in others.T if not np.isnan(column).any() and _varies_by_itself(middle, column))
    if not _balanced(shapes, rest):
        return "tokens or other columns vary at a size, not in the same way at every size"
    ordered = len(np.unique(shapes)) == len(shapes)
    log_a, log_b = (_moved(log_n[:, k], y, middle, ordered, rest) for k, y in ((0, left), (1, right)))
    counts = np.bincount(shapes)
    log_N, log_a, log_b = (np.bincount(shapes, column) / counts for column in (middle, log_a, log_b))
    return Matched(
        a,
        b,
        log_N,
        log_a,
        log_b,
        float(np.mean([len(value[0]) for value in values]) * len(shapes) / len(counts)),
        *_noise(values),
        float(np.expm1(np.abs(np.diff(log_n, axis=1)).max())),
    )


def _balanced(shapes: np.ndarray, rest: tuple[Floats, ...]) -> bool:
    """Whether every shape has the same points of what else varies."""
    points = [tuple(np.round(values, 2)) for values in zip(*rest, strict=True)] if rest else [()] * len(shapes)
    found = [sorted(point for point, own in zip(points, shapes, strict=True) if own == shape) for shape in set(shapes)]
    return all(one == found[0] for one in found) if rest else True


@dataclass(frozen=True)
class _Point:
    log_N: float
    log_D: float
    others: tuple[float, ...]
    """Values of the covariates, above 0."""
    runs: pd.Series
    """Log targets by seed, or by row number where seeds are not known."""
    seeded: bool


def _points(frame: pd.DataFrame, target: str, size: str, covariates: Sequence[str]) -> list[_Point]:
    """Every size and budget of a family, in order of size."""
    seeded = "seed" in frame and bool(frame["seed"].notna().all())
    tokens = frame["tokens"] if "tokens" in frame else pd.Series(np.nan, frame.index)
    rows = pd.DataFrame({"N": frame[size], "D": tokens, "log_y": np.log(frame[target].astype(float))})
    rows["seed"] = frame["seed"] if seeded else np.arange(len(frame))
    others = [f"other {name}" for name in covariates]
    rows[others] = frame[list(covariates)]
    return [
        _Point(
            float(np.log(N)), float(np.log(D)), tuple(map(float, rest)), group.groupby("seed")["log_y"].mean(), seeded
        )
        for (N, D, *rest), group in rows.groupby(["N", "D", *others], dropna=False)
    ]


def _nearest(one: list[_Point], two: list[_Point]) -> list[tuple[int, int]]:
    """Mutually nearest points that agree in size and in tokens or tokens a parameter."""
    if not one or not two:
        return []
    far = np.full((len(one), len(two)), np.inf)
    for i, p in enumerate(one):
        for j, q in enumerate(two):
            apart, budget = abs(p.log_N - q.log_N), abs(p.log_D - q.log_D)
            ratio = abs((p.log_D - p.log_N) - (q.log_D - q.log_N))
            alike = np.isnan(budget) or min(budget, ratio) <= np.log1p(SAME_TOKENS)
            if alike and apart <= np.log1p(SAME_SIZE) and p.others == q.others:
                far[i, j] = apart + (0.0 if np.isnan(budget) else 1e-3 * budget)
    best = far.argmin(axis=1)
    return [(i, int(j)) for i, j in enumerate(best) if np.isfinite(far[i, j]) and far[:, j].argmin() == i]


def _by_seed(p: _Point, q: _Point) -> tuple[Floats, Floats]:
    """Log targets of the seeds that both have, in one order; all of either where they have none in common."""
    common = p.runs.index.intersection(q.runs.index) if p.seeded and q.seeded else []
    if len(common):
        return p.runs[common].to_numpy(float), q.runs[common].to_numpy(float)
    return p.runs.to_numpy(float), q.runs.to_numpy(float)


def _noise(values: list[tuple[Floats, Floats]]) -> tuple[float | None, int]:
    """Standard deviation of a log ratio between seeds of one point, pooled, and its degrees of freedom.

    By seed where both families have several, else from the seeds of either, as if both scattered alike.
    """
    paired = [left - right for left, right in values if len(left) == len(right) > 1]
    alone = [side for pair in values for side in pair if len(side) > 1]
    for groups, factor in ((paired, 1.0), (alone, 2.0)):
        df = sum(len(group) - 1 for group in groups)
        if df:
            return float(np.sqrt(factor * sum(np.var(group) * len(group) for group in groups) / df)), df
    return None, 0


def _varies_by_itself(log_n: Floats, other: Floats) -> bool:
    """Whether a column is more than a straight line in log N."""
    design = np.stack([np.ones_like(log_n), log_n], axis=1)
    rest = other - design @ np.linalg.lstsq(design, other, rcond=None)[0]
    return bool(np.sqrt((rest**2).mean()) > 0.05)


def _moved(log_n: Floats, log_y: Floats, to: Floats, ordered: bool, rest: tuple[Floats, ...]) -> Floats:
    """Log targets at sizes `to`: along the line between neighbouring sizes, or along a plane in N and the rest."""
    if ordered:
        order = np.argsort(log_n)
        slopes = np.gradient(log_y[order], log_n[order])
        return np.asarray(log_y + slopes[np.argsort(order)] * (to - log_n))
    slope = np.linalg.lstsq(np.stack([np.ones_like(log_n), log_n, *rest], axis=1), log_y, rcond=None)[0][1]
    return np.asarray(log_y + slope * (to - log_n))
