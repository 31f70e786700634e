"""The run directory: whose it is, and the files in it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from slm.composition.budget import IDENTITY
from slm.composition.settings import BEFORE_KEYS

FINGERPRINTS = ("data", "tokenizer")
"""Keys of `corpus.json` that say which corpus it is."""
# What a run writes besides its config. Where one of these is and no config.yaml, somebody else put it there.
CONTENTS = ("checkpoints", "model", "metrics.csv", "corpus.json", "result.json", "wandb", "tensorboard")


class RunDirectory:
    """Paths and files of one run (DESIGN, section 3). Files are written under another name, then renamed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.metrics = self.path / "metrics.csv"

    def result(self) -> dict[str, Any] | None:
        """`result.json`, or None while there is none that is whole."""
        try:
            return json.loads((self.path / "result.json").read_text())
        except (OSError, ValueError):
            return None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`; numbers that are not finite become null, which JSON has a word for."""
        self._write("result.json", json.dumps(_finite(result), indent=2, allow_nan=False) + "\n")

    def settings(self) -> dict[str, Any] | None:
        """`config.yaml`, or None where there is none. Raises `ValueError` for one that cannot be read."""
        file = self.path / "config.yaml"
        try:
            return OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else None  # type: ignore[return-value]
        except (yaml.YAMLError, OSError) as error:
            raise ValueError(f"{file} cannot be read: restore it, or choose another directory") from error

    def corpus(self) -> dict[str, Any]:
        """Fingerprints of what the run was trained on, and what was left out; nothing where not written yet."""
        file = self.path / "corpus.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise `ValueError` if this cannot be the directory of `config`: a file, another run's or somebody else's."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output_dir={self.path} is a file; it must be a folder, or not exist yet")
        before = self.settings()
        if before is None:
            foreign = [name for name in CONTENTS if (self.path / name).exists()]
            if foreign:
                raise ValueError(
                    f"output_dir={self.path} holds {foreign[0]} but no config.yaml, so it is not known to be this "
                    "run's: choose another output_dir"
                )
            return
        self._refuse_if_different(differences(before, config, IDENTITY))

    @contextmanager
    def claimed(self, config: Mapping[str, Any], corpus: Mapping[str, Any]) -> Iterator[None]:
        """Hold the directory, with `config.yaml` and `corpus.json` (what is trained on) in it.

        Raises `ValueError` if another process trains in it, or if it was begun on another corpus.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / ".lock").acquire(timeout=0):
                if (self.path / "config.yaml").exists():
                    self._refuse_if_different(differences(self.corpus(), corpus, FINGERPRINTS))
                else:
                    self._write("config.yaml", OmegaConf.to_yaml(_runnable(config)))
                self._write("corpus.json", json.dumps(corpus, indent=2) + "\n")
                yield
        except Timeout as error:
            raise ValueError(f"output_dir={self.path} is in use by another process that trains in it") from error

    def _refuse_if_different(self, differences: Iterator[str]) -> None:
        found = list(differences)
        if found:
            raise ValueError(
                f"output_dir={self.path} holds a run with other settings ({'; '.join(found[:3])}): "
                "choose another output_dir, or give that run's settings to continue it"
            )

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


def differences(old: Mapping[str, Any], new: Mapping[str, Any], parts: tuple[str, ...]) -> Iterator[str]:
    """What differs in `parts` (top-level keys) of two configs, a clause each that begins with its dotted key."""
    before, after = BEFORE_KEYS | dict(_flat(old)), BEFORE_KEYS | dict(_flat(new))
    for key in sorted(before.keys() | after.keys()):
        if key.split(".")[0] in parts and before.get(key) != after.get(key):
            yield f"{key} is {before.get(key)} there, {after.get(key)} here"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
