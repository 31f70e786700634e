"""Read text files. `SUFFIXES` is the only list of accepted file types, for training, evaluation and task files.

The ending of a file's name, in upper or lower case, determines its type. Text of any type must be UTF-8. A byte order
mark at its start is dropped, Windows line ends become \\n, and a row whose text is null or missing becomes "". If a
file cannot be read, a ValueError names the file and says what to do. Texts are read in blocks.
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

_BLOCK_CHARACTERS = 4 << 20  # characters per read, because a file may be larger than memory
_BATCH_ROWS = 1024  # rows per read of a Parquet file
_REPLACE_FILE = "write or download it again, or leave it out"
_SUFFIX_BY_FIRST_BYTES = {b"\x1f\x8b": ".gz", b"PAR1": ".parquet"}

Rows = Iterator[tuple[str, Any]]
"""The place and the value of each row of a file, such as ("line 3", {"text": "a"})."""


class _UnusableError(ValueError):
    """What is wrong with a file and what to do; the message follows the name of the file in a sentence."""


def read_texts(path: Path, *, key: str, column: str, limit: int | None) -> Iterator[str]:
    """Yield the documents of a file: `column` of each row, or all of a text file.

    `pieces` cuts documents longer than `limit` bytes. Raises ValueError if the file cannot be read; the message begins
    with the config key `key`.
    """
    row_reader = _ROW_READERS.get(suffix_of(path) or "")
    with _readable_errors(path, key):
        documents = _texts_in_rows(row_reader(path, column), column) if row_reader else [_decoded(path)]
        for blocks in documents:
            encoded = (block.encode(errors="replace") for block in clean(blocks))  # JSON may hold half a surrogate pair
            yield from (piece.decode() for piece in pieces(encoded, limit))


def read_rows(path: Path, *, key: str) -> Rows:
    """Yield the rows of a file whose suffix is in `ROW_SUFFIXES`; raises ValueError as `read_texts` does."""
    with _readable_errors(path, key):
        yield from _ROW_READERS[suffix_of(path) or ""](path, None)


def suffix_of(path: Path) -> str | None:
    """Return the suffix in `SUFFIXES` with which the file's name ends, or None."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def text_of(value: Any, column: str, place: str) -> str:
    """Return the text of a row, "" for null. For a value that is not text, raises ValueError that names the `place`."""
    if isinstance(value, bytes):  # some writers of Parquet store text as bytes
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _UnusableError(f"{place} is not UTF-8 in {column!r}; convert it, or set data.text_column") from None
    if value is not None and not isinstance(value, str):
        given = f"{place} has a value of type {type(value).__name__} in {column!r}"
        raise _UnusableError(f"{given}, which must be text; set data.text_column")
    return value or ""


def clean(blocks: Iterable[str]) -> Iterator[str]:
    """Yield the blocks of a text without a byte order mark at its start, and with \\n for Windows line ends."""
    carried, is_start = "", True
    for block in chain(blocks, [None]):
        text = carried + (block or "")
        if is_start and text:
            text, is_start = text.removeprefix("\ufeff"), False
        carried = "\r" if block is not None and text.endswith("\r") else ""  # the next block may begin with \n
        yield text[: len(text) - len(carried)].replace("\r\n", "\n")


def pieces(blocks: Iterable[bytes], limit: int | None) -> Iterator[bytes]:
    """Yield the text of all blocks in pieces of at most `limit` bytes, each cut after a paragraph, line or word."""
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
    for mark in (b"\n\n", b"\n", b" "):  # looked for in the second half, so that pieces are not short
        if (position := text.rfind(mark, start + limit // 2, start + limit)) > 0:
            return position + len(mark)
    end = start + limit
    while text[end] & 0xC0 == 0x80:  # a continuation byte, so inside a UTF-8 character
        end -= 1
    return end


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _readable_errors(path: Path, key: str) -> Iterator[None]:
    """Turn the errors of a reader and its library into a ValueError of one sentence that names the file."""
    try:
        yield
    except (_UnusableError, OSError, EOFError, zlib.error, RecursionError, MemoryError) as error:
        raise ValueError(f"{key}: {path} {_problem(path, error)}") from None


def _problem(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:  # the file is gone or may not be read
        return f"cannot be read: {error.strerror}"
    name = path.name.lower()
    with path.open("rb") as file:
        first_four = file.read(4)
    for first_bytes, suffix in _SUFFIX_BY_FIRST_BYTES.items():
        if first_four.startswith(first_bytes) != name.endswith(suffix):
            begins = "begins" if first_four.startswith(first_bytes) else "does not begin"
            return f"{begins} like a {suffix} file; rename it to match its contents, or leave it out"
    if name.endswith(".gz") and (damage := _gzip_damage(path)):
        return f"holds damaged gzip data ({damage}); {_REPLACE_FILE}"
    if isinstance(error, _UnusableError):
        return str(error)
    return f"cannot be read ({type(error).__name__}: {first_line(error)}); {_REPLACE_FILE}"


def _gzip_damage(path: Path) -> str | None:
    """Return why a gzip file cannot be unpacked. A reader may fail on damaged text before gzip detects the damage."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return "it is cut off" if isinstance(error, EOFError) else str(error)
    return None


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _decoded(path: Path) -> Iterator[str]:
    with _open(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            while block := text.read(_BLOCK_CHARACTERS):
                yield block
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            offset = file.tell() - len(error.object) + error.start
            problem = f"is not UTF-8 (byte 0x{byte:02x} at offset {offset})"
            raise _UnusableError(f"{problem}; convert it, for example with iconv") from None


def _json_lines(path: Path, column: str | None) -> Rows:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode(), strict=False)  # not strict: a text may contain control characters
            except UnicodeDecodeError:
                raise _UnusableError(f"line {number} is not UTF-8; convert the file, for example with iconv") from None
            except ValueError:
                raise _UnusableError(f"line {number} is not JSON; give one object per line") from None
            yield f"line {number}", value


def _parquet(path: Path, column: str | None) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if column is not None and column not in file.schema_arrow.names:
                raise _missing_column(column, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=None if column is None else [column]):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _UnusableError(f"cannot be read as Parquet ({first_line(error)}); {_REPLACE_FILE}") from None


def _texts_in_rows(rows: Rows, column: str) -> Iterator[list[str]]:
    """Yield the text of each row as one block; raises `_UnusableError` if no row has the column."""
    has_column = False
    first_row = None
    for place, row in rows:
        if row is not None and not isinstance(row, dict):
            raise _UnusableError(f"{place} is not an object; give one per line, with the text in {column!r}")
        row = row or {}
        first_row = first_row or row
        has_column = has_column or column in row
        yield [text_of(row.get(column), column, place)]
    if first_row is not None and not has_column:
        raise _missing_column(column, first_row)


def _missing_column(column: str, columns: Iterable[str]) -> _UnusableError:
    return _UnusableError(f"has no column {column!r}, only {', '.join(columns) or 'empty rows'}; set data.text_column")


_ROW_READERS = {**dict.fromkeys((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"), _json_lines), ".parquet": _parquet}
ROW_SUFFIXES = tuple(_ROW_READERS)  # files with one document, or one question, per row
SUFFIXES = (".txt", ".txt.gz", ".md", ".md.gz", ".raw", ".raw.gz", *ROW_SUFFIXES)
"""Suffixes of all files that can be read; .raw as in wiki.test.raw."""
