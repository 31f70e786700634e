"""The run directory: its files, and which run it belongs to."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from slm.composition.budget import BUDGETS, IDENTITY_KEYS
from slm.composition.settings import LEGACY_VALUES
from slm.runtime.files import check_writable, locked, read_json_object, write_atomically, write_json
from slm.runtime.settings import RENAMED_KEYS, flatten

CONTENTS = ("checkpoints", "model", "metrics.csv", "corpus.json", "result.json", "wandb", "tensorboard", "mlflow")
"""What a run writes besides config.yaml. A directory with one of these but without config.yaml is refused."""

EXTENSION = ("schedule.", *(f"train.{key}" for key in BUDGETS))
"""Beginnings of the keys of budget and schedule. Runs that differ only in these may share their first steps."""


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.metrics = self.path / "metrics.csv"

    def result(self) -> dict[str, Any]:
        """Return the contents of `result.json`; empty if it is missing or damaged."""
        return read_json_object(self.path / "result.json")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`; numbers that are not finite become null, because JSON has only finite numbers."""
        write_json(self.path / "result.json", result, indent=2)

    def settings(self) -> dict[str, Any] | None:
        """Return the contents of `config.yaml`; None if it does not exist. Raises `ValueError` if it is unreadable."""
        file = self.path / "config.yaml"
        try:
            return OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else None  # type: ignore[return-value]
        except (yaml.YAMLError, OSError) as error:
            raise ValueError(f"{file} cannot be read: restore it, or choose another directory") from error

    def corpus(self) -> dict[str, Any]:
        """Return the contents of `corpus.json` (fingerprints, what was left out); empty if not written yet."""
        file = self.path / "corpus.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise `ValueError` if the directory belongs to another run or cannot be made."""
        settings = self.settings()
        if settings is not None:
            self._refuse_if_different(differences(settings, config, IDENTITY_KEYS))
        elif foreign := [name for name in CONTENTS if (self.path / name).exists()]:
            raise ValueError(
                f"output_dir={self.path} holds {foreign[0]} but no config.yaml, so it may belong to another run: "
                "choose another output_dir"
            )
        else:
            check_writable(self.path)  # now, because it may take hours to build the corpus

    @contextmanager
    def lock(self, config: Mapping[str, Any], corpus: Mapping[str, Any]) -> Iterator[None]:
        """Lock the directory in this context, and write `config.yaml` and `corpus.json` first.

        Raises `ValueError` if another process trains in the directory, or if the run in it began with another corpus.
        """
        with locked(self.path, user="process that trains in it"):
            if (self.path / "config.yaml").exists():
                self._refuse_if_different(differences(self.corpus(), corpus, ("data", "tokenizer", "teacher", "tasks")))
            else:
                write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(_with_hydra_keys(config)))
            write_json(self.path / "corpus.json", corpus, indent=2)
            yield

    def _refuse_if_different(self, clauses: Iterator[str]) -> None:
        all_clauses = list(clauses)
        if not all_clauses:
            return
        changes = "; ".join(all_clauses[:3])
        if self.result().get("status") == "completed" and all(clause.startswith(EXTENSION) for clause in all_clauses):
            raise ValueError(
                f"output_dir={self.path} holds a finished run ({changes}): to train it further, give another "
                f"output_dir with init_from={self.path} (its weights, a new schedule), or with branch_from={self.path} "
                "if it kept a step before its learning rate fell (schedule=wsd and checkpoint.keep_steps)"
            )
        raise ValueError(
            f"output_dir={self.path} holds a run with other settings ({changes}): "
            "choose another output_dir, or give that run's settings to continue it"
        )


def _with_hydra_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with what Hydra needs for `python train.py -cp DIR -cn config output_dir=NEW`."""
    return {
        "defaults": ["_self_", {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}],
        **config,
        "hydra": {"run": {"dir": "."}, "output_subdir": None},
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any], groups: tuple[str, ...]) -> Iterator[str]:
    """For each dotted key in `groups` whose values differ, yield a clause that begins with the key."""
    old_values, new_values = (  # older configs lack the keys of `LEGACY_VALUES`
        LEGACY_VALUES | {RENAMED_KEYS.get(key, key): value for key, value in flatten(config)} for config in (old, new)
    )
    for key in sorted(old_values.keys() | new_values.keys()):
        if key.split(".")[0] in groups and old_values.get(key) != new_values.get(key):
            yield f"{key} is {old_values.get(key)} there, {new_values.get(key)} here"
