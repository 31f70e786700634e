"""The best learning rate of each shape, between the rates that were tried.

Notable: the optimum is that of a parabola in log lr through the best rate and its two neighbours, fitted to the means
over seeds, so that all seeds of a shape have one rate; a best rate at an end of the grid is no optimum and says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

SHAPE = ["family", "params_total", "width", "depth", "budget"]
"""Columns in which the runs of one shape and budget agree."""


WORTH_SAYING = 5e-4
"""How far below all that was measured an interpolated loss is said to be, as a share of it."""


@dataclass(frozen=True)
class Tuned:
    """What the rates of a sweep came to."""

    best: pd.DataFrame
    """A row a shape and seed, as if it had been trained at the optimum: losses are interpolated. `lr_at_end` is true
    where the best rate was at an end of the grid."""
    optima: pd.DataFrame
    """A row a shape: `lr` (the optimum), `loss` there, `lr_low` and `lr_high` tried, `at_end`; and of what was
    measured, means over seeds: `loss_lowest`, `lr_value` (the rate that the design gives), `loss_at_value`,
    `excess_at_value` (what that is above the lowest, as a share of it), both NaN where that rate was not tried."""
    notes: tuple[str, ...]
    """A sentence for each shape whose best rate is at an end of its grid, or whose runs do not suffice."""

    @property
    def lines(self) -> list[str]:
        """For a terminal: the optimum of each shape, and what the rate that was given loses there."""
        said = []
        for best in self.optima.itertuples():
            at_end = ", at an end of the grid" if best.at_end else ""
            shape = f"{best.family} {best.width}x{best.depth}"
            line = f"{shape}: best learning rate {best.lr:.3g}{at_end}, loss {best.loss:.4f}"
            if best.loss < (1 - WORTH_SAYING) * best.loss_lowest:
                line += f" interpolated, {1 - best.loss / best.loss_lowest:.2%} below the lowest measured"
            if not math.isnan(best.excess_at_value):
                line += f"; the rate given, {best.lr_value:g}, came to {best.excess_at_value:.2%} above the best tried"
            said.append(line)
        return said


def tune(runs: pd.DataFrame, values: Mapping[str, float]) -> Tuned:
    """Interpolate over `lr`; `runs` are rows of completed runs with `loss`, `perplexity` and `bits_per_byte`.

    `values` are the rates that the design gives, by family. A shape with fewer than three rates that all its seeds
    completed is left out, and named.
    """
    best: list[pd.DataFrame] = []
    optima: list[dict[str, object]] = []
    notes: list[str] = []
    for shape, rows in runs.groupby(SHAPE, sort=False):
        name = "{0} {2}x{3} ({4})".format(*shape)
        losses = rows.pivot_table(index="lr", columns="seed", values="loss").dropna().sort_index()
        if len(losses) < 3:
            notes.append(f"{name} is left out: {len(losses)} of its learning rates completed, and a parabola needs 3.")
            continue
        at_end, lr, at_optimum = _optimum(losses)
        if at_end:
            notes.append(f"{name}: its best learning rate {lr:g} is at the end of its grid, so a better one is likely.")
        optima.append(
            dict(zip(SHAPE, shape, strict=True))
            | {"lr": lr, "loss": float(np.mean(list(at_optimum.values())))}
            | {"lr_low": losses.index[0], "lr_high": losses.index[-1], "at_end": at_end}
            | _measured(losses.mean(axis=1), values.get(str(shape[0]), math.nan))
        )
        best.append(_rows_at(rows, lr, at_optimum).assign(lr_at_end=at_end))
    frame = pd.concat(best, ignore_index=True) if best else runs.iloc[:0]
    return Tuned(frame, pd.DataFrame(optima), tuple(notes))


def _optimum(losses: pd.DataFrame) -> tuple[bool, float, Mapping[int, float]]:
    """Whether the best rate is at an end; the optimum, and each seed's loss there. `losses` is [rates, seeds]."""
    means = losses.mean(axis=1).to_numpy()
    place = int(means.argmin())
    if place in (0, len(means) - 1):
        row = losses.iloc[place]
        return True, float(losses.index[place]), {int(seed): float(row[seed]) for seed in losses}
    around = losses.iloc[place - 1 : place + 2]
    middle = math.log(around.index[1])
    x = np.log(around.index.to_numpy(float)) - middle
    square, slope, _ = np.polyfit(x, around.mean(axis=1), 2)
    # The best of three is below both neighbours, so the parabola opens upwards; ties on both sides make it flat.
    at = -slope / (2 * square) if square > 0 else 0.0
    losses_there = {int(seed): float(np.polyval(np.polyfit(x, around[seed], 2), at)) for seed in around}
    return False, float(f"{math.exp(middle + at):.6g}"), losses_there


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
