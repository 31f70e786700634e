"""Find and open what `checkpoint=...` names: a run of ours, its export, a folder of a release, or a hub repository."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from slm.checkpoints.architecture import read_config, read_json
from slm.checkpoints.hub import fetch, fetch_other_weights
from slm.checkpoints.weights import Weights, open_run_checkpoint, open_weights
from slm.data import Tokenizer, load_tokenizer
from slm.model.config import ModelConfig
from slm.runtime.address import local_folder
from slm.runtime.files import is_intact_zip, read_json_object

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The newest checkpoint of a run directory, and the one before it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint is."""

    checkpoint: str
    """As the user gave it."""
    kind: str
    """"run", "export" (a `model/` folder of ours) or "hf"."""
    folder: Path
    """The folder with config.json and the weights; for a run without an export, its checkpoints."""
    revision: str | None = None
    """Commit of a hub repository; None for local files."""
    run: Path | None = None
    """The run directory, which has config.yaml and result.json; None if the weights are not from a run of ours."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """The contents of that run's result.json; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class Provenance(Place):
    """Where the weights of a checkpoint came from, and what identifies them."""

    config: ModelConfig
    """Shape of the decoder."""
    stored_dtype: str
    """The dtype in the files, such as "float16"; if there are several, that of most bytes."""
    fingerprint: str
    """Identifies weights, config and tokenizer. Of big files, it depends on the size and on samples of the bytes."""
    notes: tuple[str, ...]
    """What a reader of results must know, in full sentences."""


class Parts(NamedTuple):
    """What a checkpoint consists of, before any weights are read."""

    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer
    notes: tuple[str, ...]


def find_place(path_or_repo: str | Path, revision: str | None) -> Place:
    """Where the checkpoint is; a hub repository is downloaded first. Raises `ValueError` if there is none."""
    given = str(path_or_repo)
    path = local_folder(given, revision)
    if path is None:
        folder, commit = fetch(given, revision)
        return Place(checkpoint=given, kind=_kind(folder), folder=folder, revision=commit)
    run: Path | None = path
    if _is_run(path):
        exported, kind = path / "model", "run"
        folder = exported if (exported / "config.json").exists() else path / "checkpoints"
    elif (path / "config.json").exists():
        run = path.parent if path.name == "model" and _is_run(path.parent) else None
        folder, kind = path, _kind(path)
    else:
        content = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"checkpoint={given} must have config.json (a model) or config.yaml (a run of ours), but has {content}"
        )
    result = read_json_object(run / "result.json") if run else {}
    return Place(checkpoint=given, kind=kind, folder=folder, run=run, result=result)


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").exists() and not (path / "config.json").exists()


def _kind(folder: Path) -> str:
    return "export" if "slm" in read_json(folder / "config.json") else "hf"


def open_parts(place: Place) -> Parts:
    """Open the parts of a checkpoint. Raises `ValueError` if one of them cannot be used."""
    if place.run is not None and place.folder == place.run / "checkpoints":
        return _open_unfinished_run(place, place.run)
    config = read_config(place.folder / "config.json")
    name = place.checkpoint if place.revision else None
    tokenizer = load_tokenizer(place.folder, name=name, asked_by="checkpoint")
    try:
        weights, notes = open_weights(place.folder, config)
    except ValueError:
        # Another format of a hub repository is only fetched if the first cannot be used.
        if place.revision is None or not fetch_other_weights(place.checkpoint, place.revision):
            raise
        weights, notes = open_weights(place.folder, config)
    status = place.result.get("status")
    if place.kind == "run" and status != "completed":
        notes = (f"The run has an export, but its result.json says {status}.", *notes)
    return Parts(config, weights, tokenizer, notes)


def _open_unfinished_run(place: Place, run: Path) -> Parts:
    """A run without export: the weights of its newest intact checkpoint, and the tokenizer in its cache."""
    status = place.result.get("status", "not finished")
    command = f"python train.py -cp {run.resolve()} -cn config output_dir={run.resolve()}"
    file = next((place.folder / name for name in (LAST, PREVIOUS) if is_intact_zip(place.folder / name)), None)
    if file is None:
        raise ValueError(
            f"checkpoint={place.checkpoint} is a run ({status}) without an intact checkpoint; to finish it: {command}"
        )
    settings = _settings(run / "config.yaml")
    tokenizer = _cached_tokenizer(settings, read_json(run / "corpus.json"))
    if tokenizer is None:
        raise ValueError(
            f"checkpoint={place.checkpoint} is a run ({status}) whose tokenizer is no longer in "
            f"cache_dir={settings.get('cache_dir')}: finish it with {command}"
        )
    config = ModelConfig.from_dict({key: value for key, value in settings["model"].items() if key != "family"})
    note = f"The run is {status}: these are the weights of {file.name}, its newest checkpoint; to finish it: {command}."
    return Parts(config, open_run_checkpoint(file, config), tokenizer, (note,))


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(settings["model"], dict):
            return settings
    except (yaml.YAMLError, KeyError, TypeError):
        pass
    raise ValueError(f"{file} is not the config of a run: restore it")


def _cached_tokenizer(settings: Mapping[str, Any], corpus: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that the run recorded by its fingerprint, from the cache folder of the run."""
    for folder in Path(os.path.expanduser(settings.get("cache_dir", ""))).glob("tokens/*/tokenizer"):
        tokenizer = load_tokenizer(folder, asked_by="cache_dir")
        if tokenizer.fingerprint == corpus.get("tokenizer"):
            return tokenizer
    return None
