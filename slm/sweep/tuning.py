"""Interpolate each shape's best learning rate from the rates tried, and estimate the loss there without bias.

The lowest of several noisy losses is on average too low. This bias grows with the number of rates and with the flatness
of the optimum, so families that differ in either would seem to differ in loss. Therefore, for each shape:

1. The losses are averaged over seeds, so that all seeds of a shape have the same best rate.
2. A parabola in log lr is fitted by least squares to all rates that noise cannot distinguish from the best.
3. The minimum of the parabola is raised by the amount by which it is too low on average.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from slm.sweep.design import MIN_RATES

SHAPE = ["family", "params_total", "width", "depth", "budget"]
"""Columns that identify a shape and its budget."""

MIN_DIFFERENCE = 5e-4
"""A difference between the fitted and the lowest measured loss is reported if it exceeds this fraction of the loss."""
NEAR_ERRORS = 5.0
"""The parabola is fitted to rates whose loss is at most this many standard errors above the lowest. A smaller limit
loses precision; with a larger limit a parabola no longer describes the losses (docs/sweep.md)."""
CLEAR_ERRORS = 2.0
"""If the slope at the fitted optimum exceeds this many standard errors, the true optimum lies beyond the fitted rates.
Then the bias is not corrected."""


@dataclass(frozen=True)
class TuningResult:
    """The best learning rates of a sweep."""

    best: pd.DataFrame
    """One row per shape and seed, with the learning rate of the optimum and the losses fitted there. `lr_at_end` is
    true if the optimum is at an end of the rates tried; `lr_tried` is the number of rates."""
    optima: pd.DataFrame
    """One row per shape, with the columns of `SHAPE` and these:

    - the optimum: `lr`, `loss`, `at_end` (whether it is at an end of the rates tried);
    - the fit: `lr_fitted` (number of rates), `raised` (by how much the parabola's minimum was raised);
    - the rates tried: `lr_low`, `lr_high`, `lr_tried` (their number), and `loss_lowest` (lowest mean over seeds);
    - the design's rate: `lr_value`; `loss_at_value` and `excess_at_value` (above `loss_lowest`), NaN if not tried."""
    notes: tuple[str, ...]
    """Sentences about shapes with too few runs, optima at an end of the rates, and families whose noise is unknown."""

    @property
    def lines(self) -> list[str]:
        """One line per shape for a terminal: its optimum, and how much higher the loss is at the design's rate."""
        lines = []
        for row in self.optima.itertuples():
            where = ", at an end of the grid" if row.at_end else ""
            line = f"{row.family} {row.width}x{row.depth}: best learning rate {row.lr:.3g}{where}, loss {row.loss:.4f}"
            excess = row.loss / row.loss_lowest - 1
            if abs(excess) > MIN_DIFFERENCE:
                side = "above" if excess > 0 else "below"
                line += f" (parabola through {row.lr_fitted} rates; {abs(excess):.2%} {side} the lowest measured loss)"
            if not math.isnan(row.excess_at_value):
                line += f"; at the design's rate {row.lr_value:g} {row.excess_at_value:.2%} above the lowest measured"
            lines.append(line)
        return lines


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one shape."""

    lr: float
    losses: Mapping[int, float]
    """Seed -> loss."""
    at_end: bool
    """Whether this rate is the first or the last of the rates tried."""
    num_fitted: int
    """Number of rates in the parabola."""
    correction: float
    """By how much the parabola's minimum was raised, because it is too low on average."""


def tune(runs: pd.DataFrame, design_rates: Mapping[str, float]) -> TuningResult:
    """Find the best `lr` of each shape in `runs`, the completed runs with `loss`, `perplexity` and `bits_per_byte`.

    `design_rates` maps each family to its learning rate in the design. A rate counts if all seeds of the shape
    completed it. A shape with fewer than three such rates is left out and named in a note.
    """
    runs_of_shapes = [
        (shape, rows, rows.pivot_table(index="lr", columns="seed", values="loss").dropna().sort_index())
        for shape, rows in runs.groupby(SHAPE, sort=False)
    ]
    losses_of_family: dict[str, list[pd.DataFrame]] = defaultdict(list)
    for (family, *_), _, losses in runs_of_shapes:
        if len(losses) >= MIN_RATES:
            losses_of_family[family].append(losses)
    noise_of_family = {family: pooled_noise(tables) for family, tables in losses_of_family.items()}
    best, optima, notes = [], [], []
    for shape, rows, losses in runs_of_shapes:
        family, _, width, depth, budget = shape
        name = f"{family} {width}x{depth} ({budget})"
        if len(losses) < MIN_RATES:
            notes.append(f"{name} is left out: a parabola needs 3 completed learning rates, not {len(losses)}.")
            continue
        optimum = find_optimum(losses, noise_of_family[family] or 0.0)
        if optimum.at_end:
            notes.append(f"{name}: the best learning rate {optimum.lr:g} is at an end of the grid: try rates beyond.")
        row = _optimum_row(optimum, losses, design_rates.get(family, math.nan))
        optima.append(dict(zip(SHAPE, shape, strict=True)) | row)
        best.append(_rows_at(rows, optimum).assign(lr_at_end=optimum.at_end, lr_tried=len(losses)))
    notes += [
        f"{family}: the noise of its losses cannot be estimated from three rates and one seed, so the losses at its "
        "optima are too low by an unknown amount: give four rates or two seeds."
        for family, noise in noise_of_family.items()
        if noise is None
    ]
    frame = pd.concat(best, ignore_index=True) if best else runs.iloc[:0]
    return TuningResult(frame, pd.DataFrame(optima), tuple(notes))


def pooled_noise(loss_tables: Sequence[pd.DataFrame]) -> float | None:
    """Relative standard deviation of one run's loss, pooled over the shapes of a family; None if it is unknown.

    Each shape has a table of losses [rates, seeds]. With several seeds, the noise is what remains of the losses without
    the effects of rate and seed. (A seed that shifts the losses of all rates moves no optimum.) With one seed, the
    noise is the residual of a parabola through the four rates around the best.
    """
    sum_of_squares, df = 0.0, 0
    for losses in loss_tables:
        table = losses.to_numpy(float) / losses.to_numpy(float).min()  # relative to the lowest loss
        best = int(table.mean(axis=1).argmin())
        if table.shape[1] > 1:
            near = table[max(best - 2, 0) : best + 3]  # up to two rates on either side of the best
            residuals = near - near.mean(axis=0) - near.mean(axis=1, keepdims=True) + near.mean()
            df += (near.shape[0] - 1) * (near.shape[1] - 1)
        elif len(table) > MIN_RATES:
            column = table[:, 0]
            # Four rates: the best, its two neighbours, and the next rate on the side of the better neighbour. Near an
            # end of the grid, the four rates at that end.
            is_lower_rate_better = 0 < best < len(column) - 1 and column[best - 1] < column[best + 1]
            num_lower = 2 if is_lower_rate_better else 1
            first = int(np.clip(best - num_lower, 0, len(column) - 4))
            x = np.log(losses.index.to_numpy(float)[first : first + 4])
            x -= x.mean()
            y = column[first : first + 4]
            residuals = y - np.polyval(np.polyfit(x, y, 2), x)
            df += 1
        else:
            continue
        sum_of_squares += float((residuals**2).sum())
    return math.sqrt(sum_of_squares / df) if df else None


def find_optimum(losses: pd.DataFrame, noise: float) -> Optimum:
    """Find the best rate for `losses` [rates, seeds], each with the relative standard deviation `noise`.

    On average the minimum of a fitted parabola a + b x + c x^2 is too low by V / (4 c), where V is the variance of the
    slope at the minimum, so the minimum is raised by V / (4 c). If c is below its standard error, the standard error
    replaces c. In simulated sweeps this reduces the bias from 0.1-1.1% of the loss to at most 0.05% (docs/sweep.md).
    """
    log_lr = np.log(losses.index.to_numpy(float))
    table = losses.to_numpy(float)
    means = table.mean(axis=1)
    sigma = noise * means.min() / math.sqrt(table.shape[1])
    first, end = _rates_near_best(means, sigma)
    centre = log_lr[first:end].mean()
    x = log_lr[first:end] - centre
    powers = np.stack([np.ones_like(x), x, x**2], axis=1)
    fits = np.linalg.lstsq(powers, table[first:end], rcond=None)[0]
    _, b, c = fits.mean(axis=1)
    x_best = _lowest_point(b, c, x)
    covariance = sigma**2 * np.linalg.inv(powers.T @ powers)
    gradient = np.array([0.0, 1.0, 2 * x_best])  # gradient @ (a, b, c) is the parabola's slope at x_best
    slope_variance = float(gradient @ covariance @ gradient)
    is_beyond_rates = abs(b + 2 * c * x_best) > CLEAR_ERRORS * math.sqrt(slope_variance)
    correction = 0.0
    if sigma > 0 and not is_beyond_rates:
        c_error = math.sqrt(covariance[2, 2])
        correction = slope_variance / (4 * max(c, c_error))
    seed_losses = np.array([1.0, x_best, x_best**2]) @ fits + correction
    return Optimum(
        lr=float(f"{math.exp(centre + x_best):.6g}"),
        losses={int(seed): float(loss) for seed, loss in zip(losses, seed_losses, strict=True)},
        at_end=(x_best == x[0] and first == 0) or (x_best == x[-1] and end == len(means)),
        num_fitted=end - first,
        correction=correction,
    )


def _rates_near_best(means: np.ndarray, sigma: float) -> tuple[int, int]:
    """Range [first, end) of adjacent rates around the best whose losses are near the lowest; at least three rates."""
    best = int(means.argmin())
    # The range ends at the nearest rate on each side whose loss is far above the lowest.
    far = np.flatnonzero(means > means[best] + NEAR_ERRORS * sigma)
    first = max(far[far < best], default=-1) + 1
    end = min(far[far > best], default=len(means))
    # Always include both neighbours of the best, and three rates even if the best is the first or the last.
    first = min(first, max(best - 1, 0))
    end = max(end, min(best + 2, len(means)))
    if end - first < MIN_RATES:
        return (0, MIN_RATES) if first == 0 else (end - MIN_RATES, end)
    return first, end


def _lowest_point(b: float, c: float, x: np.ndarray) -> float:
    """The point within the range of x at which b x + c x^2 is lowest."""
    if c > 0:
        return float(np.clip(-b / (2 * c), x[0], x[-1]))
    return float(min((x[0], x[-1]), key=lambda end: b * end + c * end**2))


def _optimum_row(optimum: Optimum, losses: pd.DataFrame, design_lr: float) -> dict[str, float]:
    """A row of `optima` without the shape, for the measured `losses` [rates, seeds]."""
    means = losses.mean(axis=1)
    lowest = float(means.min())
    at_design_lr = float(means.get(design_lr, math.nan))
    best = {"lr": optimum.lr, "loss": float(np.mean(list(optimum.losses.values())))}
    tried = {"lr_low": losses.index[0], "lr_high": losses.index[-1], "lr_tried": len(losses)}
    fit = {"lr_fitted": optimum.num_fitted, "at_end": optimum.at_end, "raised": optimum.correction}
    measured = {"loss_lowest": lowest, "lr_value": design_lr, "loss_at_value": at_design_lr}
    return best | tried | fit | measured | {"excess_at_value": at_design_lr / lowest - 1}


def _rows_at(rows: pd.DataFrame, optimum: Optimum) -> pd.DataFrame:
    """One row per seed: the run whose rate is nearest to the optimum, with the losses of the optimum."""
    distance = (np.log(rows["lr"]) - math.log(optimum.lr)).abs()
    kept = rows.loc[distance.groupby(rows["seed"]).idxmin()].copy()
    loss = kept["seed"].map(optimum.losses)
    kept["bits_per_byte"] *= loss / kept["loss"]
    kept["perplexity"] = np.exp(loss)
    if "trunk" in kept:  # errors are clustered by trunk: a shape's budgets keep one, even if their best rates differ
        kept["trunk"] = [f"{row.family}_{row.width}x{row.depth}-seed{row.seed}-tuned" for row in kept.itertuples()]
    return kept.assign(loss=loss, lr=optimum.lr, run_id=kept["run_id"] + "-tuned")
