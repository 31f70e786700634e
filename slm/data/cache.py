"""Folders that are built once and then only read.

A folder is built under a temporary name, synced and renamed, so that a name in the cache is always a finished build;
a lock file lets one process build while the others wait; the next build removes what a killed one left behind.
`manifest.json` records size and SHA-256 of every file: a folder that does not match it is rebuilt, never used.
"""

import glob
import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slm.runtime.files import write_json
from slm.runtime.progress import say

SCHEMA = "slm.data/2"  # part of every key: change it when the layout or the meaning of a cached file changes
MAX_CHECKED_BYTES = 256 << 20  # up to here checksums cost well under a second; above, SLM_VERIFY=1 asks for them


def digest(value: Any) -> str:
    """Short hex name of a JSON-like value."""
    text = json.dumps([SCHEMA, value], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(folder: Path, build: Callable[[Path], Mapping[str, Any]], *, what: str) -> dict[str, Any]:
    """The manifest of `folder`, built now by `build(temporary folder)`, which returns facts for it, or before.

    `what` names the thing in messages.
    """
    if (manifest := _open(folder)) is not None:
        return manifest
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        say(f"data: waiting for another process that builds {what}")
        held = lock.acquire()
    with held:
        return _open(folder) or _build(folder, build)


def _build(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    for leftover in folder.parent.glob(f"{glob.escape(folder.name)}.tmp-*"):  # of a killed build: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    # Not by tempfile, whose folders only their owner may read: a cache may be shared.
    temporary = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        facts = dict(build(temporary))
        files = {str(p.relative_to(temporary)): _sealed(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
        manifest = temporary / "manifest.json"
        write_json(manifest, {"schema": SCHEMA, **facts, "files": files})
        _sync(manifest)
        if folder.exists():  # damaged
            folder.rename(temporary.with_name(temporary.name + "-old"))
        temporary.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(temporary.with_name(temporary.name + "-old"), ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def _open(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished and sound folder; None if it must be built, with a warning if it is damaged."""
    if not folder.is_dir():
        return None
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        damage = _damage(folder, manifest["files"])
    except (OSError, ValueError, KeyError) as error:
        damage = f"its manifest cannot be read ({error})"
    if damage:
        warnings.warn(f"{folder} is damaged: {damage}; it is built again", stacklevel=3)
        return None
    return manifest


def _damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    total = sum(file["bytes"] for file in files.values())
    checks_sums = total <= MAX_CHECKED_BYTES or os.environ.get("SLM_VERIFY") == "1"
    for name, file in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            return f"{name} does not have its {file['bytes']} bytes"
        if checks_sums and _sha256(path) != file["sha256"]:
            return f"{name} does not have its checksum"
    return None


def _sealed(path: Path) -> dict[str, Any]:
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
