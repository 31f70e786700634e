"""Source `local`: the user's files, in any mixture of the types in `readers.SUFFIXES`.

A path that does not exist is taken as a glob. A folder stands for all readable files under it that are not hidden. A
file that a path names or a glob matches must be of a known type and not empty.
"""

import glob
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from slm.data.readers import SUFFIXES, read_texts, suffix_of
from slm.data.sources import Document

_MIN_DOCUMENT_BYTES = 256  # smallest max_document_bytes: a lower limit would cut a text every few words
_MIN_PART_BYTES = 16 << 20
_MAX_PARTS = 1024


class Files(NamedTuple):
    """Files sorted by name, without duplicates, and a note on how many there are ("" for a single file)."""

    paths: list[Path]
    note: str


def key(data: Mapping[str, Any]) -> Any:
    """Return paths, sizes and times of the files, and the options. Raises ValueError for wrong paths or limits."""
    limit = data["max_document_bytes"]
    if limit is not None and limit < _MIN_DOCUMENT_BYTES:
        raise ValueError(f"data.max_document_bytes={limit} must be at least {_MIN_DOCUMENT_BYTES}, or null for none")
    return {**identities(data), "text_column": data["text_column"], "max_document_bytes": limit}


def identities(data: Mapping[str, Any], suffixes: Collection[str] = SUFFIXES) -> dict[str, list[tuple[str, int, int]]]:
    """Return path, size and time of each file for training and validation. Raises ValueError for wrong paths."""
    return {
        split: [_identity(path) for path in _files(data, option, suffixes).paths]
        for split, option in (("train", "paths"), ("val", "val_paths"))
    }


def _identity(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def parts(data: Mapping[str, Any], suffixes: Collection[str] = SUFFIXES) -> list[dict[str, Any]]:
    """Return a copy of the config for each group of `files`, with their `split` and their config key `option`."""
    paths_by_option = {option: _files(data, option, suffixes).paths for option in ("val_paths", "paths")}
    total_bytes = sum(path.stat().st_size for paths in paths_by_option.values() for path in paths)
    min_bytes = max(_MIN_PART_BYTES, total_bytes // _MAX_PARTS)
    groups: list[dict[str, Any]] = []
    split_of_paths = "train" if data["val_paths"] else None
    for option, split in (("val_paths", "val"), ("paths", split_of_paths)):
        files: list[str] = []
        num_bytes = 0
        for path in paths_by_option[option]:
            files.append(str(path))
            num_bytes += path.stat().st_size
            if num_bytes >= min_bytes or path == paths_by_option[option][-1]:
                groups.append({**data, "option": option, "split": split, "files": files})
                files, num_bytes = [], 0
    return groups


def size(part: Mapping[str, Any]) -> int:
    """Return the bytes on disk of the files of a part."""
    return sum(Path(file).stat().st_size for file in part["files"])


def notes(data: Mapping[str, Any], suffixes: Collection[str] = SUFFIXES) -> list[str]:
    """Return, for each option that names several files, a sentence on how many are read."""
    return [note for option in ("paths", "val_paths") if (note := _files(data, option, suffixes).note)]


def documents(part: Mapping[str, Any]) -> Iterator[Document]:
    """Yield the documents of one of `parts` in the order of files and rows, with their split."""
    for text in _texts(map(Path, part["files"]), part, part["option"], part["max_document_bytes"]):
        yield text, part["split"]


def files_to_evaluate(data: Mapping[str, Any]) -> Files:
    """Return the files of `data.val_paths` if it is given, else of `data.paths`."""
    return _files(data, "val_paths" if data["val_paths"] else "paths")


def texts_to_evaluate(data: Mapping[str, Any]) -> Iterator[str]:
    """Return the documents in `files_to_evaluate`, without cutting long ones."""
    option = "val_paths" if data["val_paths"] else "paths"
    return _texts(files_to_evaluate(data).paths, data, option, None)


def _texts(paths: Iterable[Path], data: Mapping[str, Any], option: str, limit: int | None) -> Iterator[str]:
    for path in paths:
        yield from read_texts(path, key=f"data.{option}", column=data["text_column"], limit=limit)


def _files(data: Mapping[str, Any], option: str, suffixes: Collection[str] = SUFFIXES) -> Files:
    if option == "val_paths" and not data[option]:
        return Files([], "")
    return text_files(data[option], f"data.{option}", suffixes=suffixes)


def text_files(given: str | list[str] | None, key: str, *, suffixes: Collection[str] = SUFFIXES) -> Files:
    """Return the files with one of `suffixes` that `given` stands for: a path, folder or glob, or a list of them.

    Messages name the config key `key`. Raises ValueError for a path or glob that matches no file, for a folder without
    a readable file, and for a file of another type or of 0 bytes.
    """
    if not given or given == "???":
        raise ValueError(f"{key} is not set; give a file, a folder, a glob such as 'text/**/*.txt', or a list of them")
    accepted = ", ".join(suffixes)
    num_skipped = 0
    file_by_resolved_path: dict[Path, Path] = {}
    patterns = [given] if isinstance(given, str) else given
    paths = [path for pattern in patterns for path in _matches(pattern, key)]
    for path in paths:
        if path.is_dir():
            found_files = list(_files_under(path))
            usable_files = [file for file in found_files if suffix_of(file) in suffixes and file.stat().st_size]
            if not usable_files:
                raise ValueError(f"{key}: the folder {path} has no file that can be read; give one with {accepted}")
            num_skipped += len(found_files) - len(usable_files)
        elif suffix_of(path) not in suffixes:
            raise ValueError(f"{key}: {path} is of an unknown kind; its name must end in one of {accepted}")
        elif not path.stat().st_size:
            raise ValueError(f"{key}: {path} is empty (0 bytes); write it again, or leave it out")
        else:
            usable_files = [path]
        for file in usable_files:
            file_by_resolved_path.setdefault(file.resolve(), file)
    num_files = len(file_by_resolved_path)
    note = ""
    if num_files > 1 or num_skipped:
        note = f"{key}: {num_files:,} {'file' if num_files == 1 else 'files'}"
    if num_skipped:
        note += f"; skipped {num_skipped:,} more in folders (empty, or not ending in {accepted})"
    return Files(sorted(file_by_resolved_path.values()), note)


def _matches(pattern: str, key: str) -> list[Path]:
    """Return the file or folder with the name `pattern` if it exists, else those that `pattern` matches as a glob."""
    expanded = os.path.expanduser(pattern)  # Path.expanduser raises for "~draft.txt"
    for name in (pattern, expanded):
        if name.strip() and os.path.exists(name):
            return [Path(name)]
    matches = [path for path in map(Path, glob.glob(expanded, recursive=True)) if path.is_file() or path.is_dir()]
    if not matches:
        raise ValueError(f"{key}={pattern!r} matches no file in {Path.cwd()}; give an existing file, folder or glob")
    return matches


def _files_under(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder and under folders that it links to, except hidden ones."""
    visited = set[str]()

    def raise_error(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=raise_error):
        real_parent = os.path.realpath(parent)
        if real_parent in visited:  # links may form a cycle
            folders.clear()
            continue
        visited.add(real_parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for name in names if not name.startswith(".") and (path := Path(parent, name)).is_file())
