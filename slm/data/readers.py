"""Readers of text files: the one registry of kinds, for training, evaluation and task files.

The ending of a file's name, in upper or lower case, says its kind. Whatever the kind, text is UTF-8, a byte order mark
at its start is dropped, lines end in \\n, and a row whose text is null or missing is "" (the caller skips and counts
it). A file that cannot be read is one ValueError that names the file and says what to do.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK_CHARACTERS = 4 << 20  # read at once: a file may be larger than memory
_BATCH_ROWS = 1024  # of a Parquet file, read at once
_AGAIN = "write or download it again, or leave it out"
_FIRST_BYTES = {b"\x1f\x8b": ".gz", b"PAR1": ".parquet"}

Rows = Iterator[tuple[str, Any]]
"""(place, value) of each row of a file, such as ("line 3", {"text": "a"})."""


class _UnusableError(ValueError):
    """The end of a sentence that begins with a file's name: what is wrong and what to do."""


def read_texts(path: Path, *, key: str, column: str, limit: int | None) -> Iterator[str]:
    """The documents of a file in order, `column` of each row; those longer than `limit` bytes are cut by `pieces`.

    Raises ValueError, beginning with the config key `key`, if the file cannot be read.
    """
    reader = _ROW_READERS.get(suffix_of(path) or "")
    with _one_sentence(path, key):
        for blocks in _texts_in_rows(reader(path, column), column) if reader else [_decoded(path)]:
            encoded = (block.encode(errors="replace") for block in clean(blocks))  # JSON may hold half a surrogate pair
            yield from (piece.decode() for piece in pieces(encoded, limit))


def read_rows(path: Path, *, key: str) -> Rows:
    """The rows of a file whose suffix is in `ROW_SUFFIXES`; raises ValueError as `read_texts`."""
    with _one_sentence(path, key):
        yield from _ROW_READERS[suffix_of(path) or ""](path, None)


def suffix_of(path: Path) -> str | None:
    """The suffix of `SUFFIXES` that a name ends in; None for a file of unknown kind."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def text_of(value: Any, column: str, place: str) -> str:
    """The text of a row, "" for null; raises ValueError, which begins with `place`, for other values."""
    if isinstance(value, bytes):  # as some writers of Parquet store text
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _UnusableError(f"{place} is not UTF-8 in {column!r}; convert it, or set data.text_column") from None
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        raise _UnusableError(
            f"{place} has a value of type {kind} in {column!r}, which must be text; set data.text_column"
        )
    return value or ""


def clean(blocks: Iterable[str]) -> Iterator[str]:
    """A text without a byte order mark at its start, and with \\n for Windows line ends."""
    carried, is_start = "", True
    for block in chain(blocks, [None]):
        text = carried + (block or "")
        if is_start and text:
            text, is_start = text.removeprefix("\ufeff"), False
        carried = "\r" if block is not None and text.endswith("\r") else ""  # the next block may begin with \n
        yield text[: len(text) - len(carried)].replace("\r\n", "\n")


def pieces(blocks: Iterable[bytes], limit: int | None) -> Iterator[bytes]:
    """The text of all blocks in pieces of at most `limit` bytes that end at a paragraph, else a line, else a word."""
    if limit is None:
        yield b"".join(blocks)
        return
    rest = b""
    for block in blocks:
        text, start = rest + block, 0
        while len(text) - start > limit:
            end = _end_of_piece(text, start, limit)
            yield text[start:end]
            start = end
        rest = text[start:]
    yield rest


def _end_of_piece(text: bytes, start: int, limit: int) -> int:
    for mark in (b"\n\n", b"\n", b" "):
        if (position := text.rfind(mark, start + limit // 2, start + limit)) > 0:
            return position + len(mark)
    end = start + limit
    while text[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end -= 1
    return end


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _one_sentence(path: Path, key: str) -> Iterator[None]:
    """Turn whatever a reader or its library raises into one sentence with the file's name in it."""
    try:
        yield
    except (_UnusableError, OSError, EOFError, zlib.error, RecursionError, MemoryError) as error:
        raise ValueError(f"{key}: {path} {_problem(path, error)}") from None


def _problem(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:  # the file is gone or may not be read
        return f"cannot be read: {error.strerror}"
    name = path.name.lower()
    with path.open("rb") as file:
        start = file.read(4)
    for first_bytes, suffix in _FIRST_BYTES.items():
        if start.startswith(first_bytes) != name.endswith(suffix):
            begins = "begins" if start.startswith(first_bytes) else "does not begin"
            return f"{begins} like a {suffix} file; rename it to what it is, or leave it out"
    if name.endswith(".gz") and (damage := _gzip_damage(path)):
        return f"holds damaged gzip data ({damage}); {_AGAIN}"
    if isinstance(error, _UnusableError):
        return str(error)
    return f"cannot be read ({type(error).__name__}: {first_line(error)}); {_AGAIN}"


def _gzip_damage(path: Path) -> str | None:
    """Why a gzip file cannot be unpacked: what was unpacked before the damage shows may be nonsense."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return "it is cut off" if isinstance(error, EOFError) else str(error)
    return None


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _decoded(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            yield from iter(lambda: text.read(_BLOCK_CHARACTERS), "")
        except UnicodeDecodeError as error:
            byte, offset = error.object[error.start], file.tell() - len(error.object) + error.start
            raise _UnusableError(
                f"is not UTF-8 (byte 0x{byte:02x} at offset {offset}); convert it, as with iconv"
            ) from None


def _json_lines(path: Path, column: str | None) -> Rows:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                yield (
                    f"line {number}",
                    json.loads(line.decode(), strict=False),
                )  # not strict: a text may hold any character
            except UnicodeDecodeError:
                raise _UnusableError(f"line {number} is not UTF-8; convert the file, as with iconv") from None
            except ValueError:
                raise _UnusableError(f"line {number} is not JSON; give one object per line") from None


def _parquet(path: Path, column: str | None) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if column is not None and column not in file.schema_arrow.names:
                raise _without_column(column, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[column] if column else None):
                for row in batch.to_pylist() if column is None else batch.column(0).to_pylist():
                    number += 1
                    yield f"row {number}", row if column is None else {column: row}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _UnusableError(f"cannot be read as Parquet ({first_line(error)}); {_AGAIN}") from None


def _texts_in_rows(rows: Rows, column: str) -> Iterator[list[str]]:
    """The text of each row, in one block; a file in which no row has the column is refused."""
    has_column, first_row = False, None
    for place, row in rows:
        if row is not None and not isinstance(row, dict):
            raise _UnusableError(f"{place} is not an object; give one per line, with the text in {column!r}")
        row = row or {}
        first_row, has_column = first_row or row, has_column or column in row
        yield [text_of(row.get(column), column, place)]
    if first_row is not None and not has_column:
        raise _without_column(column, first_row)


def _without_column(column: str, columns: Iterable[str]) -> _UnusableError:
    return _UnusableError(f"has no column {column!r}, only {', '.join(columns) or 'empty rows'}; set data.text_column")


_ROW_READERS = {
    **dict.fromkeys((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"), _json_lines),
    ".parquet": _parquet,
}
ROW_SUFFIXES = tuple(_ROW_READERS)
"""Ends of the names of files that hold one document, or one question, per row."""
SUFFIXES = (".txt", ".txt.gz", ".md", ".md.gz", ".raw", ".raw.gz", *ROW_SUFFIXES)
"""Ends of the names of all files that can be read; .raw as in wiki.test.raw."""
