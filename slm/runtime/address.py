"""Decide whether `checkpoint=...` is a local folder or a repository of the hub. Imports no torch, to fail quickly."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ENGINE_SUFFIXES = (".pte", ".gguf")
"""Endings of model files that other engines run: ExecuTorch and llama.cpp."""


def split_revision(given: str) -> tuple[str, str | None]:
    """Split ID@REVISION, a repository of the hub with its branch, tag or commit; a local path has no revision."""
    name, at_sign, revision = given.rpartition("@")
    is_local = Path(os.path.expanduser(given)).exists()
    return (name, revision) if at_sign and not is_local else (given, None)


def is_engine_file(given: str) -> bool:
    """Whether `checkpoint=...` names an existing model file of another engine."""
    return given.endswith(ENGINE_SUFFIXES) and Path(os.path.expanduser(given)).is_file()


def local_folder(given: str, revision: str | None) -> Path | None:
    """Return the local folder or another engine's file, or None for a hub id. Raises `ValueError` for anything else."""
    path = Path(os.path.expanduser(given))
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision} needs a hub id, and checkpoint={given} is a local folder")
        return path
    if path.exists():
        if is_engine_file(given) and revision is None:
            return path
        raise ValueError(f"checkpoint={given} is a file: give the run directory, or the folder with config.json")
    if given.endswith(ENGINE_SUFFIXES):
        raise ValueError(f"checkpoint={given} does not exist: give a file that evaluate.py export=FOLDER wrote")
    if not _HUB_ID.fullmatch(given):
        raise ValueError(
            f"checkpoint={given!r} does not exist: give a run directory, a folder with config.json and weights, or a "
            "hub id such as HuggingFaceTB/SmolLM2-135M"
        )
    return None


@contextmanager
def named(key: str) -> Iterator[None]:
    """In this context, let errors name the setting `key`, where they would name evaluate.py's `checkpoint`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("checkpoint=", f"{key}=", 1)) from None
