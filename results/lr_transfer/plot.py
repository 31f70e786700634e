"""Draw lr_transfer.png from the three sweeps of this folder: python results/lr_transfer/plot.py"""

from pathlib import Path

import pandas as pd

from slm.report.style import DPI, GREY, PALETTE, log_axis, panels, style

HERE = Path(__file__).parent
LINES = {"completep": ("o-", PALETTE[0]), "standard": ("s--", PALETTE[1])}


def main() -> None:
    base, *others = (pd.read_csv(HERE / name / "runs.csv") for name in ("base", "completep", "standard"))
    tuned = float(pd.read_csv(HERE / "base" / "tuning.csv")["lr"].iloc[0])
    runs = pd.concat([others[0][others[0]["width"] > 64], others[1]])
    title = "Loss against learning rate: the base's best rate is the best at larger shapes under completep"
    figure, (axis,) = panels(1, title, ncols=1, width=6.8, height=3.8)
    seeds = base.groupby("lr")["loss"].agg(["mean", "min", "max"])
    axis.plot(seeds.index, seeds["mean"], "^:", color=GREY, label="base, 64x4, mean and range of three seeds")
    axis.fill_between(seeds.index, seeds["min"], seeds["max"], color=GREY, alpha=0.2, lw=0)
    for (rule, width, depth), line in runs.sort_values("lr").groupby(["parametrization", "width", "depth"]):
        form, colour = LINES[rule]
        label = f"{rule}, {width}x{depth}"
        axis.plot(line["lr"], line["loss"], form, ms=4, color=colour, alpha=1 if width > 128 else 0.45, label=label)
    axis.axvline(tuned, color=GREY, lw=0.8, ls=":")
    rates = pd.concat([base, runs])["lr"]
    log_axis(axis.xaxis, rates.min() / 1.15, rates.max() * 1.15, as_counts=False)
    axis.set_xlabel("optim.lr (dotted: the best of the base)")
    axis.set_ylabel("validation loss (nats per token)")
    axis.legend(edgecolor="none", framealpha=1, fontsize=8)
    figure.savefig(HERE / "lr_transfer.png", dpi=DPI)


if __name__ == "__main__":
    with style():
        main()
