"""Open an export for another engine: `model.pte` or `model.gguf` with the config.json and the tokenizer beside it."""

from pathlib import Path
from typing import Any

from slm.checkpoints.architecture import read_config, read_json
from slm.checkpoints.engine import EngineModel
from slm.checkpoints.executorch import ProgramModel
from slm.checkpoints.gguf import GgufModel
from slm.checkpoints.location import Provenance
from slm.data.parts import sha256 as file_digest
from slm.data.tokenizer import Tokenizer
from slm.data.vocabulary import load_tokenizer
from slm.model.config import ModelConfig
from slm.runtime import machine
from slm.runtime.address import local_folder


def open_engine(file: Path, config: ModelConfig, dtype: str) -> EngineModel:
    """Load the file in its engine. Raises `ValueError` if the engine is missing or cannot load it."""
    before = machine.resident_bytes()
    model = ProgramModel(file, config) if file.suffix == ".pte" else GgufModel(file, config, dtype)
    growth = (machine.resident_bytes() or 0) - (before or 0)
    model.held_bytes = max(growth, model.file_bytes)
    return model


def check_engine(checkpoint: str) -> Provenance:
    """Check an export without loading it. Raises `ValueError` if files are missing, changed or damaged."""
    file = local_folder(checkpoint, None)
    assert file is not None  # it exists, so it is no hub id
    config_file = file.parent / "config.json"
    if not config_file.is_file():
        raise ValueError(f"checkpoint={checkpoint} needs the config.json and the tokenizer of its export beside it")
    record: dict[str, Any] = read_json(config_file).get("engine") or {}
    if record.get("file") != file.name:
        raise ValueError(f"{config_file} does not describe {file.name}: give the folder that evaluate.py exported")
    if file_digest(file) != record.get("sha256"):
        raise ValueError(f"checkpoint={checkpoint} is damaged or from another export: it differs from config.json")
    return Provenance(
        checkpoint=checkpoint,
        kind=record["format"],
        folder=file.parent,
        result=record["result"],
        config=read_config(config_file),
        stored_dtype=record["dtype"],
        fingerprint=record["sha256"][:16],
        notes=tuple(record["notes"]),
    )


def load_engine(checkpoint: str) -> tuple[EngineModel, Tokenizer, Provenance]:
    """Load an export that `evaluate.py export=FOLDER format=...` wrote. Raises `ValueError` as `check_engine` does."""
    provenance = check_engine(checkpoint)
    file = provenance.folder / Path(checkpoint).name
    tokenizer = load_tokenizer(provenance.folder, asked_by="checkpoint")
    return open_engine(file, provenance.config, provenance.stored_dtype), tokenizer, provenance
