"""What `conf/` needs of Python: the model's defaults and the names of runs. Imports no torch, so `--help` is quick."""

from __future__ import annotations

import dataclasses
import os
import secrets
from datetime import datetime
from itertools import takewhile
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, OmegaConf

from slm.model.config import ModelConfig


def register() -> None:
    """Register the config node `model/base` (ModelConfig's fields and defaults) and the resolvers `conf/` uses."""
    fields = dataclasses.fields(ModelConfig)
    defaults = {f.name: MISSING if f.default is dataclasses.MISSING else f.default for f in fields}
    ConfigStore.instance().store(group="model", name="base", node={"family": MISSING, **defaults})
    for name, resolver in (
        ("model_name", _model_name),
        ("run_dir", _run_dir),
        ("run_group", _run_group),
        ("cache_home", _cache_home),
    ):
        OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)


def _model_name() -> str:
    """The choice of the `model` group."""
    return HydraConfig.get().runtime.choices["model"] if HydraConfig.initialized() else "run"


def _run_dir() -> str:
    """A new folder under `outputs/`, or this job's folder of a multirun.

    Processes that DDP starts get their parent's folder through SLM_RUN_DIR.
    """
    if "SLM_RUN_DIR" in os.environ:
        return os.environ["SLM_RUN_DIR"]
    if _in_multirun():
        return str(HydraConfig.get().runtime.output_dir)
    now = datetime.now()
    # The random end keeps two runs that start within one second apart.
    return f"outputs/{now:%Y-%m-%d}/{now:%H-%M-%S}-{_model_name()}-{secrets.token_hex(2)}"


def _run_group() -> str | None:
    """The name of the multirun's folder; None for a single run."""
    return Path(HydraConfig.get().sweep.dir).name if _in_multirun() else None


def _in_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _cache_home() -> str:
    """Where caches of this user go (XDG base directory specification)."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slm")


def one_sentence(error: Exception) -> str:
    """The message of an error on one line; of Hydra's pages, what was wrong and what there is instead."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    endings = ("Config search path", "Key '", "full_key", "See https", "object_type")
    kept = list(takewhile(lambda line: not line.startswith(endings), lines))
    said = [line for line in kept if line]
    for place, line in enumerate(said):
        if line.startswith("Available options"):
            said[place:] = [f"{line} {', '.join(said[place + 1 :])}"]
            break
    return "; ".join(said) or type(error).__name__
