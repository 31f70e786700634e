"""Run train.py as a user would, on a model so small that what is tested is the machinery around it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import train
from slm.composition.keys import unknown_keys_named
from slm.composition.resolvers import register
from slm.runtime.command_line import MISTAKES, one_sentence

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

MUON = ["optim=muon", "optim.ema_decay=0.9"]
TWO_PROCESSES = [
    pytest.param([], "ddp", id="adamw-ddp"),
    pytest.param(MUON, "fsdp", id="muon-fsdp"),
    pytest.param([], "fsdp", id="adamw-fsdp", marks=pytest.mark.slow),
    pytest.param(MUON, "ddp", id="muon-ddp", marks=pytest.mark.slow),
]
"""Each optimizer and each strategy once; the other two pairs with the slow tests."""


def make_command(text_file: Path, cache_dir: Path, *changes: str) -> list[str]:
    """The command line of a small run; later `changes` win over earlier ones and over SMALL_RUN."""
    places = [f"data.paths={text_file}", f"cache_dir={cache_dir}"]
    settings = {item.partition("=")[0]: item for item in [*SMALL_RUN, *places, *changes]}
    return [sys.executable, str(ROOT / "train.py"), *settings.values()]


def quiet_env() -> dict[str, str]:
    """One thread a process: the tests' models are too small for more."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def refusal(overrides: Sequence[str]) -> str:
    """What train.py says of settings that it refuses, in this process; AssertionError if it takes them."""
    register()
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), unknown_keys_named("train"):
            config = compose("train", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        train.run(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))
    except MISTAKES as error:
        return one_sentence(error)
    finally:
        HydraConfig.instance().cfg = None
    raise AssertionError(f"not refused: {overrides}")
