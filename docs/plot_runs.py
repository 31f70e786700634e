"""Validation loss of runs over tokens: `python docs/plot_runs.py docs/first_run.png outputs/*/*`."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd


def main() -> None:
    picture, *folders = sys.argv[1:]
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for folder in map(Path, folders):
        result = json.loads((folder / "result.json").read_text())
        rows = pd.read_csv(folder / "metrics.csv")
        trained, validated = rows.dropna(subset="train/loss"), rows.dropna(subset="val/loss")
        label = f"{result['name']}: {result['val']['bits_per_byte']:.3f} bits/byte"
        (line,) = axes.plot(validated["tokens"] / 1e6, validated["val/loss"], "o-", markersize=4, label=label)
        axes.plot(trained["tokens"] / 1e6, trained["train/loss"], color=line.get_color(), alpha=0.35, linewidth=1)
    axes.set(xlabel="training tokens (millions)", ylabel="loss (nats/token)")
    axes.set_title("validation (dots) and training loss", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
