"""Folders that are built once and then only read.

A folder is built as NAME.partial, synced and renamed, so that a folder without this suffix is always complete. A lock
file lets one process build while the others wait. If a build is killed, the next one continues it (`slm.data.parts`).
`manifest.json` has the size and SHA-256 of every file; a folder that does not match its manifest is built again.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slm.data.parts import RECORDS, seal, sealed_files, sha256
from slm.runtime.files import replace, sync, write_json
from slm.runtime.progress import say

SCHEMA = "slm.data/3"  # part of every key: change it when the layout or the meaning of a cached file changes
MAX_CHECKED_BYTES = 256 << 20  # checksums of smaller folders take well under a second; SLM_VERIFY=1 checks all


def digest(value: Any) -> str:
    """Return a short hex name for a JSON-like value."""
    text = json.dumps([SCHEMA, value], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(folder: Path, build: Callable[[Path], Mapping[str, Any]], *, what: str) -> dict[str, Any]:
    """Return the manifest of `folder`. If no earlier call has built the folder, this call does.

    `build(partial_folder)` writes the files and returns the facts for the manifest. If it raises `ValueError`, the data
    cannot be used and the partial folder is removed. After any other error, Ctrl-C or a kill, the partial folder stays
    for the next call. `what` names the contents of the folder in messages.
    """
    if (manifest := _open(folder)) is not None:
        return manifest
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        acquired = lock.acquire(timeout=0)
    except Timeout:
        say(f"data: waiting for another process that builds {what}")
        acquired = lock.acquire()
    with acquired:
        return _open(folder) or _build(folder, build)  # another process may have built it meanwhile


def _build(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    try:
        facts = dict(build(partial))
    except ValueError:
        shutil.rmtree(partial)
        raise
    sealed = sealed_files(partial)
    paths = [path for path in sorted(partial.rglob("*")) if path.is_file() and path.parent != partial / RECORDS]
    names = [path.relative_to(partial).as_posix() for path in paths]
    files = {name: sealed.get(name) or seal(partial / name) for name in names}  # finished parts have sealed most files
    write_json(partial / "manifest.json", {"schema": SCHEMA, **facts, "files": files})
    sync(partial / "manifest.json")
    shutil.rmtree(folder, ignore_errors=True)  # a folder that exists is damaged
    replace(partial, folder)
    sync(folder.parent)
    shutil.rmtree(folder / RECORDS, ignore_errors=True)
    return facts


def _open(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of an intact folder; None if it is missing or (with a warning) damaged."""
    if not folder.is_dir():
        return None
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        damage = _damage(folder, manifest["files"])
    except (OSError, ValueError, KeyError) as error:
        damage = f"its manifest cannot be read ({error})"
    if damage:
        warnings.warn(f"{folder} is damaged: {damage}; it is built again", stacklevel=3)
        return None
    return manifest


def _damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    total_bytes = sum(file["bytes"] for file in files.values())
    needs_checksums = total_bytes <= MAX_CHECKED_BYTES or os.environ.get("SLM_VERIFY") == "1"
    for name, file in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            return f"{name} does not have its {file['bytes']} bytes"
        if needs_checksums and sha256(path) != file["sha256"]:
            return f"{name} does not have its checksum"
    return None
