"""Register what `conf/train.yaml` takes from Python: the defaults of ModelConfig, family rules and names of runs."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, OmegaConf

from slm.model.config import ModelConfig
from slm.model.families import RULES
from slm.runtime.command_line import cache_home, new_folder_path

SET_BY_MODEL_GROUP = ("max_position_embeddings",)
"""Fields of ModelConfig that have a default, but are set by the config group `model` and not by families."""


def register() -> None:
    """Register the nodes `model/base` and `family_options` (defaults of ModelConfig), and all resolvers of `conf/`."""
    fields = dataclasses.fields(ModelConfig)
    defaults = {field.name: MISSING if field.default is dataclasses.MISSING else field.default for field in fields}
    store = ConfigStore.instance()
    store.store(group="model", name="base", node={"family": MISSING, **defaults})
    options = {key: value for key, value in defaults.items() if value is not MISSING and key not in SET_BY_MODEL_GROUP}
    # Not in the group `family`, because `--help` would list it as a family.
    store.store(name="family_options", node={"model": options}, package="_global_")
    for name, rule in RULES.items():
        OmegaConf.register_new_resolver(name, rule, replace=True)
    resolvers: dict[str, Any] = {"model_name": _model_name, "run_dir": _run_dir, "cache_home": cache_home}
    resolvers["run_group"] = lambda: Path(HydraConfig.get().sweep.dir).name if in_multirun() else None
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)


def _model_name(width: int | None = None, depth: int | None = None, init_from: str | None = None) -> str:
    if init_from is not None:
        parts = Path(str(init_from)).parts or ("",)
        return f"from-{parts[-2] if parts[-1] == 'model' and len(parts) > 1 else parts[-1]}"
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    if choices.get("family"):
        return f"{choices['family']}_{width}x{depth}"
    return choices.get("model") or "run"


def _run_dir(width: int | None, depth: int | None, init_from: str | None = None) -> str:
    """A new folder under `outputs/`, or the folder of this job in a multirun."""
    if "SLM_RUN_DIR" in os.environ:  # a process that DDP started uses the folder of its parent
        return os.environ["SLM_RUN_DIR"]
    if in_multirun():
        return str(HydraConfig.get().runtime.output_dir)
    return new_folder_path(_model_name(width, depth, init_from))


def in_multirun() -> bool:
    """Whether this process runs a job of a multirun (Hydra's `-m`)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
