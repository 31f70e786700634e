"""Source `local`: files of one's own, of the kinds in `readers.SUFFIXES`, mixed at will."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm.data.paths import Files, text_files
from slm.data.readers import read_texts
from slm.data.sources import Document

_MIN_DOCUMENT_BYTES = 256  # what max_document_bytes may be at least: below, most of a stream is borders


def key(data: Mapping[str, Any]) -> Any:
    """Paths, sizes and times of the files, and the options; raises ValueError for paths that match no usable file."""
    limit = data["max_document_bytes"]
    if limit is not None and limit < _MIN_DOCUMENT_BYTES:
        raise ValueError(
            f"data.max_document_bytes={limit} wants to be at least {_MIN_DOCUMENT_BYTES}, or null for no limit"
        )
    return {
        "train": [_identity(path) for path in _files(data, "paths").paths],
        "val": [_identity(path) for path in _files(data, "val_paths").paths],
        "text_column": data["text_column"],
        "max_document_bytes": limit,
    }


def size(data: Mapping[str, Any]) -> int:
    """Bytes of the files as they are on disk."""
    return sum(path.stat().st_size for name in ("paths", "val_paths") for path in _files(data, name).paths)


def notes(data: Mapping[str, Any]) -> list[str]:
    """How many files are read, where that is not plain from the options."""
    return [note for name in ("paths", "val_paths") if (note := _files(data, name).note)]


def documents(data: Mapping[str, Any]) -> Iterator[Document]:
    """Files by name, documents as they stand in them; those of `data.val_paths`, first, are the validation split."""
    for text in _texts(data, "val_paths", data["max_document_bytes"]):
        yield Document(text, "val")
    split = "train" if data["val_paths"] else None
    for text in _texts(data, "paths", data["max_document_bytes"]):
        yield Document(text, split)


def files_to_evaluate(data: Mapping[str, Any]) -> Files:
    """`data.val_paths` where given, else `data.paths`."""
    return _files(data, _evaluated(data))


def texts_to_evaluate(data: Mapping[str, Any]) -> Iterator[str]:
    """The documents of `files_to_evaluate`, whole."""
    return _texts(data, _evaluated(data), None)


def _evaluated(data: Mapping[str, Any]) -> str:
    return "val_paths" if data["val_paths"] else "paths"


def _texts(data: Mapping[str, Any], name: str, limit: int | None) -> Iterator[str]:
    for path in _files(data, name).paths:
        yield from read_texts(path, key=f"data.{name}", column=data["text_column"], limit=limit)


def _files(data: Mapping[str, Any], name: str) -> Files:
    if name == "val_paths" and not data[name]:
        return Files([], "")
    return text_files(data[name], f"data.{name}")


def _identity(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path.resolve()), facts.st_size, facts.st_mtime_ns
