"""Small models, their gradients and plans, and finished runs to compare."""

import copy
import csv
import json
import shlex
from pathlib import Path
from typing import Any

import torch

from slm.model import Decoder, ModelConfig
from slm.training.hardware import Hardware
from tests.composing import composed
from tests.seeds import seeded

CPU = Hardware(
    accelerator="cpu",
    devices=1,
    num_nodes=1,
    strategy="single",
    precision="32-true",
    compile=False,
    micro_batch_tokens=None,
    activation_checkpointing="auto",
    deterministic=False,
    num_workers=0,
)
CONFIG = composed(
    *shlex.split("""
    schedule=constant schedule.warmup_fraction=0 model.vocab_size=100 model.hidden_size=64 model.num_layers=2
    model.num_heads=2 model.num_kv_heads=2 model.intermediate_size=64 model.max_position_embeddings=2048
""")
)
OPTIM = {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "momentum": 0.95, "iterations": 5}


def random_decoder(seed: int = 0, **changes: Any) -> Decoder:
    """Of 20 ids, 16 channels and one block, with `changes`."""
    torch.manual_seed(seeded(seed))
    shape = {"vocab_size": 20, "hidden_size": 16, "num_layers": 1, "num_heads": 4, "intermediate_size": 24}
    return Decoder(ModelConfig(**shape | changes))


def set_random_gradients(decoder: Decoder, seed: int) -> None:
    rng = torch.Generator().manual_seed(seeded(seed))
    for parameter in decoder.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=rng).to(parameter.dtype)


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
        table = [row for row in csv.DictReader(file) if row["step"]]
    return [{name: row[name] for name in row if not name.startswith("time/")} for row in table]


def losses(folder: Path, column: str = "train/loss") -> list[float]:
    return [float(row[column]) for row in rows(folder) if row[column]]


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
