"""Plans, and finished runs to compare, of small models."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import torch

from slm.training.plan import Hardware
from tests.composing import composed

CPU = Hardware(
    accelerator="cpu",
    devices=1,
    num_nodes=1,
    strategy="single",
    precision="32-true",
    compile=False,
    micro_batch_tokens=8192,
    num_workers=0,
)
SHAPE = {"vocab_size": 100, "hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
CONFIG = composed(
    "schedule=constant",
    "schedule.warmup_fraction=0",
    "model.num_kv_heads=2",
    "model.max_position_embeddings=2048",
    *(f"model.{key}={value}" for key, value in SHAPE.items()),
)


def config(**train: Any) -> dict[str, Any]:
    """The config of 19 steps of 512 tokens, with changes of the `train` group."""
    changed = copy.deepcopy(CONFIG)
    changed["train"] |= {"tokens": 10_000, "batch_tokens": 512, "sequence_length": 32, **train}
    return changed


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
