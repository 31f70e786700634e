"""Find and open what `checkpoint=...` names: a run of ours, its export, the folder of a released model, or a hub id."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from slm.checkpoints.architecture import UnsupportedModel, read_config, read_json
from slm.checkpoints.foreign import empty_model, foreign_tokenizer, read_foreign
from slm.checkpoints.hub import fetch, fetch_other_weights
from slm.checkpoints.weights import Weights, open_run_checkpoint, open_weights
from slm.data.corpus import fingerprint_with
from slm.data.tokenizer import Tokenizer
from slm.data.vocabulary import load_tokenizer
from slm.model.config import ModelConfig
from slm.model.interface import Shape
from slm.runtime.address import local_folder
from slm.runtime.files import is_intact_zip, read_json_object

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The newest checkpoint of a run directory, and the one before it."""
TO_FINISH = "; to finish it: "
"""In a message, precedes the command that finishes a run. Model cards cut the message here."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a checkpoint is."""

    checkpoint: str
    """The path or hub id that the user gave."""
    kind: str
    """One of "run", "export" (a `model/` folder of ours), "hf", or the format of an export for another engine."""
    folder: Path
    """The folder with config.json and the weights; for a run without an export, its checkpoints."""
    revision: str | None = None
    """Commit of a hub repository; None for local files."""
    run: Path | None = None
    """The run directory, which has config.yaml and result.json; None if the weights are not from a run of ours."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """The contents of the run's result.json; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class AnyProvenance(Location):
    """Where the weights of a checkpoint came from, and what identifies them."""

    config: Shape
    stored_dtype: str
    """The dtype in which most bytes are stored, such as "float16"."""
    fingerprint: str
    """Identifies weights, config and tokenizer. For big files, only size and sampled bytes are hashed."""
    notes: tuple[str, ...]
    """Full sentences that a reader of results must know."""


@dataclass(frozen=True, kw_only=True)
class Provenance(AnyProvenance):
    """The same of a checkpoint that our decoder can hold."""

    config: ModelConfig


class Parts(NamedTuple):
    """What a checkpoint consists of, before any weights are read."""

    config: Shape
    weights: Weights
    tokenizer: Tokenizer
    notes: tuple[str, ...]


def find_location(path_or_repo: str | Path, revision: str | None) -> Location:
    """Find the checkpoint, and download it from the hub if it is not local. Raises `ValueError` if there is none."""
    given = str(path_or_repo)
    path = local_folder(given, revision)
    if path is None:
        folder, commit = fetch(given, revision)
        return Location(checkpoint=given, kind=_kind(folder), folder=folder, revision=commit)
    run: Path | None = path
    if _is_run(path):
        kind = "run"
        exported = path / "model"
        folder = exported if (exported / "config.json").exists() else path / "checkpoints"
    elif (path / "config.json").exists():
        run = path.parent if path.name == "model" and _is_run(path.parent) else None
        folder, kind = path, _kind(path)
    else:
        content = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"checkpoint={given} must have config.json (a model) or config.yaml (a run of train.py), but has {content}"
        )
    result = read_json_object(run / "result.json") if run else {}
    return Location(checkpoint=given, kind=kind, folder=folder, run=run, result=result)


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").exists() and not (path / "config.json").exists()


def _kind(folder: Path) -> str:
    return "export" if "slm" in read_json(folder / "config.json") else "hf"


def open_parts(location: Location, *, may_be_foreign: bool = False) -> Parts:
    """Open the parts of a checkpoint. Raises `ValueError` if one of them cannot be used.

    A model that our decoder cannot hold is opened for transformers if it may be foreign, and else refused.
    """
    if location.run is not None and location.folder == location.run / "checkpoints":
        return _open_unfinished_run(location, location.run)
    name = location.checkpoint if location.revision else None
    try:
        config = read_config(location.folder / "config.json")
    except UnsupportedModel as error:
        if not may_be_foreign:
            raise ValueError(f"{error}; only evaluate.py takes a model that our decoder cannot hold") from None
        return _open_foreign(location, name, error)
    tokenizer = load_tokenizer(location.folder, name=name, asked_by="checkpoint")
    weights, notes = _open_weights(location, config)
    status = location.result.get("status")
    if location.kind == "run" and status != "completed":
        notes = (f"The run has an export, but its status in result.json is {status}.", *notes)
    return Parts(config, weights, tokenizer, notes)


