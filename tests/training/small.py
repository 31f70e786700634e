"""Plans, and finished runs to compare, of small models."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import torch

from slm.training.hardware import Hardware

CONFIG = {
    "model": {
        "family": "mobilellm",
        "vocab_size": 100,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 64,
    },
    "train": {
        "tokens": 10_000,
        "tokens_per_param": None,
        "flops": None,
        "batch_tokens": 512,
        "sequence_length": 32,
        "log_every": 1,
        "eval_every": 1,
        "eval_tokens": 32,
    },
    "optim": {
        "name": "adamw",
        "lr": 1e-3,
        "eps": 1e-8,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "skip_factor": 20.0,
        "max_skipped_in_a_row": 50,
        "ema_decay": None,
    },
    "parametrization": {"name": "standard"},
    "schedule": {"name": "constant", "warmup_fraction": 0.0},
    "checkpoint": {"keep_steps": []},
}


def config(**train) -> dict:
    changed = copy.deepcopy(CONFIG)
    changed["train"] |= train
    return changed


def hardware(devices: int = 1, micro_batch_tokens: int = 8192) -> Hardware:
    return Hardware(
        accelerator="cpu",
        devices=devices,
        num_nodes=1,
        strategy="ddp" if devices > 1 else "single",
        precision="32-true",
        compile=False,
        micro_batch_tokens=micro_batch_tokens,
        num_workers=0,
    )


CPU = hardware()


def rows(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without the columns that tell the time."""
    if not (folder / "metrics.csv").exists():
        return []
    with (folder / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file) if row["step"]
        ]


def final_state(folder: Path) -> dict[str, Any]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]["state"]
    return {f"weight {name}": tensor for name, tensor in checkpoint["state_dict"].items()} | {
        f"moment {number} {name}": value for number, state in optimizer.items() for name, value in state.items()
    }


def assert_same_run(folder: Path, reference: Path) -> None:
    ours, theirs = final_state(folder), final_state(reference)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert rows(folder) == rows(reference)
    results = [json.loads((f / "result.json").read_text()) for f in (folder, reference)]
    for key in ("status", "val", "train_loss_final", "train_tokens", "steps", "data", "tokenizer"):
        assert results[0][key] == results[1][key], key
