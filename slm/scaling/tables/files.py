"""Read a file of runs, or the table that slm ships. Values are not converted, and rows are numbered from 1.

Text is read by the standard library and not by `pandas.read_csv`, which shifts or drops the fields of a ragged row.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from slm.runtime.words import plural
from slm.scaling import published
from slm.scaling.tables.numbers import SEMICOLONS
from slm.scaling.tables.values import format_value, is_blank, parse_number

_DELIMITERS = {",": "commas", ";": SEMICOLONS, "\t": "tabs", "|": "vertical bars"}


def read_rows(source: str | Path, notes: list[str]) -> tuple[pd.DataFrame, str]:
    """Return the rows of a file or of the shipped table, indexed from 1, and the name of the table.

    Raises `ValueError` if the file cannot be read as a table. Adds a sentence on skipped lines to `notes`.
    """
    if str(source) == published.NAME:
        return _from_dicts(published.published_rows(), published.NAME), published.NAME
    path = Path(source)
    if path.is_dir():
        tables = sorted(item.name for item in path.iterdir() if _suffix(item) in _READERS)
        contents = f"the tables in it are {', '.join(tables[:5])}" if tables else "there is no table in it"
        raise ValueError(f"{path} is a directory, not a table: {contents}")
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a file of runs, or {published.NAME}, the table that slm ships")
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise ValueError(f"{path} cannot be read as a table: its name must end in {', '.join(_READERS)} or .csv.gz")
    name = Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem
    return reader(path, notes), name


def from_records(records: Iterable[Sequence[Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Make a frame with rows indexed from 1, without converting the values."""
    rows = [list(record) for record in records]
    index = range(1, len(rows) + 1)
    # dtype=object keeps each value as it was written, so that messages can quote it.
    series = {name: pd.Series([row[i] for row in rows], index, dtype=object) for i, name in enumerate(columns)}
    return pd.DataFrame(series, index)


def _suffix(path: Path) -> str:
    """The suffix in lower case, without the .gz of compressed text: `.csv` for `runs.csv.gz`."""
    suffix, inner_suffix = path.suffix.lower(), Path(path.stem).suffix.lower()
    is_compressed_text = suffix == ".gz" and inner_suffix != ".parquet"
    return inner_suffix if is_compressed_text else suffix


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise ValueError(f"{path} is truncated or not a gzip file: copy it again, or decompress it yourself") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_delimited(path: Path, delimiter: str, notes: list[str]) -> pd.DataFrame:
    try:
        text = _read_text(path)
        if stated := re.match(r"sep=(.)\n", text):  # by which a spreadsheet tells others its delimiter
            text = text[stated.end() :]
        delimiter = _delimiter(text, stated[1] if stated else delimiter, path, notes)
        text = _without_comments(text, delimiter, path, notes)
        lines = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from None
    lines = [line for line in lines if any(field.strip() for field in line)]
    if not lines:
        raise ValueError(f"{path} is empty: it needs a line of column names and a line for each run")
    header = [field.strip() for field in lines[0]]
    _check_header(header, path)
    rows = []
    for number, line in enumerate(lines[1:], start=1):
        fields = [field.strip() or None for field in line]
        while len(fields) > len(header) and fields[-1] is None:  # delimiters at the end of the line
            fields.pop()
        if len(fields) != len(header):
            counts = f"{len(fields)} fields, but the header has {len(header)}"
            raise ValueError(f"{path}, row {number} has {counts}: fix that row")
        rows.append(fields)
    frame = from_records(rows, [field or f"(column {i})" for i, field in enumerate(header)])
    has_name = [bool(field) for field in header]  # a column without a name is a row index
    frame = frame.loc[:, has_name]
    if delimiter == ";":
        frame.attrs[SEMICOLONS] = True
    return frame


def _delimiter(text: str, usual: str, path: Path, notes: list[str]) -> str:
    """The delimiter of the columns: `usual`, or with a note the one that gives more columns in header and first row."""
    lines = [line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")][:2]
    num_fields = {mark: [len(fields) for fields in csv.reader(lines, delimiter=mark)] for mark in (usual, *_DELIMITERS)}
    best = max(num_fields, key=lambda mark: min(num_fields[mark], default=0) if len({*num_fields[mark]}) == 1 else 0)
    if len(lines) < 2 or num_fields[best][0] <= num_fields[usual][0]:
        return usual
    notes.append(f"The columns of {path} are separated by {_DELIMITERS[best]}.")
    return best


def _without_comments(text: str, delimiter: str, path: Path, notes: list[str]) -> str:
    """The text from the header on. Lines above the header that begin with # are skipped, with a note.

    If the first line without # has a number, it is data, and the line above it is the header (`# N,tokens,loss`).
    """
    lines = text.splitlines(keepends=True)
    filled_indices = [i for i, line in enumerate(lines) if line.strip()]  # of lines that are not blank
    is_comment = [lines[i].lstrip().startswith("#") for i in filled_indices]
    num_comments = is_comment.index(False) if False in is_comment else 0
    if num_comments == 0:
        return text
    (fields,) = csv.reader([lines[filled_indices[num_comments]]], delimiter=delimiter)
    if any(parse_number(field) is not None and not is_blank(field) for field in fields):
        num_comments -= 1  # the last line with # is the header
    if num_comments:
        skipped = plural(num_comments, "line was", "lines were")
        notes.append(f"{skipped} skipped above the header of {path}: comments with #.")
    return "".join(lines[filled_indices[num_comments] :])


def _check_header(header: list[str], path: Path) -> None:
    if len(header) == 1 and any(mark in header[0] for mark in ";|\t"):
        column = format_value(header[0])
        raise ValueError(
            f"{path} has one column, {column!r}: separate columns by commas, semicolons or tabs in all rows"
        )
    if not any(header):
        raise ValueError(f"{path} has no column names: its first line must hold them")
    for field in filter(None, header):
        if header.count(field) > 1:
            raise ValueError(f"{path} has the column {field} {header.count(field)} times: rename or remove one")


def _from_dicts(items: Any, name: object) -> pd.DataFrame:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f'{name} must hold a list of rows, each like {{"family": "a", "N": 1e8, "loss": 3.1}}')
    columns = list(dict.fromkeys(str(key) for item in items for key in item))
    return from_records(([item.get(column) for column in columns] for item in items), columns)


def _parse_json(text: str, name: object) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def _read_jsonl(path: Path, notes: list[str]) -> pd.DataFrame:
    lines = enumerate(_read_text(path).split("\n"), start=1)
    items = [_parse_json(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    return _from_dicts(items, path)


def _read_parquet(path: Path, notes: list[str]) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises many kinds
        raise ValueError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    return from_records(frame.itertuples(index=False, name=None), [str(column) for column in frame.columns])


_READERS: dict[str, Callable[[Path, list[str]], pd.DataFrame]] = {
    ".csv": lambda path, notes: _read_delimited(path, ",", notes),
    ".tsv": lambda path, notes: _read_delimited(path, "\t", notes),
    ".json": lambda path, notes: _from_dicts(_parse_json(_read_text(path), path), path),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