def _open_foreign(location: Location, name: str | None, reason: UnsupportedModel) -> Parts:
    shape, notes = read_foreign(location.folder, reason)
    tokenizer = foreign_tokenizer(location.folder, name)
    weights, weight_notes = _open_weights(location, None)
    empty_model(location.folder, {name: tensor.numel() for name, tensor in weights.tensors.items()})
    # Keys of the config that no field of the shape has change the function too, so the file counts for the fingerprint.
    weights = Weights(weights.tensors, [location.folder / "config.json", *weights.files])
    return Parts(shape, weights, tokenizer, (*notes, *weight_notes))


def _open_weights(location: Location, config: ModelConfig | None) -> tuple[Weights, tuple[str, ...]]:
    try:
        return open_weights(location.folder, config)
    except ValueError:
        # Weights in another format are downloaded only if the first format cannot be used.
        if location.revision is None or not fetch_other_weights(location.checkpoint, location.revision):
            raise
        return open_weights(location.folder, config)


def _open_unfinished_run(location: Location, run: Path) -> Parts:
    """Open the newest intact checkpoint of a run without export, and the tokenizer in the run's cache."""
    status = location.result.get("status", "not finished")
    subject = f"checkpoint={location.checkpoint} is a run ({status})"
    command = f"python train.py -cp {run.resolve()} -cn config output_dir={run.resolve()}"
    candidates = (location.folder / LAST, location.folder / PREVIOUS)
    file = next(filter(is_intact_zip, candidates), None)
    if file is None:
        raise ValueError(f"{subject} without an intact checkpoint{TO_FINISH}{command}")
    settings = _settings(run / "config.yaml")
    if (settings.get("parametrization") or {}).get("name", "standard") != "standard":
        raise ValueError(
            f"{subject} with parametrization={settings['parametrization']['name']}, whose multipliers are stored only "
            f"when it ends{TO_FINISH}{command}"
        )
    tokenizer = _cached_tokenizer(settings, read_json(run / "corpus.json"))
    if tokenizer is None:
        raise ValueError(
            f"{subject} whose tokenizer is no longer in cache_dir={settings.get('cache_dir')}: "
            f"finish the run with {command}"
        )
    config = ModelConfig.from_dict({key: value for key, value in settings["model"].items() if key != "family"})
    note = f"The run is {status}: these are the weights of {file.name}, its newest checkpoint{TO_FINISH}{command}."
    return Parts(config, open_run_checkpoint(file, config), tokenizer, (note,))


def _settings(file: Path) -> dict[str, Any]:
    with suppress(yaml.YAMLError, KeyError, TypeError):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(settings["model"], dict):
            return settings
    raise ValueError(f"{file} is not the config of a run: restore it")


def _cached_tokenizer(settings: Mapping[str, Any], corpus: Mapping[str, Any]) -> Tokenizer | None:
    """Return the tokenizer in the run's cache folder with the fingerprint in `corpus`; None if it is not there."""
    for folder in Path(os.path.expanduser(settings.get("cache_dir", ""))).glob("tokens/*/tokenizer"):
        tokenizer = load_tokenizer(folder, asked_by="cache_dir")
        if tokenizer.fingerprint != corpus.get("tokenizer"):
            continue
        documents = corpus.get("documents")  # only a run on conversations has it
        if documents is None or fingerprint_with(documents, tokenizer.chat_template) == corpus.get("data"):
            return tokenizer
    return None
