"""Measure speed, memory and bytes of shapes with random weights, on which neither depends: `python -m ... IN OUT`.

`slm.sweep.device` starts this in a process of its own, so that the process that analyses needs no torch.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch

from slm.evaluation.report.rows import SPEED_KEYS, to_csv
from slm.evaluation.speed import measure_speed
from slm.model import Decoder, ModelConfig
from slm.runtime.files import write_atomically
from slm.runtime.machine import why_no_gpu
from slm.runtime.progress import say


def measure_shapes(request: Path, results: Path) -> None:
    """Measure the shapes in the file `request`, and append each at once to the CSV file `results`.

    `request` is JSON: `shapes`, each with `family`, `width`, `depth` and `model` (the fields of `ModelConfig`), and
    `speed`, the settings of `measure_speed`.
    """
    asked = json.loads(request.read_text(encoding="utf-8"))
    device = "cuda" if torch.cuda.is_available() and why_no_gpu() is None else "cpu"
    rows = list(csv.DictReader(results.open(encoding="utf-8", newline=""))) if results.exists() else []
    for number, shape in enumerate(asked["shapes"], start=1):
        say(f"[{number}/{len(asked['shapes'])}] measuring {shape['family']} {shape['width']}x{shape['depth']}")
        torch.manual_seed(0)
        rows.append(_measure(shape, asked["speed"], device))
        write_atomically(results, to_csv(rows))


def _measure(shape: dict[str, Any], speed: dict[str, Any], device: str) -> dict[str, Any]:
    config = ModelConfig.from_dict(shape["model"])
    decoder = Decoder(config).to(device).eval()
    measured = measure_speed(decoder, speed)
    counts = decoder.counts()
    row = {key: shape[key] for key in ("family", "width", "depth")}
    row |= {"block_uses": len(config.block_uses), "vocab_size": config.vocab_size}
    row |= {"params_total": counts.params_total, "params_non_embedding": counts.params_non_embedding}
    row |= {key: measured.get(key) for key in SPEED_KEYS}
    for name in ("prefill", "decode"):
        row[f"{name}_low"], row[f"{name}_high"] = measured[f"{name}_spread"]
    return row


if __name__ == "__main__":
    measure_shapes(Path(sys.argv[1]), Path(sys.argv[2]))
