"""Files written whole: under a temporary name first, then renamed, so that a kill never leaves half of one."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace the file at `path`, or make it and its folder; text is written as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write one file of a shared cache at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Write plain values as JSON with a line break at its end; numbers that are not finite become null."""
    write_whole(path, json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n")


def is_intact_zip(path: Path) -> bool:
    """Whether every byte of a zip archive, such as a checkpoint of torch, agrees with its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
