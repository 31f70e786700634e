"""Learning rates that were tuned: what each shape's runs came to, and what the rate that was given loses there.

Read from tuning.csv and runs.csv, which a sweep with `sweep.lr.rule=tuned` writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from slm.analysis.report.directory import Directory
from slm.report.markdown import Section, figure, table
from slm.report.style import GREY, INK, PALETTE, log_axis, panels, short
from slm.runtime.words import count, escape_markdown, percent, sig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHAPE = ["family", "width", "depth", "budget"]


def rates(analysis: Directory) -> Figure | None:
    """Loss against learning rate, a panel a family and a line a shape, with the optima and the rate that was given."""
    if analysis.tuning.empty:
        return None
    families = list(dict.fromkeys(analysis.tuning["family"]))
    shapes = analysis.tuning.drop_duplicates(["width", "depth"])
    title = f"Loss against learning rate, {len(analysis.tuning)} shapes: crosses are fitted optima"
    drawn, axes = panels(len(families), title, columns=3, width=3.7 if len(families) > 1 else 6.0)
    for axis, family in zip(axes, families, strict=True):
        _rates(axis, analysis, analysis.tuning[analysis.tuning["family"] == family])
        axis.set_title(short(family) if len(families) > 1 else f"{short(family)}, {len(shapes)} shapes")
    axes[0].set_ylabel("loss (nats/token)")
    return drawn


def _rates(axis: Axes, analysis: Directory, optima: pd.DataFrame) -> None:
    for place, (_, best) in enumerate(optima.sort_values("params_total").iterrows()):
        colour = PALETTE[place % len(PALETTE)]
        runs = analysis.runs[(analysis.runs[SHAPE] == best[SHAPE]).all(axis=1)]
        means = runs.groupby("lr")["loss"].mean()
        axis.plot(means.index, means, "o-", color=colour, ms=4, lw=1.4, label=f"{best['width']}x{best['depth']}")
        axis.plot(best["lr"], best["loss"], "x", color=INK, ms=6, mew=1.5)
    tried = analysis.runs["lr"][analysis.runs["family"] == optima["family"].iloc[0]]
    log_axis(axis.xaxis, tried.min() / 1.15, tried.max() * 1.15, counts=False)
    for value in optima["lr_value"].dropna().unique():
        axis.axvline(value, color=GREY, lw=0.8, ls=":")
    axis.set_xlabel("optim.lr; dotted: the rate given")
    axis.legend(frameon=False, fontsize=7)
    axis.grid(True)


def rates_section(analysis: Directory) -> Section | None:
    """The optimum of each shape, and what the rate that was given loses to the best that was tried."""
    if analysis.tuning.empty:
        return None
    rows = [
        [
            escape_markdown(best["family"]),
            f"{best['width']}x{best['depth']}",
            count(best["params_total"]),
            sig(best["lr"], 3) + (" (end of the grid)" if best["at_end"] else ""),
            sig(best["loss"], 4),
            sig(best["lr_value"], 3),
            percent(best["excess_at_value"]),
        ]
        for _, best in analysis.tuning.iterrows()
    ]
    return Section("Learning rates").add(
        "Each shape was trained at several learning rates. Its optimum is the bottom of a parabola through the rates "
        "that noise cannot tell from the best, and the row that was analysed is the loss there, plus what the bottom "
        "of noisy losses is too low by on average. The last column compares runs that were trained: what the rate "
        "that was given came to, above the best of those tried.",
        table(("family", "shape", "N", "optimum", "loss there", "rate given", "its excess"), rows),
        figure(analysis.path, "rates", "Means over seeds. A flat bottom says that the rate hardly matters there."),
    )
