"""Atomic writes: a file gets a temporary name first and is then renamed, so a killed process leaves no partial file."""

from __future__ import annotations

import json
import math
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

LOCK = ".lock"
"""The file in an output directory that a process locks while it writes there."""


REPLACE_SECONDS = 5.0 if os.name == "nt" else 0.0
"""How long `replace` tries. Windows refuses as long as another process, such as a virus scanner, has the file open."""


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder; a file that is at `target` is replaced."""
    deadline = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def sync(path: Path) -> None:
    """Return when a file or folder is on the disk. A folder is left to the system if that is Windows."""
    try:
        # Windows syncs only what is open for writing, and opens no folder.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write the file at `path`, replacing an older one, and make its folder; text is UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One temporary name per process, because two may write the same file of a shared cache at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    replace(partial, path)


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Write plain values as JSON; numbers that are not finite become null."""
    write_atomically(path, json.dumps(_null_nonfinite(value), indent=indent, allow_nan=False) + "\n")


def check_writable(output_dir: Path) -> None:
    """Raise `ValueError` if files cannot be written to a directory. One that does not exist is not left behind."""
    missing = [path for path in (output_dir, *output_dir.parents) if not path.exists()]
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise _not_writable(output_dir, error) from None
    finally:
        with suppress(OSError):
            for path in missing:
                path.rmdir()


def _not_writable(output_dir: Path, error: OSError) -> ValueError:
    return ValueError(f"output_dir={output_dir}: {error.strerror or error}; choose another directory")


@contextmanager
def locked(folder: Path, user: str) -> Iterator[None]:
    """Make an output directory and hold its lock. Raises `ValueError` if another process, a `user`, holds it."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"output_dir={folder} is in use by another {user}: wait for its end, or choose another output_dir"
        ) from None
    except OSError as error:
        raise _not_writable(folder, error) from None
    with lock:
        yield


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing, damaged or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_intact_zip(path: Path) -> bool:
    """Whether all members of a zip archive, such as a torch checkpoint, match their checksums; false if unreadable."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def _null_nonfinite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _null_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_null_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
