"""The run directory: whose it is, and the files in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

# What must be the same for a directory to be continued; devices, logging and how often to save may change.
IDENTITY = ("model", "data", "tokenizer", "optim", "schedule", "train", "seed")


class RunDirectory:
    """Paths and files of one run (DESIGN, section 3). Files are written under another name, then renamed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"

    def result(self) -> dict[str, Any] | None:
        """`result.json`, or None while there is none."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        self._write("result.json", json.dumps(result, indent=2) + "\n")

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise `ValueError` if this cannot be the directory of `config`: a file, or another run's."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output_dir={self.path} is a file; it must be a folder, or not exist yet")
        file = self.path / "config.yaml"
        if not file.exists():
            return
        differing = list(_differences(OmegaConf.to_container(OmegaConf.load(file)), config))
        if differing:
            raise ValueError(
                f"output_dir={self.path} holds a run with other settings ({'; '.join(differing[:3])}): "
                "choose another output_dir, or give that run's settings to continue it"
            )

    def claim(self, config: Mapping[str, Any]) -> None:
        """Write `config.yaml` unless it is there; the directory is then this run's."""
        if (self.path / "config.yaml").exists():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write("config.yaml", OmegaConf.to_yaml(_runnable(config)))
        except OSError as error:
            raise ValueError(f"output_dir={self.path} cannot be written: {error.strerror}") from error

    def _write(self, name: str, text: str) -> None:
        partial = self.path / f"{name}.partial"
        partial.write_text(text)
        os.replace(partial, self.path / name)


def _runnable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what Hydra needs to run it again: `python train.py -cp DIR -cn config output_dir=NEW`."""
    return {
        "defaults": ["_self_", {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}],
        **config,
        "hydra": {"run": {"dir": "."}, "output_subdir": None},
    }


def _differences(old: Any, new: Mapping[str, Any]) -> Iterator[str]:
    before, after = dict(_flat(old)), dict(_flat(new))
    for key in sorted(before.keys() | after.keys()):
        if key.split(".")[0] in IDENTITY and before.get(key) != after.get(key):
            yield f"{key} is {before.get(key)} there, {after.get(key)} here"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
