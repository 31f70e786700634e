"""Source `local`: the user's files, of the kinds in `readers.SUFFIXES`, mixed at will.

A path that exists is that file or folder; only a path that does not exist is a glob. A folder stands for every file
under it that can be read, hidden ones excepted. A file that is named or matched must be of a known kind and not empty.
"""

import glob
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from slm.data.documents import Document
from slm.data.readers import SUFFIXES, read_texts, suffix_of

_MIN_DOCUMENT_BYTES = 256  # least max_document_bytes: below, most of a stream is borders between documents


class Files(NamedTuple):
    """Files sorted by name, each once, and a sentence that counts them; "" for one file that was named."""

    paths: list[Path]
    note: str


def key(data: Mapping[str, Any]) -> Any:
    """Paths, sizes and times of the files, and the options; raises ValueError for paths that match no usable file."""
    limit = data["max_document_bytes"]
    if limit is not None and limit < _MIN_DOCUMENT_BYTES:
        raise ValueError(
            f"data.max_document_bytes={limit} must be at least {_MIN_DOCUMENT_BYTES}, or null for no limit"
        )
    return {
        "train": [_identity(path) for path in _files(data, "paths").paths],
        "val": [_identity(path) for path in _files(data, "val_paths").paths],
        "text_column": data["text_column"],
        "max_document_bytes": limit,
    }


def _identity(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path.resolve()), facts.st_size, facts.st_mtime_ns


def size(data: Mapping[str, Any]) -> int:
    """Bytes of the files as they are on disk."""
    return sum(path.stat().st_size for name in ("paths", "val_paths") for path in _files(data, name).paths)


def notes(data: Mapping[str, Any]) -> list[str]:
    """How many files are read, where that is not plain from the options."""
    return [note for name in ("paths", "val_paths") if (note := _files(data, name).note)]


def documents(data: Mapping[str, Any]) -> Iterator[Document]:
    """Documents in the order of files and rows; those of `data.val_paths` come first and are the validation split."""
    train_split = "train" if data["val_paths"] else None
    for name, split in (("val_paths", "val"), ("paths", train_split)):
        for text in _texts(data, name, data["max_document_bytes"]):
            yield text, split


def files_to_evaluate(data: Mapping[str, Any]) -> Files:
    """`data.val_paths` where given, else `data.paths`."""
    return _files(data, "val_paths" if data["val_paths"] else "paths")


def texts_to_evaluate(data: Mapping[str, Any]) -> Iterator[str]:
    """The documents of `files_to_evaluate`, uncut."""
    return _texts(data, "val_paths" if data["val_paths"] else "paths", None)


def _texts(data: Mapping[str, Any], name: str, limit: int | None) -> Iterator[str]:
    for path in _files(data, name).paths:
        yield from read_texts(path, key=f"data.{name}", column=data["text_column"], limit=limit)


def _files(data: Mapping[str, Any], name: str) -> Files:
    if name == "val_paths" and not data[name]:
        return Files([], "")
    return text_files(data[name], f"data.{name}")


def text_files(given: str | list[str] | None, key: str, *, suffixes: Collection[str] = SUFFIXES) -> Files:
    """The files with these `suffixes` that the paths, folders and globs `given` under the config key `key` stand for.

    Raises ValueError for a path or glob that matches no file, for a folder without a readable file, and for a file of
    another kind or of 0 bytes.
    """
    if not given or given == "???":
        raise ValueError(f"{key} is not set; give a file, a folder, a glob such as 'text/**/*.txt', or a list of them")
    accepted, num_left_out = ", ".join(suffixes), 0
    files: dict[Path, Path] = {}  # resolved -> as named
    for path in [path for pattern in ([given] if isinstance(given, str) else given) for path in _matches(pattern, key)]:
        if path.is_dir():
            present = list(_files_under(path))
            usable = [file for file in present if suffix_of(file) in suffixes and file.stat().st_size]
            if not usable:
                raise ValueError(f"{key}: the folder {path} has no file that can be read; give one with {accepted}")
            num_left_out += len(present) - len(usable)
        elif suffix_of(path) not in suffixes:
            raise ValueError(f"{key}: {path} is of an unknown kind; its name must end in one of {accepted}")
        elif not path.stat().st_size:
            raise ValueError(f"{key}: {path} is empty (0 bytes); write it again, or leave it out")
        else:
            usable = [path]
        for file in usable:
            files.setdefault(file.resolve(), file)
    note = f"{key}: {len(files):,} file{'s' * (len(files) > 1)}" if len(files) > 1 or num_left_out else ""
    if num_left_out:
        note += f"; {num_left_out:,} more in folders left out, which are empty or end in none of {accepted}"
    return Files(sorted(files.values()), note)


def _matches(pattern: str, key: str) -> list[Path]:
    """The file or folder of this name, else the files and folders that the glob matches."""
    expanded = os.path.expanduser(pattern)  # Path.expanduser raises for "~draft.txt"
    for name in (pattern, expanded):
        if name.strip() and os.path.exists(name):
            return [Path(name)]
    matches = [path for path in map(Path, glob.glob(expanded, recursive=True)) if path.is_file() or path.is_dir()]
    if not matches:
        raise ValueError(f"{key}={pattern!r} matches no file in {Path.cwd()}; give an existing file, folder or glob")
    return matches


def _files_under(folder: Path) -> Iterator[Path]:
    """Files under a folder and under the folders that it links to, hidden ones excepted."""
    seen = set[str]()

    def stop(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (path for name in names if not name.startswith(".") and (path := Path(parent, name)).is_file())
        seen.add(real)
