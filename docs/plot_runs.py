"""Validation loss of runs over tokens: `python docs/plot_runs.py docs/first_run.png outputs/*/*`."""

import json
import sys
from pathlib import Path

import pandas as pd

from slm.report.style import DPI, Figure, colours, markers, panels, short_name, style, tick_label


def draw(folders: list[Path]) -> Figure:
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    labels = [f"{short_name(result['name'])}: {result['val']['bits_per_byte']:.3f} bits per byte" for result in results]
    title = f"Loss over tokens: validation (marks) and training (thin lines); {', '.join(labels)}"
    names = [result["name"] for result in results]
    figure, (axis,) = panels(1, title, ncols=1, width=6.8, height=3.6, families=names)
    for name, folder in zip(names, folders, strict=True):
        rows = pd.read_csv(folder / "metrics.csv")
        trained, validated = rows.dropna(subset="train/loss"), rows.dropna(subset="val/loss")
        colour = colours(names)[name]
        axis.plot(trained["tokens"], trained["train/loss"], color=colour, alpha=0.4, lw=1)
        axis.plot(validated["tokens"], validated["val/loss"], color=colour, marker=markers(names)[name], ms=4, lw=1.5)
    axis.set(xlabel="training tokens", ylabel="loss (nats per token)")
    axis.xaxis.set_major_formatter(lambda value, _: tick_label(value) if value else "0")
    return figure


if __name__ == "__main__":
    picture, *names = sys.argv[1:]
    with style():
        draw([Path(name) for name in names]).savefig(picture, dpi=DPI)
