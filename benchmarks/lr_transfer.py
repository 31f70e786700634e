"""Is the learning rate of a small model right for a large one? Tuned at one shape, carried to another, scanned there.

    python benchmarks/lr_transfer.py --runs DIR                       results/lr_transfer/ (hours on two cores)
    python benchmarks/lr_transfer.py --runs DIR --out DIR2 family=ssd   another family, optimizer or budget

The base's rate is where a parabola in log(rate) through the best rate and its neighbours is lowest, seeds averaged.
With `completep` the target is trained at that rate and at factors of 2 around it, with `standard` at that rate and
below. What follows the options are overrides of conf/train.yaml. Each run is a process with one thread and a directory
of its own under --runs: the same command goes on where it was stopped.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from slm.sweep.tuning import tune

ROOT = Path(__file__).parents[1]
SCALES = {"completep": (1 / 4, 1 / 2, 1.0, 2.0, 4.0), "standard": (1 / 8, 1 / 4, 1 / 2, 1.0)}
# With init_std 0.02 the base's seeds lie 0.45 nats apart at 8e-3, and rates cannot be told apart (docs/log.md).
FIXED = [
    "model.init_std=0.05",
    "train.tokens=800_000",
    "train.batch_tokens=2048",
    "train.sample_tokens=0",
    "train.eval_every=1000",
]
FIXED += ["checkpoint.every_steps=null", "logger=csv"]


@dataclass(frozen=True)
class Job:
    """One training run."""

    stage: str
    parametrization: str
    shape: tuple[int, int]
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.stage}_{self.parametrization}_{self.lr:.3e}_{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the run directories go")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "lr_transfer")
    parser.add_argument("--base", type=int, nargs=2, default=[64, 4], metavar=("WIDTH", "DEPTH"))
    parser.add_argument("--target", type=int, nargs=2, default=[256, 16], metavar=("WIDTH", "DEPTH"))
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the base; the target has the first")
    parser.add_argument("--slots", type=int, default=os.cpu_count(), help="runs at a time")
    options, overrides = parser.parse_known_args()
    base, target = tuple(options.base), tuple(options.target)

    tuning = [Job("base", "standard", base, lr, seed) for seed in options.seeds for lr in options.rates]
    table = train(tuning, base, options, overrides)
    best = optimum(table)
    print(f"best rate at {base[0]} x {base[1]}: {best:.3e}", flush=True)
    scan = [
        Job("target", name, target, best * scale, options.seeds[0])
        for scale in sorted({s for scales in SCALES.values() for s in scales}, key=lambda s: abs(math.log(s)))
        for name, scales in SCALES.items()
        if scale in scales
    ]
    table = pd.concat([table, train(scan, base, options, overrides)], ignore_index=True)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "results.csv", index=False, float_format="%.6g")
    draw(table, best, options)
    print(verdict(table, best))


def train(
    jobs: Iterable[Job], base: tuple[int, int], options: argparse.Namespace, overrides: list[str]
) -> pd.DataFrame:
    """A row a run, trained now or before."""

    def one(job: Job) -> dict[str, object]:
        folder = options.runs / job.name
        command = [sys.executable, str(ROOT / "train.py"), "family=mobilellm", *FIXED, *overrides]
        command += [f"width={job.shape[0]}", f"depth={job.shape[1]}", f"optim.lr={job.lr:.6g}", f"seed={job.seed}"]
        command += [f"parametrization={job.parametrization}", f"output_dir={folder}"]
        if job.parametrization != "standard":
            base_shape = {"base_width": base[0], "base_depth": base[1], "base_head_dim": 32}
            command += [f"parametrization.{key}={value}" for key, value in base_shape.items()]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{job.name}: {done.stderr}")
        result = json.loads((folder / "result.json").read_text())
        print(f"{job.name}: {result['val']['loss']:.4f}", flush=True)
        return {
            "stage": job.stage,
            "parametrization": job.parametrization,
            "family": result["family"],
            "width": job.shape[0],
            "depth": job.shape[1],
            "params_total": result["params_total"],
            "lr": job.lr,
            "seed": job.seed,
            "tokens": result["train_tokens"],
            "steps": result["steps"],
            "loss": result["val"]["loss"],
            "bits_per_byte": result["val"]["bits_per_byte"],
            "data_fingerprint": result["data"]["fingerprint"],
            "git_commit": result["git_commit"],
        }

    with ThreadPoolExecutor(options.slots) as slots:
        return pd.DataFrame(slots.map(one, jobs))


def optimum(runs: pd.DataFrame) -> float:
    """Rate of the lowest loss, by the parabola of a sweep's tuned rates."""
    found = tune(runs.assign(budget="", run_id="", perplexity=np.exp(runs["loss"]))).optima.iloc[0]
    if found["at_end"]:
        sys.exit(f"the best of the base's rates is at an end, {found['lr']:g}: give further --rates")
    return float(found["lr"])


def verdict(table: pd.DataFrame, best: float) -> str:
    """What the target's runs say."""
    lines = []
    for name, runs in table.query("stage == 'target'").groupby("parametrization"):
        lowest = runs.loc[runs["loss"].idxmin()]
        carried = runs.loc[(runs["lr"] / best - 1).abs().idxmin()]
        excess = carried["loss"] / lowest["loss"] - 1
        lines.append(
            f"{name}: {carried['loss']:.4f} at the base's rate {best:.3e}, best of the scan {lowest['loss']:.4f} at "
            f"{lowest['lr'] / best:g} times that: {excess:.2%} above it"
        )
    return "\n".join(lines)


def draw(table: pd.DataFrame, best: float, options: argparse.Namespace) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    tuned = table.query("stage == 'base'").groupby("lr")["loss"].agg(["mean", "min", "max"])
    label = f"base {options.base[0]} x {options.base[1]}, seeds averaged"
    axis.plot(tuned.index, tuned["mean"], "o--", color="grey", label=label)
    axis.fill_between(tuned.index, tuned["min"], tuned["max"], color="grey", alpha=0.2)
    for name, color in {"completep": "black", "standard": "tab:red"}.items():
        line = table.query("stage == 'target' and parametrization == @name").sort_values("lr")
        label = f"{name}, {options.target[0]} x {options.target[1]}"
        axis.plot(line["lr"], line["loss"], "o-", color=color, label=label)
    axis.axvline(best, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xscale("log", base=2)
    ticks = sorted(table["lr"].round(5).unique())[::2]
    axis.set_xticks(ticks, [f"{tick:.1e}" for tick in ticks], fontsize=7)
    axis.set_xlabel("optim.lr (the dotted line is the base's best)")
    axis.set_ylabel("validation loss (nats/token)")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    figure.savefig(options.out / "lr_transfer.png", dpi=150)


if __name__ == "__main__":
    main()
