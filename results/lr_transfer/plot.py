"""Draw lr_transfer.png from the three sweeps of this folder: python results/lr_transfer/plot.py"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

HERE = Path(__file__).parent
LINES = {"completep": ("o-", "black"), "standard": ("s--", "tab:red")}


def main() -> None:
    base, *others = (pd.read_csv(HERE / name / "runs.csv") for name in ("base", "completep", "standard"))
    tuned = float(pd.read_csv(HERE / "base" / "tuning.csv")["lr"].iloc[0])
    runs = pd.concat([others[0][others[0]["width"] > 64], others[1]])
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    seeds = base.groupby("lr")["loss"].agg(["mean", "min", "max"])
    axis.plot(seeds.index, seeds["mean"], "^:", color="grey", label="base, 64x4, mean and range of three seeds")
    axis.fill_between(seeds.index, seeds["min"], seeds["max"], color="grey", alpha=0.2)
    for (rule, width, depth), line in runs.sort_values("lr").groupby(["parametrization", "width", "depth"]):
        style, color = LINES[rule]
        label = f"{rule}, {width}x{depth}"
        axis.plot(line["lr"], line["loss"], style, color=color, alpha=1 if width > 128 else 0.4, label=label)
    axis.axvline(tuned, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xscale("log", base=2)
    ticks = sorted(runs["lr"].unique())
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], fontsize=8)
    axis.set_xlabel("optim.lr; dotted: the base's best")
    axis.set_ylabel("validation loss (nats/token)")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(HERE / "lr_transfer.png", dpi=150)


if __name__ == "__main__":
    main()
