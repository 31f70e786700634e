"""Decide whether `checkpoint=...` is a local folder or a repository of the hub. Imports no torch, to fail quickly."""

from __future__ import annotations

import os
import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def split_revision(given: str) -> tuple[str, str | None]:
    """Split ID@REVISION, a repository of the hub with its branch, tag or commit; a local path has no revision."""
    name, at_sign, revision = given.rpartition("@")
    is_local = Path(os.path.expanduser(given)).exists()
    return (name, revision) if at_sign and not is_local else (given, None)


def local_folder(given: str, revision: str | None) -> Path | None:
    """Return the local folder, or None for a hub id. Raises `ValueError` for anything else."""
    path = Path(os.path.expanduser(given))
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision} needs a hub id, and checkpoint={given} is a local folder")
        return path
    if path.exists():
        raise ValueError(f"checkpoint={given} is a file: give the run directory, or the folder with config.json")
    if not _HUB_ID.fullmatch(given):
        raise ValueError(
            f"checkpoint={given!r} does not exist: give a run directory, a folder with config.json and weights, or a "
            "hub id such as HuggingFaceTB/SmolLM2-135M"
        )
    return None
