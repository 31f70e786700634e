"""What a user's `checkpoint=...` refers to: a run of ours, its export, a folder of a release, or a hub repository."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slm.checkpoints.architecture import read_config, read_json
from slm.checkpoints.weights import Weights, open_run_checkpoint, open_weights
from slm.data import Tokenizer, load_tokenizer
from slm.model.config import ModelConfig
from slm.runtime.address import local_folder

Fit = Callable[[ModelConfig, Weights], Weights]
"""Weights under the names of a config's decoder; raises `ValueError` for those of another."""

_CHECKPOINTS = ("last.ckpt", "previous.ckpt")  # of a run directory, the newest first


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint lies; the fields are those of `Provenance`."""

    checkpoint: str
    kind: str
    folder: Path
    revision: str | None = None
    run: Path | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a checkpoint is made of, none of its weights read yet."""

    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()


def find(path_or_repo: str | Path, revision: str | None) -> Place:
    """The place that is meant; a hub repository is fetched. Raises `ValueError` for what is neither."""
    given = str(path_or_repo)
    folder = local_folder(given, revision)
    if folder is not None:
        return _local(given, folder)
    from slm.checkpoints.hub import fetch

    folder, commit = fetch(given, revision)
    return Place(checkpoint=given, kind=_kind(folder), folder=folder, revision=commit)


def _local(given: str, path: Path) -> Place:
    if _is_run(path):
        exported = path / "model"
        folder = exported if (exported / "config.json").exists() else path / "checkpoints"
        return Place(checkpoint=given, kind="run", folder=folder, run=path, result=_result(path))
    if not (path / "config.json").exists():
        holds = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"checkpoint={given} holds neither config.json (a model) nor config.yaml (a run of ours), but {holds}"
        )
    run = path.parent if path.name == "model" and _is_run(path.parent) else None
    return Place(checkpoint=given, kind=_kind(path), folder=path, run=run, result=_result(run) if run else {})


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").exists() and not (path / "config.json").exists()


def _kind(folder: Path) -> str:
    return "export" if "slm" in read_json(folder / "config.json") else "hf"


def _result(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / "result.json").read_text()))
    except (OSError, ValueError, TypeError):  # not written yet, or not whole
        return {}


def parts(place: Place, fitted: Fit) -> Parts:
    """Open what lies at a place. Raises `ValueError` for anything in it that cannot be used."""
    if place.run is not None and place.folder == place.run / "checkpoints":
        return _unfinished(place, place.run, fitted)
    config = read_config(place.folder / "config.json")
    name = place.checkpoint if place.revision else None
    tokenizer = load_tokenizer(place.folder, name=name, asked_by="checkpoint")
    weights, notes = _weights(place, lambda weights: fitted(config, weights))
    status = _status_note(place) if place.kind == "run" else ()
    return Parts(config=config, weights=weights, tokenizer=tokenizer, notes=(*status, *notes))


def _weights(place: Place, fitted: Callable[[Weights], Weights]) -> tuple[Weights, tuple[str, ...]]:
    """The weights of a place; those of a hub repository in another format too, which is only fetched if it must be."""
    try:
        return open_weights(place.folder, fitted)
    except ValueError:
        if place.revision is None:
            raise
        from slm.checkpoints.hub import fetch_other_weights

        if not fetch_other_weights(place.checkpoint, place.revision):
            raise
    return open_weights(place.folder, fitted)


def _status_note(place: Place) -> tuple[str, ...]:
    status = place.result.get("status")
    return () if status == "completed" else (f"The run has an export, but its result.json says {status}.",)


def _unfinished(place: Place, run: Path, fitted: Fit) -> Parts:
    """A run without export: the weights of its newest whole checkpoint, with the tokenizer that its cache holds."""
    status = place.result.get("status", "not finished")
    command = f"python train.py -cp {run.resolve()} -cn config output_dir={run.resolve()}"
    file = next((place.folder / name for name in _CHECKPOINTS if _is_whole(place.folder / name)), None)
    if file is None:
        raise ValueError(f"checkpoint={place.checkpoint} is a run ({status}) without a checkpoint yet: {command}")
    settings = _settings(run / "config.yaml")
    tokenizer = _cached_tokenizer(settings, read_json(run / "corpus.json"))
    if tokenizer is None:
        raise ValueError(
            f"checkpoint={place.checkpoint} is a run ({status}) whose tokenizer is no longer in "
            f"cache_dir={settings.get('cache_dir')}: finish it with {command}"
        )
    shape = {key: value for key, value in settings["model"].items() if key != "family"}
    note = f"The run is {status}: these are the weights of {file.name}, its newest checkpoint; to finish it: {command}."
    config = ModelConfig.from_dict(shape)
    weights = fitted(config, open_run_checkpoint(file))
    return Parts(config=config, weights=weights, tokenizer=tokenizer, notes=(note,))


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text())
        if isinstance(settings["model"], dict):
            return settings
    except (yaml.YAMLError, KeyError, TypeError):
        pass
    raise ValueError(f"{file} is not the config of a run: restore it")


def _is_whole(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def _cached_tokenizer(settings: Mapping[str, Any], corpus: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer with the fingerprint that the run wrote down, from the cache folder that it used."""
    for folder in Path(os.path.expanduser(settings.get("cache_dir", ""))).glob("tokens/*/tokenizer"):
        tokenizer = load_tokenizer(folder, asked_by="cache_dir")
        if tokenizer.fingerprint == corpus.get("tokenizer"):
            return tokenizer
    return None
