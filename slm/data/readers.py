"""Readers of text files: the one registry of kinds, for training, evaluation and task files.

Notable: a file is of the kind that its name ends in, in upper or lower case. Whatever the kind, text is UTF-8, a byte
order mark at its start is no part of it, a line ends in \\n, and a row whose text is null or missing is "" (whoever
reads skips and counts it). What is wrong with a file is one ValueError that names it and says what to do.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_BLOCK = 4 << 20  # bytes read at once: a file may be larger than memory
_BATCH = 1024  # rows of a Parquet file read at once
_AGAIN = "write or download it again, or leave it out"
_MAGIC = {b"\x1f\x8b": ".gz", b"PAR1": ".parquet"}
"""How files of a kind begin, to say what a file is whose name says otherwise."""


class Kind(NamedTuple):
    """`rows` gives (number, value) of each row, and `row` is what a row is called; None where a file is one text.

    `rows` takes the column that alone is wanted, or None for all.
    """

    row: str
    rows: Callable[[Path, str | None], Iterator[tuple[int, Any]]] | None


class _UnusableError(ValueError):
    """What is wrong with a file and what to do, to be said after its name."""


def read_texts(path: Path, *, key: str, column: str, limit: int | None) -> Iterator[str]:
    """The documents of a file in order, `column` of each row; those longer than `limit` bytes are cut by `pieces`.

    Raises ValueError, which begins with the `key` that the user set, for whatever keeps the file from being read.
    """
    kind = SUFFIXES[suffix_of(path) or ""]
    with _named(path, key):
        for blocks in _texts_in_rows(path, kind, column) if kind.rows else [_decoded(path)]:
            encoded = (block.encode(errors="replace") for block in clean(blocks))  # JSON may hold half a surrogate pair
            yield from (piece.decode() for piece in pieces(encoded, limit))


def read_rows(path: Path, *, key: str) -> Iterator[tuple[str, Any]]:
    """(place, value) of each row of a file of rows, as in ("line 3", {...}); raises ValueError as `read_texts`."""
    kind = SUFFIXES[suffix_of(path) or ""]
    assert kind.rows is not None
    with _named(path, key):
        for number, row in kind.rows(path, None):
            yield f"{kind.row} {number}", row


def suffix_of(path: Path) -> str | None:
    """The key of `SUFFIXES` that a name ends in; None for a file of no known kind."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def holds_rows(path: Path) -> bool:
    """Whether a file holds a document a row, and not one text."""
    return suffix_of(path) in ROW_SUFFIXES


def text_of(value: Any, column: str, place: str) -> str:
    """The text of a row: "" for null; raises ValueError, which names `place`, for what is no text."""
    if isinstance(value, bytes):  # as some writers of Parquet store text
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _UnusableError(f"{place} is not UTF-8 in {column!r}; convert it, or set data.text_column") from None
    if value is not None and not isinstance(value, str):
        held = type(value).__name__
        raise _UnusableError(f"{place} holds {held} in {column!r} where text is wanted; set data.text_column")
    return value or ""


def clean(blocks: Iterable[str]) -> Iterator[str]:
    """A text without a byte order mark before it, and with \\n for the line ends of Windows."""
    held, begun = "", False
    for block in chain(blocks, [None]):
        text = held + (block or "")
        if not begun and text:
            text, begun = text.removeprefix("\ufeff"), True
        held = "\r" if block is not None and text.endswith("\r") else ""  # half a line end, if the next block has \n
        yield text[: len(text) - len(held)].replace("\r\n", "\n")


def pieces(blocks: Iterable[bytes], limit: int | None) -> Iterator[bytes]:
    """The text of all blocks in pieces of at most `limit` bytes that end at a paragraph, else a line, else a word."""
    if limit is None:
        yield b"".join(blocks)
        return
    rest = b""
    for block in blocks:
        text, start = rest + block, 0
        while len(text) - start > limit:
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


