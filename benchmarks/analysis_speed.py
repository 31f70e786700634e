"""Time of a complete analysis: `python benchmarks/analysis_speed.py [OVERRIDES]`, with overrides of sweep.py.

Runs `python sweep.py` on a simulated table of 4 families x 6 sizes x 3 seeds, with tokens not proportional to size:
start-up, all laws, 1,000 bootstrap samples, 999 simulations per p-value, figures, report.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
SHAPES = ((128, 6), (192, 10), (256, 14), (384, 18), (512, 26), (768, 30))
TOKENS_PER_PARAMETER = (15, 22, 30, 20, 26, 18)
FAMILIES = {"deep_thin": (0.34, 1.0), "wide": (0.34, 0.85), "linear": (0.28, 0.8), "ssd": (0.33, 0.95)}


def table() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    rows = []
    for family, (alpha, worth) in FAMILIES.items():
        for (width, depth), ratio in zip(SHAPES, TOKENS_PER_PARAMETER, strict=True):
            inner = 12 * width * width * depth
            total = inner + 32000 * width
            loss = 1.9 + 180 * (total * worth) ** -alpha + 400 * (total * ratio) ** -0.30
            rows += [
                {
                    "family": family,
                    "params_total": total,
                    "params_non_embedding": inner,
                    "tokens": total * ratio,
                    "width": width,
                    "depth": depth,
                    "seed": seed,
                    "lr": 2e-3,
                    "loss": loss * np.exp(0.004 * rng.standard_normal()),
                    "tokens_per_second": 1e12 / total,
                }
                for seed in range(3)
            ]
    return pd.DataFrame(rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        table().to_csv(f"{home}/runs.csv", index=False)
        command = [sys.executable, str(ROOT / "sweep.py"), f"runs={home}/runs.csv", f"output_dir={home}/out"]
        command += sys.argv[1:]
        started = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - started
        figures = len(list(Path(home, "out/figures").glob("*.png")))
        fits = pd.read_json(f"{home}/out/fits.json")
    print(f"\n{len(table())} rows, {int(fits['fitted'].sum())} fits, {figures} figures: {seconds:.1f} s")


if __name__ == "__main__":
    main()
