"""The section and figure on tuned learning rates, from tuning.csv and runs.csv of a sweep (`sweep.lr.rule=tuned`)."""

import pandas as pd

from slm.analysis.report.directory import Directory
from slm.report.markdown import Columns, Section, table_by_column
from slm.report.style import GREY, INK, PALETTE, Axes, Figure, label_left, log_axis, panels, short_name
from slm.runtime.words import count, format_number, percent, shape_text
from slm.scaling.describe import family_name

SHAPE_COLUMNS = ["family", "width", "depth", "budget"]


def rates_figure(analysis: Directory) -> Figure | None:
    """Loss against learning rate: one panel per family, one line per shape; dotted at `sweep.lr.value`."""
    tuning, runs = map(analysis.sweep_table, ("tuning.csv", "runs.csv"))
    if tuning.empty:
        return None
    families = list(dict.fromkeys(tuning["family"]))
    several_families = len(families) > 1
    num_shapes = len(tuning.drop_duplicates(["width", "depth"]))
    title = f"Loss against learning rate, {len(tuning)} shapes: crosses are fitted optima"
    figure, axes = panels(len(families), title, ncols=3, width=3.7 if several_families else 6.0)
    for axis, family in zip(axes, families, strict=True):
        _draw_family(axis, runs[runs["family"] == family], tuning[tuning["family"] == family])
        axis.set_title(short_name(family) + ("" if several_families else f", {num_shapes} shapes"))
    label_left(axes, "loss (nats per token)")
    return figure


def _draw_family(axis: Axes, runs: pd.DataFrame, optima: pd.DataFrame) -> None:
    for index, (_, optimum) in enumerate(optima.sort_values("params_total").iterrows()):
        is_same_shape = (runs[SHAPE_COLUMNS] == optimum[SHAPE_COLUMNS]).all(axis=1)
        means = runs[is_same_shape].groupby("lr")["loss"].mean()
        axis.plot(means.index, means, "o-", color=PALETTE[index % len(PALETTE)], ms=4, lw=1.4, label=_shape(optimum))
        axis.plot(optimum["lr"], optimum["loss"], "x", color=INK, ms=6, mew=1.5)
    log_axis(axis.xaxis, runs["lr"].min() / 1.15, runs["lr"].max() * 1.15, as_counts=False)
    for design_rate in optima["lr_value"].dropna().unique():
        axis.axvline(design_rate, color=GREY, lw=0.8, ls=":")
    axis.set_xlabel("optim.lr (dotted: the learning rate of the design)")
    axis.legend(frameon=False, fontsize=7)


def _shape(row: pd.Series) -> str:
    return shape_text(row["width"], row["depth"])


def rates_section(analysis: Directory) -> Section | None:
    """The optimal learning rate of each shape, and the excess loss at the learning rate of the design."""
    tuning = analysis.sweep_table("tuning.csv")
    if tuning.empty:
        return None
    columns: Columns = {
        "family": family_name,
        "shape": _shape,
        "N": lambda row: count(row["params_total"]),
        "optimal rate": lambda row: format_number(row["lr"], 3) + (" (end of the grid)" if row["at_end"] else ""),
        "loss at the optimum": lambda row: format_number(row["loss"], 4),
        "rate of the design": lambda row: format_number(row["lr_value"], 3),
        "excess loss at the rate of the design": lambda row: percent(row["excess_at_value"]),
    }
    return Section("Learning rates").add(
        "Each shape was trained at several learning rates. The optimal rate is the minimum of a parabola, which is "
        "fitted to the rates whose losses cannot be distinguished from the lowest loss, given the noise. The minimum "
        "of noisy losses is too low on average, so the loss at the optimum is corrected for this; the analysis uses "
        "the corrected loss. The last column compares trained runs: it is the relative excess of the loss at the rate "
        "of the design (`sweep.lr.value`) over the lowest loss of the shape.",
        table_by_column((row for _, row in tuning.iterrows()), columns),
        analysis.figure("rates", "Means over seeds. Where a curve is flat, the learning rate hardly matters."),
    )