@contextmanager
def _named(path: Path, key: str) -> Iterator[None]:
    """Make one sentence of whatever a reader or its library raises, with the file's name in it."""
    try:
        yield
    except (_UnusableError, OSError, EOFError, zlib.error, RecursionError, MemoryError) as error:
        raise ValueError(f"{key}: {path} {_fault(path, error)}") from None


def _fault(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:  # not there any more, or not ours to read
        return f"cannot be read: {error.strerror}"
    name = path.name.lower()
    with path.open("rb") as file:
        start = file.read(4)
    for magic, suffix in _MAGIC.items():
        if start.startswith(magic) != name.endswith(suffix):
            begins = "begins" if start.startswith(magic) else "does not begin"
            return f"{begins} as a {suffix} file does; rename it to what it is, or leave it out"
    if name.endswith(".gz") and (damage := _gzip_damage(path)):
        return f"holds damaged gzip data ({damage}); {_AGAIN}"
    if isinstance(error, _UnusableError):
        return str(error)
    return f"cannot be read ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}); {_AGAIN}"


def _gzip_damage(path: Path) -> str | None:
    """What keeps a gzip file from being unpacked: what it was unpacked to before that point may be nonsense."""
    try:
        with gzip.open(path) as file:
            while file.read(_BLOCK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return "it is cut off" if isinstance(error, EOFError) else str(error)
    return None


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _decoded(path: Path) -> Iterator[str]:
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with _opened(path) as file:
        for block in chain(iter(lambda: file.read(_BLOCK), b""), [b""]):
            waiting = len(decoder.getstate()[0])  # the first bytes of a character that this block ends
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                byte, place = error.object[error.start], offset - waiting + error.start
                raise _UnusableError(
                    f"is not UTF-8 (byte 0x{byte:02x} at offset {place}); convert it, as with iconv"
                ) from None
            offset += len(block)


def _json_lines(path: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode(), strict=False)  # not strict: a text may hold any character
            except UnicodeDecodeError:
                raise _UnusableError(f"line {number} is not UTF-8; convert the file, as with iconv") from None
            except ValueError:
                raise _UnusableError(f"line {number} is not JSON; give one object a line") from None


def _parquet(path: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            columns = file.schema_arrow.names
            if column is not None and column not in columns:
                raise _without_column(column, columns)
            for batch in file.iter_batches(batch_size=_BATCH, columns=[column] if column else None):
                for row in batch.to_pylist() if column is None else batch.column(0).to_pylist():
                    number += 1
                    yield number, row if column is None else {column: row}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise _UnusableError(f"cannot be read as Parquet ({said}); {_AGAIN}") from None


def _texts_in_rows(path: Path, kind: Kind, column: str) -> Iterator[list[str]]:
    """The text of each row, in one block; a file of which no row has the column is refused."""
    assert kind.rows is not None
    seen, first = False, None
    for number, row in kind.rows(path, column):
        place = f"{kind.row} {number}"
        if row is not None and not isinstance(row, dict):
            raise _UnusableError(f"{place} is no object; give one a line, with the text in {column!r}")
        row = row or {}
        first, seen = first or list(row), seen or column in row
        yield [text_of(row.get(column), column, place)]
    if first is not None and not seen:
        raise _without_column(column, first)


def _without_column(column: str, columns: Iterable[str]) -> _UnusableError:
    return _UnusableError(
        f"has no {column!r} but {', '.join(columns) or 'no column'}; set data.text_column to one it has"
    )


TEXT, JSON_LINES, PARQUET = Kind("text", None), Kind("line", _json_lines), Kind("row", _parquet)
SUFFIXES = {
    **{f"{suffix}{packed}": TEXT for suffix in (".txt", ".md", ".raw") for packed in ("", ".gz")},
    **{f"{suffix}{packed}": JSON_LINES for suffix in (".jsonl", ".ndjson") for packed in ("", ".gz")},
    ".parquet": PARQUET,
}
"""The registry: how a name ends (.raw as in wiki.test.raw) -> kind."""
ROW_SUFFIXES = tuple(suffix for suffix, kind in SUFFIXES.items() if kind.rows)
"""Of files that hold a document, or a question, a row."""
