"""The best learning rate of each shape, between the rates that were tried, and an honest loss there.

Notable: the lowest of several noisy losses is too low, by more the flatter they are, so families that differ in that
(or in how many rates they were given) would differ in level for nothing. The optimum is that of a parabola in log lr,
by least squares through all rates that noise cannot tell from the best, and what its bottom is too low by on average
is added. It is fitted to the means over seeds, so that all seeds of a shape have one rate; a bottom at an end of the
grid is no optimum and says so.
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
"""How far from the lowest that was measured a fitted loss is said to be, as a share of it."""
NEAR = 5.0
"""Standard errors above the lowest loss up to which rates are fitted: fewer lose precision, and with more the losses
depart from a parabola (docs/sweep.md)."""
CLEAR = 2.0
"""Standard errors by which losses fall at the end of the grid where noise has no part in which rate is the best."""


@dataclass(frozen=True)
class Tuned:
    """What the rates of a sweep came to."""

    best: pd.DataFrame
    """A row a shape and seed, as if it had been trained at the optimum: losses are fitted. `lr_at_end` is true where
    the best rate was at an end of the grid; `lr_tried` counts the rates."""
    optima: pd.DataFrame
    """A row a shape: `lr` (the optimum), `loss` there, `lr_low` and `lr_high` tried, `lr_tried` of them in all,
    `lr_fitted` by the parabola, `at_end`, `raised` (what was added to the bottom of the parabola); and of what was
    measured, means over seeds: `loss_lowest`, `lr_value` (the rate that the design gives), `loss_at_value`,
    `excess_at_value` (what that is above the lowest, as a share of it), both NaN where that rate was not tried."""
    notes: tuple[str, ...]
    """A sentence for each shape whose best rate is at an end of its grid, or whose runs do not suffice, and for each
    family whose noise is unknown."""

    @property
    def lines(self) -> list[str]:
        """For a terminal: the optimum of each shape, and what the rate that was given loses there."""
        said = []
        for best in self.optima.itertuples():
            at_end = ", at an end of the grid" if best.at_end else ""
            shape = f"{best.family} {best.width}x{best.depth}"
            line = f"{shape}: best learning rate {best.lr:.3g}{at_end}, loss {best.loss:.4f}"
            off = best.loss / best.loss_lowest - 1
            if abs(off) > WORTH_SAYING:
                where = "above" if off > 0 else "below"
                line += f" by a parabola through {best.lr_fitted} rates, {abs(off):.2%} {where} the lowest measured"
            if not math.isnan(best.excess_at_value):
                line += f"; the rate given, {best.lr_value:g}, came to {best.excess_at_value:.2%} above the best tried"
            said.append(line)
        return said


@dataclass(frozen=True)
class Optimum:
    """Of one shape."""

    lr: float
    losses: Mapping[int, float]
    """Of each seed."""
    at_end: bool
    fitted: int
    """Rates."""
    raised: float
    """What was added to the bottom of the parabola."""


def tune(runs: pd.DataFrame, values: Mapping[str, float]) -> Tuned:
    """Find the optimum over `lr`; `runs` are rows of completed runs with `loss`, `perplexity` and `bits_per_byte`.

    `values` are the rates that the design gives, by family. A shape with fewer than three rates that all its seeds
    completed is left out, and named.
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
            notes.append(f"{name} is left out: {len(losses)} of its learning rates completed, and a parabola needs 3.")
            continue
        found = optimum(losses, noise[str(shape[0])] or 0.0)
        if found.at_end:
            lr = found.lr
            notes.append(f"{name}: its best learning rate {lr:g} is at the end of its grid, so a better one is likely.")
        optima.append(
            dict(zip(SHAPE, shape, strict=True))
            | {"lr": found.lr, "loss": float(np.mean(list(found.losses.values())))}
            | {"lr_low": losses.index[0], "lr_high": losses.index[-1], "lr_tried": len(losses)}
            | {"lr_fitted": found.fitted, "at_end": found.at_end, "raised": found.raised}
            | _measured(losses.mean(axis=1), values.get(str(shape[0]), math.nan))
        )
        one = _rows_at(rows, found.lr, found.losses)
        best.append(one.assign(lr_at_end=found.at_end, lr_tried=len(losses)))
    notes += [
        f"{name}: three rates and one seed do not tell how noisy losses are, so those at its optima are too low, by an "
        "unknown share of the noise: give four rates or two seeds."
        for name, known in noise.items()
        if known is None
    ]
    frame = pd.concat(best, ignore_index=True) if best else runs.iloc[:0]
    return Tuned(frame, pd.DataFrame(optima), tuple(notes))


def noise_of(shapes: Sequence[pd.DataFrame]) -> float | None:
    """What one run's loss scatters by, as a share of it, pooled over the shapes of a family; None if nothing tells.

    What is common to all rates of a seed chooses none of them, so several seeds tell by what rates and seeds do not
    explain. One seed tells by what a parabola through the four rates about the best leaves.
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
    """Of [rates, seeds] whose runs scatter by `noise`, a share of the loss.

    The bottom of a fitted parabola a + b x + c x^2 is too low by Var(slope there) / 4 c on average; c is taken to be no
    less than its standard error. In simulated sweeps this leaves 0.05% of the loss or less of a bias of 0.1 to 1.1%
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
    """The rates about the best, without a gap, whose losses are near the lowest; three at least."""
    best = int(means.argmin())
    near = means <= means[best] + NEAR * sigma
    first, end = best, best + 1
    while first > 0 and near[first - 1]:
        first -= 1
    while end < len(means) and near[end]:
        end += 1
    first, end = min(first, max(best - 1, 0)), max(end, min(best + 2, len(means)))
    if end - first < FEWEST_RATES:  # the best is the first or last of all
        first, end = (0, FEWEST_RATES) if first == 0 else (end - FEWEST_RATES, end)
    return first, end


def _bottom(b: float, c: float, x: np.ndarray) -> float:
    """Where b x + c x^2 is lowest within the range of x."""
    if c > 0:
        return float(np.clip(-b / (2 * c), x[0], x[-1]))
    return float(min((x[0], x[-1]), key=lambda end: b * end + c * end**2))


def _measured(means: pd.Series, value: float) -> dict[str, float]:
    """What the given rate came to beside the best one; `means` are losses by rate."""
    lowest, there = float(means.min()), float(means.get(value, math.nan))
    return {"loss_lowest": lowest, "lr_value": value, "loss_at_value": there, "excess_at_value": there / lowest - 1}


def _rows_at(rows: pd.DataFrame, lr: float, losses: Mapping[int, float]) -> pd.DataFrame:
    """A row a seed: that of the rate nearest to `lr`, with the losses at `lr` itself."""
    nearest = (np.log(rows["lr"]) - math.log(lr)).abs()
    kept = rows.loc[nearest.groupby(rows["seed"]).idxmin()].copy()
    loss = kept["seed"].map(losses)
    kept["bits_per_byte"] *= loss / kept["loss"]
    kept["perplexity"] = np.exp(loss)
    if "trunk" in kept:  # budgets may have optima between different rates, and share the trunks of all of them
        kept["trunk"] = [f"{row.family}_{row.width}x{row.depth}-seed{row.seed}-tuned" for row in kept.itertuples()]
    return kept.assign(loss=loss, lr=lr, run_id=kept["run_id"] + "-tuned")
