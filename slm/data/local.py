"""Source `local`: text files of one's own; .txt, .md, .jsonl, .jsonl.gz and .parquet, mixed at will."""

import glob
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slm.data.sources import Document

_BLOCK = 4 << 20  # bytes read at once: a file may be larger than memory
_MIN_DOCUMENT_BYTES = 256  # what max_document_bytes may be at least: below, most of a stream is borders


def key(data: Mapping[str, Any]) -> Any:
    """Paths, sizes and times of the files, and the options; raises ValueError for paths that match no usable file."""
    limit = data["max_document_bytes"]
    if limit is not None and limit < _MIN_DOCUMENT_BYTES:
        raise ValueError(
            f"data.max_document_bytes={limit} wants to be at least {_MIN_DOCUMENT_BYTES}, or null for no limit"
        )
    return {
        "train": [_identity(path) for path in _files(data["paths"], "data.paths")],
        "val": [_identity(path) for path in _validation_files(data)],
        "text_column": data["text_column"],
        "max_document_bytes": limit,
    }


def size(data: Mapping[str, Any]) -> int:
    """Bytes of the files as they are on disk."""
    files = _files(data["paths"], "data.paths") + _validation_files(data)
    return sum(path.stat().st_size for path in files)


def documents(data: Mapping[str, Any]) -> Iterator[Document]:
    """Files by name, documents as they stand in them; those of `data.val_paths` are the validation split."""
    validation = _validation_files(data)
    for path in _files(data["paths"], "data.paths"):
        yield from (Document(text, "train" if validation else None) for text in _reader(path)(path, data))
    for path in validation:
        yield from (Document(text, "val") for text in _reader(path)(path, data))


def files_to_evaluate(data: Mapping[str, Any]) -> list[Path]:
    """`data.val_paths` where given, else `data.paths`; a file of any other kind than rows is plain text."""
    name = "val_paths" if data["val_paths"] else "paths"
    return _files(data[name], f"data.{name}", plain=True)


def holds_rows(path: Path) -> bool:
    """Whether a file holds a document a row, and not one text."""
    return _reader(path) is not _text_file


def evaluation_texts(files: Iterable[Path], data: Mapping[str, Any]) -> Iterator[str]:
    """Plain files byte for byte, one text each; rows whole."""
    for path in files:
        if holds_rows(path):
            yield from _reader(path)(path, {**data, "max_document_bytes": None})
        else:
            yield _decoded(path.read_bytes(), path)


def pieces(blocks: Iterable[bytes], limit: int | None) -> Iterator[bytes]:
    """The text of all blocks in pieces of at most `limit` bytes that end at a paragraph, else a line, else a word."""
    rest = b""
    for block in blocks:
        text, start = rest + block, 0
        while limit is not None and len(text) - start > limit:
            end = _end(text, start, limit)
            yield text[start:end]
            start = end
        rest = text[start:]
    yield rest


def _end(text: bytes, start: int, limit: int) -> int:
    for mark in (b"\n\n", b"\n", b" "):
        if (found := text.rfind(mark, start + limit // 2, start + limit)) > 0:
            return found + len(mark)
    end = start + limit
    while text[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end -= 1
    return end


def _files(patterns: str | list[str] | None, name: str, *, plain: bool = False) -> list[Path]:
    """Every file that the globs match, sorted; each pattern must match. `plain` takes files of unknown kinds too."""
    if not patterns or patterns == "???":
        raise ValueError(f"{name} is not set; give a file, a glob such as 'text/**/*.txt', or a list of them")
    found: set[Path] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        paths = map(Path, glob.glob(str(Path(pattern).expanduser()), recursive=True))
        files = {path for path in paths if path.is_file()}
        if not files:
            raise ValueError(f"{name}={pattern!r} matches no file in {Path.cwd()}; give a file or a glob that does")
        found |= files
    for path in found:
        if _suffix(path) is None and not plain:
            raise ValueError(f"{name}: {path} is of no known kind; wants {', '.join(_READERS)}")
    return sorted(found)


def _validation_files(data: Mapping[str, Any]) -> list[Path]:
    return _files(data["val_paths"], "data.val_paths") if data["val_paths"] else []


def _identity(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path.resolve()), facts.st_size, facts.st_mtime_ns


def _text_file(path: Path, data: Mapping[str, Any]) -> Iterator[str]:
    done = 0
    with path.open("rb") as file:
        for piece in pieces(iter(lambda: file.read(_BLOCK), b""), data["max_document_bytes"]):
            yield _decoded(piece, path, done).removeprefix("\ufeff").replace("\r\n", "\n")
            done += len(piece)


def _decoded(piece: bytes, path: Path, offset: int = 0) -> str:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.paths: {path} is not UTF-8, which it wants to be "
            f"(byte 0x{piece[error.start]:02x} at offset {offset + error.start}); convert it, as with iconv"
        ) from None


def _json_lines(path: Path, data: Mapping[str, Any]) -> Iterator[str]:
    column = data["text_column"]
    with (gzip.open if path.name.endswith(".gz") else open)(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise ValueError(f"data.paths: {path} line {number} is not JSON; wants one object a line") from None
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                has = f"has {', '.join(row) or 'no column'}" if isinstance(row, dict) else "is no object"
                raise ValueError(f"data.text_column={column!r} names no text in {path} line {number}, which {has}")
            yield from _cut(row[column], data)


def _parquet(path: Path, data: Mapping[str, Any]) -> Iterator[str]:
    from pyarrow import parquet

    column = data["text_column"]
    with parquet.ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            raise ValueError(
                f"data.text_column={column!r} is not in {path}, which has {', '.join(file.schema_arrow.names)}"
            )
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for text in batch.column(0).to_pylist():
                yield from _cut(text or "", data)


def _cut(text: str, data: Mapping[str, Any]) -> Iterator[str]:
    # A lone surrogate can be written in JSON and in no UTF-8 text.
    return (piece.decode() for piece in pieces([text.encode(errors="replace")], data["max_document_bytes"]))


_READERS: dict[str, Callable[[Path, Mapping[str, Any]], Iterator[str]]] = {
    ".txt": _text_file,
    ".md": _text_file,
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".parquet": _parquet,
}


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in _READERS if path.name.endswith(suffix)), None)


def _reader(path: Path) -> Callable[[Path, Mapping[str, Any]], Iterator[str]]:
    return _READERS[_suffix(path) or ".txt"]
