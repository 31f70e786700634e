"""Compose the train config of a family once, and resolve it for any width, depth and seed.

Composing takes 0.1 s or more, resolving takes a few ms, and a grid may have hundreds of cells. The key of a run is a
hash of its resolved config, so a changed default in `conf/` makes another run.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from slm.composition.budget import IDENTITY_KEYS, LATER_KEYS, check_family, model_config
from slm.composition.keys import check_keys, explain_unknown_keys
from slm.composition.mixing import conf_folder, expand_sources, searchpath_overrides
from slm.composition.settings import LEGACY_VALUES
from slm.data.corpus import check_sources
from slm.data.local import text_files
from slm.data.questions import read_records, read_tasks
from slm.data.sources import MIX
from slm.data.vocabulary import is_on_hub, plan_tokenizer
from slm.model.config import ModelConfig
from slm.runtime.address import local_folder, named, split_revision
from slm.runtime.command_line import in_quotes
from slm.runtime.extensions import loaded_extensions
from slm.runtime.settings import plain_settings, prefixed


class Recipe:
    """The train config of a family under the overrides of a design.

    `default_aspect` is hidden_size / num_layers at the width and depth that conf/family sets. Raises `ValueError`, or
    Hydra's errors, for overrides that train.py does not know.
    """

    def __init__(self, family: str, overrides: Sequence[str]) -> None:
        self.family = family
        self.overrides = (f"family={family}", *overrides)
        # Without the last two overrides, Hydra would derive these values from the config groups chosen for sweep.py.
        self.config = composed("train", (*self.overrides, f"name={family}", "output_dir=runs"))
        self.default_aspect = float(self.config.width / self.config.depth)
        self.shapes: dict[tuple[int, int], ModelConfig] = {}

    @property
    def width_step(self) -> int:
        """The width of a head, of which every width is a multiple."""
        return int(self.config.model.head_dim)

    @property
    def depth_step(self) -> int:
        """The length of the mixer pattern, of which every depth is a multiple."""
        return len(self.config.model.mixer_pattern)

    def shape(self, width: int, depth: int) -> ModelConfig:
        """The shape under the family's rule. Raises `ValueError` or an OmegaConf error if the rule refuses it."""
        if (width, depth) not in self.shapes:
            self.config.width, self.config.depth = width, depth
            model = model_config(OmegaConf.to_container(self.config.model, resolve=True))  # type: ignore[arg-type]
            check_family({"width": width, "depth": depth}, model)
            self.shapes[width, depth] = model
        return self.shapes[width, depth]

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The resolved config with `changes` such as {"optim.lr": 0.004}. Raises `ValueError` if a value is missing."""
        config = self.config.copy()
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
        return expand_sources(plain_settings(config))


def run_key(settings: Mapping[str, Any]) -> str:
    """sha256 (hex) of the settings that determine a run, whatever the order of their keys.

    A key added later enters the hash only if it changes what older runs did. Precision is hashed as requested, because
    `auto` depends on the machine.
    """
    values: dict[str, Any] = {group: settings[group] for group in IDENTITY_KEYS if group in settings}
    hashed = {group: value for group, value in values.items() if value != LEGACY_VALUES.get(group)}
    for group, later_keys in LATER_KEYS.items():
        without_effect = {key for key in later_keys if hashed[group].get(key) == LEGACY_VALUES[f"{group}.{key}"]}
        hashed[group] = {key: value for key, value in hashed[group].items() if key not in without_effect}
    precision = settings["trainer"]["precision"]
    if precision != "auto":
        hashed["precision"] = precision
    return digest(hashed)


def digest(data: Any) -> str:
    """sha256 (hex) of the canonical JSON of `data`."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_inputs(config: DictConfig, setting: str) -> None:
    """Raise `ValueError` for texts, questions, a teacher or a tokenizer of `config` that do not exist.

    The message begins with `setting`.
    """
    with prefixed(setting):
        if OmegaConf.select(config, "data.source") == MIX:
            data: Any = OmegaConf.to_container(config.data, resolve=True)
            check_sources(expand_sources({"data": data})["data"], {"kind": "bytes"})  # the tokenizer is checked below
        for key in ("paths", "val_paths"):
            if paths := OmegaConf.select(config, f"data.{key}", throw_on_missing=False):
                text_files(paths if isinstance(paths, str) else list(paths), f"data.{key}")
        if tasks := OmegaConf.select(config, "train.eval_tasks"):
            read_tasks(tasks, "train.eval_tasks", OmegaConf.select(config, "train.eval_task_limit"))
        for name, path in (OmegaConf.select(config, "task_files") or {}).items():  # of an evaluation
            read_records(str(name), path, "task_files")
        if teacher := OmegaConf.select(config, "distill.teacher", throw_on_missing=False):
            with named("distill.teacher"):
                local_folder(*split_revision(str(teacher)))
        if OmegaConf.select(config, "tokenizer.kind") == "file":
            tokenizer: Any = OmegaConf.to_container(config.tokenizer)
            if not is_on_hub(tokenizer):
                plan_tokenizer(tokenizer)


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose conf/NAME.yaml with `overrides`, unresolved. Raises `ValueError`, or Hydra's errors, for unknown keys."""
    with conf_folder(), explain_unknown_keys(name):
        config = compose(name, overrides=[*inherited_overrides(), *overrides])
    check_keys(OmegaConf.to_container(config), name, overrides)  # type: ignore[arg-type]
    return config


def inherited_overrides() -> list[str]:
    """Overrides that give a job the extensions and config folders of this process (--config-dir, hydra.searchpath)."""
    paths = [in_quotes(Path(name)) for name in loaded_extensions()]
    extensions = [f"extensions=[{','.join(paths)}]"] if paths else []
    return [*searchpath_overrides(), *extensions]
