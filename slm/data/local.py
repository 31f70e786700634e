"""Source `local`: the user's files, of the kinds in `readers.SUFFIXES`, mixed at will.

A path names an existing file or folder; if there is none, it is a glob. A folder stands for every readable file under
it that is not hidden. A file that is named or matched must be of a known kind and not empty.
"""

import glob
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from slm.data.readers import SUFFIXES, read_texts, suffix_of
from slm.data.sources import Document

_MIN_DOCUMENT_BYTES = 256  # smallest max_document_bytes: a lower limit would separate every few words

_MIN_PART_BYTES, _MAX_PARTS = 16 << 20, 1024


class Files(NamedTuple):
    """Files sorted by name, without duplicates, and a sentence with their number; "" if the options name one file."""

    paths: list[Path]
    note: str


def key(data: Mapping[str, Any]) -> Any:
    """Paths, sizes and times of the files, and the options. Raises ValueError for paths that match no usable file."""
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
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def parts(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of files in order, validation files first, each with `files`, `option` and `split`."""
    files = {name: _files(data, name).paths for name in ("val_paths", "paths")}
    sizes = {path: path.stat().st_size for paths in files.values() for path in paths}
    min_bytes = max(_MIN_PART_BYTES, sum(sizes.values()) // _MAX_PARTS)
    groups: list[dict[str, Any]] = []
    for name, split in (("val_paths", "val"), ("paths", "train" if data["val_paths"] else None)):
        group: list[str] = []
        for path in files[name]:
            group.append(str(path))
            if sum(sizes[Path(p)] for p in group) >= min_bytes or path == files[name][-1]:
                groups.append({**data, "option": name, "split": split, "files": group})
                group = []
    return groups


def size(part: Mapping[str, Any]) -> int:
    """Bytes of the files of a part as they are on disk."""
    return sum(Path(file).stat().st_size for file in part["files"])


def notes(data: Mapping[str, Any]) -> list[str]:
    """Sentences on how many files are read; none for an option that names one file."""
    return [note for name in ("paths", "val_paths") if (note := _files(data, name).note)]


def documents(part: Mapping[str, Any]) -> Iterator[Document]:
    """The documents of one of `parts` in the order of files and rows, with their split."""
    for text in _texts(map(Path, part["files"]), part, part["option"], part["max_document_bytes"]):
        yield text, part["split"]


def files_to_evaluate(data: Mapping[str, Any]) -> Files:
    """The files of `data.val_paths` if it is given, else of `data.paths`."""
    return _files(data, "val_paths" if data["val_paths"] else "paths")


def texts_to_evaluate(data: Mapping[str, Any]) -> Iterator[str]:
    """The documents of `files_to_evaluate`, however long."""
    name = "val_paths" if data["val_paths"] else "paths"
    return _texts(_files(data, name).paths, data, name, None)


def _texts(paths: Iterable[Path], data: Mapping[str, Any], name: str, limit: int | None) -> Iterator[str]:
    for path in paths:
        yield from read_texts(path, key=f"data.{name}", column=data["text_column"], limit=limit)


def _files(data: Mapping[str, Any], name: str) -> Files:
    if name == "val_paths" and not data[name]:
        return Files([], "")
    return text_files(data[name], f"data.{name}")


def text_files(given: str | list[str] | None, key: str, *, suffixes: Collection[str] = SUFFIXES) -> Files:
    """The files with one of `suffixes` that `given` stands for: a path, folder or glob, or a list of them.

    `key` is the config key to name in messages. Raises ValueError for a path or glob that matches no file, for a folder
    without a readable file, and for a file of another kind or of 0 bytes.
    """
    if not given or given == "???":
        raise ValueError(f"{key} is not set; give a file, a folder, a glob such as 'text/**/*.txt', or a list of them")
    accepted, num_skipped = ", ".join(suffixes), 0
    files: dict[Path, Path] = {}  # resolved -> as named
    patterns = [given] if isinstance(given, str) else given
    for path in [path for pattern in patterns for path in _matches(pattern, key)]:
        if path.is_dir():
            present = list(_files_under(path))
            usable = [file for file in present if suffix_of(file) in suffixes and file.stat().st_size]
            if not usable:
                raise ValueError(f"{key}: the folder {path} has no file that can be read; give one with {accepted}")
            num_skipped += len(present) - len(usable)
        elif suffix_of(path) not in suffixes:
            raise ValueError(f"{key}: {path} is of an unknown kind; its name must end in one of {accepted}")
        elif not path.stat().st_size:
            raise ValueError(f"{key}: {path} is empty (0 bytes); write it again, or leave it out")
        else:
            usable = [path]
        for file in usable:
            files.setdefault(file.resolve(), file)
    note = f"{key}: {len(files):,} file{'s' * (len(files) > 1)}" if len(files) > 1 or num_skipped else ""
    if num_skipped:
        note += f"; skipped {num_skipped:,} more in folders, which are empty or do not end in {accepted}"
    return Files(sorted(files.values()), note)


def _matches(pattern: str, key: str) -> list[Path]:
    """The file or folder of this name if it exists, else the files and folders that the glob matches."""
    expanded = os.path.expanduser(pattern)  # Path.expanduser raises for "~draft.txt"
    for name in (pattern, expanded):
        if name.strip() and os.path.exists(name):
            return [Path(name)]
    matches = [path for path in map(Path, glob.glob(expanded, recursive=True)) if path.is_file() or path.is_dir()]
    if not matches:
        raise ValueError(f"{key}={pattern!r} matches no file in {Path.cwd()}; give an existing file, folder or glob")
    return matches


def _files_under(folder: Path) -> Iterator[Path]:
    """Files under a folder and under the folders that it links to, without hidden ones."""
    seen = set[str]()

    def raise_error(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=raise_error):
        real = os.path.realpath(parent)  # entered once, since links may form a cycle
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (path for name in names if not name.startswith(".") and (path := Path(parent, name)).is_file())
        seen.add(real)
