"""The best learning rate of each shape, interpolated between the tried rates, and an unbiased loss there.

The lowest of several noisy losses is too low, and the flatter they are, the more. Families that differ in flatness, or
in the number of rates, would therefore differ in level for no other reason. So a parabola in log lr is fitted by least
squares through all rates that noise cannot distinguish from the best, and the average bias of its minimum is added
back. The fit is to means over seeds, so that all seeds of a shape have one rate. A minimum at an end of the grid is
reported as such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from slm.sweep.design import FEWEST_RATES

SHAPE = ["family", "params_total", "width", "depth", "budget"]
"""Columns in which the runs of one shape and budget agree."""


WORTH_SAYING = 5e-4
"""Relative difference from the lowest measured loss above which a fitted loss is reported with it."""
NEAR = 5.0
"""Standard errors above the lowest loss up to which rates are fitted: with fewer the fit loses precision, with more the
losses depart from a parabola (docs/sweep.md)."""
CLEAR = 2.0
"""Standard errors by which losses must fall towards an end of the grid for the best rate to be there beyond noise."""


@dataclass(frozen=True)
class Tuned:
    """The best rates of a sweep."""

    best: pd.DataFrame
    """One row per shape and seed, as if trained at the optimum: losses are fitted. `lr_at_end` is true if the best rate
    was at an end of the grid; `lr_tried` counts the rates."""
    optima: pd.DataFrame
    """One row per shape: `lr` (the optimum), `loss` there, `lr_low` and `lr_high` (the range tried), `lr_tried` (number
    of rates), `lr_fitted` (number in the parabola), `at_end`, `raised` (bias added to the parabola's minimum). Measured
    means over seeds: `loss_lowest`, `lr_value` (the design's rate), `loss_at_value`, `excess_at_value` (relative to
    the lowest); the last two are NaN if that rate was not tried."""
    notes: tuple[str, ...]
    """A sentence for each shape with its best rate at an end of the grid or with too few runs, and for each family of
    unknown noise."""

    @property
    def lines(self) -> list[str]:
        """For a terminal: the optimum of each shape, and how much worse the design's rate is there."""
        lines = []
        for best in self.optima.itertuples():
            at_end = ", at an end of the grid" if best.at_end else ""
            shape = f"{best.family} {best.width}x{best.depth}"
            line = f"{shape}: best learning rate {best.lr:.3g}{at_end}, loss {best.loss:.4f}"
            off = best.loss / best.loss_lowest - 1
            if abs(off) > WORTH_SAYING:
                where = "above" if off > 0 else "below"
                line += f" by a parabola through {best.lr_fitted} rates, {abs(off):.2%} {where} the lowest measured"
            if not math.isnan(best.excess_at_value):
                line += f"; the design's rate {best.lr_value:g} is {best.excess_at_value:.2%} above the best tried"
            lines.append(line)
        return lines


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one shape."""

    lr: float
    losses: Mapping[int, float]
    """Seed -> loss."""
    at_end: bool
    fitted: int
    """Number of rates in the parabola."""
    raised: float
    """Bias added to the parabola's minimum."""


def tune(runs: pd.DataFrame, values: Mapping[str, float]) -> Tuned:
    """Find the optimum over `lr`; `runs` are rows of completed runs with `loss`, `perplexity` and `bits_per_byte`.

    `values` maps families to the design's rates. A shape with fewer than three rates that all its seeds completed is
    left out and named in a note.
    """
    best: list[pd.DataFrame] = []
    optima: list[dict[str, object]] = []
    notes: list[str] = []
    tables = {
        shape: (rows, rows.pivot_table(index="lr", columns="seed", values="loss").dropna().sort_index())
        for shape, rows in runs.groupby(SHAPE, sort=False)
    }
    enough = {shape: losses for shape, (_, losses) in tables.items() if len(losses) >= FEWEST_RATES}
    families = dict.fromkeys(str(shape[0]) for shape in enough)
    noise = {name: noise_of([losses for shape, losses in enough.items() if shape[0] == name]) for name in families}
    for shape, (rows, losses) in tables.items():
        name = "{0} {2}x{3} ({4})".format(*shape)
        if shape not in enough:
            notes.append(f"{name} is left out: a parabola needs 3 completed learning rates, and it has {len(losses)}.")
            continue
        best_rate = optimum(losses, noise[str(shape[0])] or 0.0)
        if best_rate.at_end:
            notes.append(
                f"{name}: its best learning rate {best_rate.lr:g} is at an end of its grid, so a better one is likely."
            )
        optima.append(
            dict(zip(SHAPE, shape, strict=True))
            | {"lr": best_rate.lr, "loss": float(np.mean(list(best_rate.losses.values())))}
            | {"lr_low": losses.index[0], "lr_high": losses.index[-1], "lr_tried": len(losses)}
            | {"lr_fitted": best_rate.fitted, "at_end": best_rate.at_end, "raised": best_rate.raised}
            | _measured(losses.mean(axis=1), values.get(str(shape[0]), math.nan))
        )
        best.append(
            _rows_at(rows, best_rate.lr, best_rate.losses).assign(lr_at_end=best_rate.at_end, lr_tried=len(losses))
        )
    notes += [
        f"{name}: three rates and one seed do not show the noise of losses, so those at its optima are too low by an "
        "unknown share of it: give four rates or two seeds."
        for name, scatter in noise.items()
        if scatter is None
    ]
    frame = pd.concat(best, ignore_index=True) if best else runs.iloc[:0]
    return Tuned(frame, pd.DataFrame(optima), tuple(notes))


def noise_of(shapes: Sequence[pd.DataFrame]) -> float | None:
    """Relative standard deviation of one run's loss, pooled over the shapes of a family; None if it is unknown.

    With several seeds it is the residual after rate and seed effects (a seed's effect on all rates changes no
    optimum). With one seed it is the residual of a parabola through the four rates around the best.
    """
    squares, count = 0.0, 0
    for losses in shapes:
        table = losses.to_numpy(float) / losses.to_numpy(float).min()
        place = int(table.mean(axis=1).argmin())
        if table.shape[1] > 1:
            table = table[max(place - 2, 0) : place + 3]
            rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            count += (table.shape[0] - 1) * (table.shape[1] - 1)
        elif len(table) > FEWEST_RATES:
            y = table[:, 0]
            lower_is_next = 0 < place < len(y) - 1 and y[place - 1] < y[place + 1]
            first = int(np.clip(place - 1 - lower_is_next, 0, len(y) - 4))
            x = np.log(losses.index.to_numpy(float)[first : first + 4])
            y = y[first : first + 4]
            rest = y - np.polyval(np.polyfit(x - x.mean(), y, 2), x - x.mean())
            count += 1
        else:
            continue
        squares += float((rest**2).sum())
    return math.sqrt(squares / count) if count else None


def optimum(losses: pd.DataFrame, noise: float) -> Optimum:
    """The best rate for `losses` [rates, seeds] of relative standard deviation `noise`.

    The minimum of a fitted parabola a + b x + c x^2 is too low by Var(slope there) / 4 c on average; c is taken as at
    least its standard error. In simulated sweeps this reduces a bias of 0.1% to 1.1% of the loss to 0.05% or less
    (docs/sweep.md).
    """
    x, table = np.log(losses.index.to_numpy(float)), losses.to_numpy(float)
    means = table.mean(axis=1)
    sigma = noise * means.min() / math.sqrt(table.shape[1])
    first, end = _near(means, sigma)
    middle = x[first:end].mean()
    x = x[first:end] - middle
    powers = np.stack([np.ones_like(x), x, x**2], axis=1)
    fits = np.linalg.lstsq(powers, table[first:end], rcond=None)[0]
    _, b, c = fits.mean(axis=1)
    at = _bottom(b, c, x)
    covariance = sigma**2 * np.linalg.inv(powers.T @ powers)
    slope = np.array([0.0, 1.0, 2 * at])
    variance = float(slope @ covariance @ slope)
    falls_clearly = abs(b + 2 * c * at) > CLEAR * math.sqrt(variance)
    raised = 0.0 if falls_clearly or not sigma else variance / (4 * max(c, math.sqrt(covariance[2, 2])))
    at_seed = np.array([1.0, at, at**2]) @ fits + raised
    return Optimum(
        lr=float(f"{math.exp(middle + at):.6g}"),
        losses={int(seed): float(loss) for seed, loss in zip(losses, at_seed, strict=True)},
        at_end=(at == x[0] and first == 0) or (at == x[-1] and end == len(means)),
        fitted=end - first,
        raised=raised,
    )


def _near(means: np.ndarray, sigma: float) -> tuple[int, int]:
    """First and end index of the adjacent rates around the best with losses near the lowest; at least three."""
    best = int(means.argmin())
    near = means <= means[best] + NEAR * sigma
    first, end = best, best + 1
    while first > 0 and near[first - 1]:
        first -= 1
    while end < len(means) and near[end]:
        end += 1
    first, end = min(first, max(best - 1, 0)), max(end, min(best + 2, len(means)))
    if end - first < FEWEST_RATES:  # the best is the first or the last
        first, end = (0, FEWEST_RATES) if first == 0 else (end - FEWEST_RATES, end)
    return first, end


def _bottom(b: float, c: float, x: np.ndarray) -> float:
    """Where b x + c x^2 is lowest within the range of x."""
    if c > 0:
        return float(np.clip(-b / (2 * c), x[0], x[-1]))
    return float(min((x[0], x[-1]), key=lambda end: b * end + c * end**2))


def _measured(means: pd.Series, value: float) -> dict[str, float]:
    """The design's rate beside the best one; `means` are losses by rate."""
    lowest, there = float(means.min()), float(means.get(value, math.nan))
    return {"loss_lowest": lowest, "lr_value": value, "loss_at_value": there, "excess_at_value": there / lowest - 1}


def _rows_at(rows: pd.DataFrame, lr: float, losses: Mapping[int, float]) -> pd.DataFrame:
    """One row per seed: the run of the rate nearest to `lr`, with the losses at `lr`."""
    nearest = (np.log(rows["lr"]) - math.log(lr)).abs()
    kept = rows.loc[nearest.groupby(rows["seed"]).idxmin()].copy()
    loss = kept["seed"].map(losses)
    kept["bits_per_byte"] *= loss / kept["loss"]
    kept["perplexity"] = np.exp(loss)
    if "trunk" in kept:  # budgets have optima at different rates but share the trunks of all rates
        kept["trunk"] = [f"{row.family}_{row.width}x{row.depth}-seed{row.seed}-tuned" for row in kept.itertuples()]
    return kept.assign(loss=loss, lr=lr, run_id=kept["run_id"] + "-tuned")
