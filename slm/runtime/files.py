"""Write files under a temporary name and rename them, so that a killed process leaves no partial file."""

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

LOCK = ".lock"  # in an output directory; a process locks this file while it writes there
REPLACE_SECONDS = 5.0 if os.name == "nt" else 0.0
"""How long `replace` tries. Windows refuses while another process, such as a virus scanner, has the file open."""


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder; an existing file at `target` is replaced."""
    deadline = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def sync(path: Path) -> None:
    """Write a file or folder from the system's cache to the disk. Does nothing for folders on Windows."""
    try:
        # Windows syncs only files that are open for writing, and cannot open a folder.
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
    """Write the file at `path`, replacing an older file, and make its folder. Text is written as UTF-8.

    Raises an `OSError` with the name of the file, which that of a full disk lacks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One temporary name per process, because two processes may write the same file of a shared cache at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        replace(partial, path)
    except OSError as error:
        with suppress(OSError):  # the file system may have become read-only
            partial.unlink(missing_ok=True)
        error.filename = str(path)
        raise


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Write values as JSON; numbers that are not finite become null."""
    write_atomically(path, json.dumps(_null_nonfinite(value), indent=indent, allow_nan=False) + "\n")


def check_folders(settings: Mapping[str, Any], *keys: str) -> None:
    """Raise `ValueError` if a setting names a folder that cannot be one, because it or one above it is a file.

    Whether files can be written there is for `check_writable`: a cache that is complete may be read-only.
    """
    for key in keys:
        if settings[key]:
            folder = Path(os.path.expanduser(settings[key]))
            try:
                existing = _nearest_existing(folder)
            except OSError as error:  # such as a name that is too long
                raise _not_writable(folder, key, error) from None
            if not existing.is_dir():
                where = "" if existing == folder else f" cannot be made: {existing}"
                raise ValueError(f"{key}={folder}{where} is a file; give the name of a directory")


def check_writable(folder: Path, key: str = "output_dir") -> None:
    """Raise `ValueError`, which names the `key`, if files cannot be written to a folder, or to where it would be made.

    Makes no folder, so that several processes may check at once.
    """
    try:
        TemporaryFile(dir=_nearest_existing(folder)).close()
    except OSError as error:
        raise _not_writable(folder, key, error) from None


def _nearest_existing(path: Path) -> Path:
    """The path itself, or the lowest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _not_writable(folder: Path, key: str, error: OSError) -> ValueError:
    return ValueError(f"{key}={folder}: {error.strerror or error}; choose another directory")


@contextmanager
def locked(folder: Path, user: str) -> Iterator[None]:
    """Make and lock an output directory. If another process holds the lock, a `ValueError` calls it a `user`."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        given = f"output_dir={folder} is in use by another {user}"
        raise ValueError(f"{given}: wait until it ends, or choose another directory") from None
    except OSError as error:
        raise _not_writable(folder, "output_dir", error) from None
    with lock:
        yield


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if the file is missing or damaged, or holds another value."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_intact_zip(path: Path) -> bool:
    """Whether a zip archive, such as a torch checkpoint, can be read and all its members match their checksums."""
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
