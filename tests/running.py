"""Run train.py as a user would, on a model so small that what is tested is the machinery around it."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

SMALL_RUN = [
    "data=local",
    "tokenizer=bytes",
    "model.vocab_size=260",
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.intermediate_size=64",
    "train.sequence_length=32",
    "train.batch_tokens=256",
    "train.tokens=10240",
    "train.log_every=5",
    "train.eval_every=10",
    "train.eval_tokens=512",
    "train.sample_tokens=4",
    "checkpoint.every_steps=7",
    "trainer=cpu",
    "trainer.compile=false",
    "logger=csv",
]


def make_command(text_file: Path, cache_dir: Path, *changes: str) -> list[str]:
    """The command line of a small run; later `changes` win over earlier ones and over SMALL_RUN."""
    places = [f"data.paths={text_file}", f"cache_dir={cache_dir}"]
    settings = {item.partition("=")[0]: item for item in [*SMALL_RUN, *places, *changes]}
    return [sys.executable, str(ROOT / "train.py"), *settings.values()]


def quiet_env() -> dict[str, str]:
    """One thread a process: the tests' models are too small for more."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
