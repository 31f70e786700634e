"""What `conf/` needs of Python: the model's defaults and the names of runs. Imports no torch, so `--help` is quick."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, OmegaConf

from slm.command_line import cache_home, new_folder
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
        ("cache_home", cache_home),
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
    return new_folder(_model_name())


def _run_group() -> str | None:
    """The name of the multirun's folder; None for a single run."""
    return Path(HydraConfig.get().sweep.dir).name if _in_multirun() else None


def _in_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
