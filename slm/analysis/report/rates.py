"""Report of tuned learning rates: losses of each shape, its optimum, and the excess loss at the design's rate.

It reads tuning.csv and runs.csv, which a sweep with `sweep.lr.rule=tuned` writes.
"""

from __future__ import annotations

import pandas as pd

from slm.analysis.report.directory import Directory
from slm.report.markdown import Columns, Section, table_by_column
from slm.report.style import GREY, INK, PALETTE, Axes, Figure, log_axis, panels, short_name
from slm.runtime.words import count, format_number, percent
from slm.scaling.describe import family_name

SHAPE = ["family", "width", "depth", "budget"]


def rates_figure(analysis: Directory) -> Figure | None:
    """Loss against learning rate: one panel per family, one line per shape, with the optima and the design's rate."""
    tuning, runs = map(analysis.sweep_table, ("tuning.csv", "runs.csv"))
    if tuning.empty:
        return None
    families = list(dict.fromkeys(tuning["family"]))
    several, shapes = len(families) > 1, len(tuning.drop_duplicates(["width", "depth"]))
    title = f"Loss against learning rate, {len(tuning)} shapes: crosses are fitted optima"
    figure, axes = panels(len(families), title, columns=3, width=3.7 if several else 6.0)
    for axis, family in zip(axes, families, strict=True):
        _panel(axis, runs[runs["family"] == family], tuning[tuning["family"] == family])
        axis.set_title(short_name(family) + ("" if several else f", {shapes} shapes"))
    axes[0].set_ylabel("loss (nats/token)")
    return figure


def _panel(axis: Axes, runs: pd.DataFrame, optima: pd.DataFrame) -> None:
    """The runs and optima of one family."""
    for index, (_, best) in enumerate(optima.sort_values("params_total").iterrows()):
        means = runs[(runs[SHAPE] == best[SHAPE]).all(axis=1)].groupby("lr")["loss"].mean()
        axis.plot(means.index, means, "o-", color=PALETTE[index % len(PALETTE)], ms=4, lw=1.4, label=_shape(best))
        axis.plot(best["lr"], best["loss"], "x", color=INK, ms=6, mew=1.5)
    log_axis(axis.xaxis, runs["lr"].min() / 1.15, runs["lr"].max() * 1.15, counts=False)
    for value in optima["lr_value"].dropna().unique():
        axis.axvline(value, color=GREY, lw=0.8, ls=":")
    axis.set_xlabel("optim.lr (dotted: the design's rate)")
    axis.legend(frameon=False, fontsize=7)


def _shape(row: pd.Series) -> str:
    return f"{row['width']}x{row['depth']}"


def rates_section(analysis: Directory) -> Section | None:
    """The optimum of each shape, and the excess loss at the design's rate over the best rate tried."""
    tuning = analysis.sweep_table("tuning.csv")
    if tuning.empty:
        return None
    columns: Columns = {
        "family": family_name,
        "shape": _shape,
        "N": lambda row: count(row["params_total"]),
        "optimum": lambda row: format_number(row["lr"], 3) + (" (end of the grid)" if row["at_end"] else ""),
        "loss there": lambda row: format_number(row["loss"], 4),
        "design's rate": lambda row: format_number(row["lr_value"], 3),
        "excess loss at the design's rate": lambda row: percent(row["excess_at_value"]),
    }
    return Section("Learning rates").add(
        "Each shape was trained at several learning rates. Its optimum is the minimum of a parabola, fitted to the "
        "rates whose losses noise cannot distinguish from the lowest. The minimum of noisy losses is too low on "
        "average, so the loss there includes a correction; the analysis uses this loss. The last column compares "
        "trained runs: how far the loss at the design's rate (`sweep.lr.value`) is above the lowest one.",
        table_by_column((row for _, row in tuning.iterrows()), columns),
        analysis.figure("rates", "Means over seeds. Where the bottom is flat, the rate hardly matters."),
    )
