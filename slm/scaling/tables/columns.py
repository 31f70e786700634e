"""Name the columns of a table of runs, convert their types, and compute columns that follow from others."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling.tables.numbers import plain_numbers
from slm.scaling.tables.values import (
    compute_column,
    format_value,
    has_statuses,
    is_blank,
    parse_booleans,
    parse_number,
    source_columns,
)

SIZES = ("params_total", "params_non_embedding", "N")
TARGETS = ("loss", "perplexity", "bits_per_byte")
QUANTITIES = (*SIZES, "tokens", *TARGETS, "flops", "width", "depth", "lr")  # numbers above 0
WITH_SUFFIX = (*SIZES, "tokens", "flops")  # counts that people write as 125M or 1.5B
COUNTS = (*WITH_SUFFIX, "width", "depth", "vocab_size", "steps", "batch_tokens", "sequence_length", "context_length")
ALIASES = {"tokens": "D", "flops": "C", "perplexity": "ppl", "bits_per_byte": "bpb"}  # canonical name -> other header
CELL = (
    "family", *SIZES, "tokens", "width", "depth", "lr", "budget", "isoflop", "vocab_size", "steps", "schedule",
    "context_length", "sequence_length", "batch_tokens", "batch_seqs", "batch_size", "parametrization", "precision",
    "data_fingerprint", "tokenizer_fingerprint", "document_masking", "optimizer", "ema_decay", "init_from", "distill",
    "quantize",
)  # fmt: skip
"""Columns that define a cell: rows of one cell agree in all of them, and differ only in seed and results."""
CANONICAL_NAMES = dict.fromkeys(("run_id", "trunk", "seed", "status", *QUANTITIES, *CELL, "lr_rule", "eval_set"))
LIKELY_NAMES = {"state": "status", "name": "name", "diverged": "diverged"}
"""Header in lower case -> column as which it is read, if the header occurs once. W&B exports `State` and `Name`."""


@dataclass(frozen=True)
class Columns:
    """The name of a table and the names of its columns, for messages."""

    table: str
    original: Mapping[str, str] = field(default_factory=dict)
    """Canonical name of a column -> its name in the file, where they differ."""

    def original_name(self, column: str) -> str:
        """The name of a column in the file."""
        return self.original.get(column, column)

    def error(self, row: int, column: str, value: Any, problem: str) -> ValueError:
        """An error about one value; `problem` says what is wrong with it and what to do."""
        place = f"{self.table}, row {row}, column {self.original_name(column)}"
        return ValueError(f"{place}: {format_value(value)} {problem}")


def convert_types(raw: pd.DataFrame) -> pd.DataFrame:
    """Convert quantities to floats (NaN for text), and other columns to numbers or booleans if all values allow it."""
    columns = {}
    for name in raw.columns:
        numbers = [parse_number(value) for value in raw[name]]
        if name in QUANTITIES:
            columns[name] = pd.Series([math.nan if n is None else n for n in numbers], raw.index, dtype=float)
        elif name in ("family", "run_id", "trunk") or str(name).endswith("fingerprint"):
            # These stay text: 16 hex digits may look like a number, which a float would round.
            text = [None if is_blank(value) else str(value).strip() for value in raw[name]]
            columns[name] = pd.Series(text, raw.index, dtype=object)
        elif None in numbers:  # a value is not a number
            booleans = parse_booleans(raw[name])
            columns[name] = raw[name] if booleans is None else booleans
        elif all(n is None or math.isnan(n) for n in numbers):  # all values are blank
            columns[name] = raw[name]
        else:
            is_whole = all(n is not None and n.is_integer() and abs(n) < 2**53 for n in numbers)
            columns[name] = pd.Series(numbers, raw.index, dtype=np.int64 if is_whole else float)
    return pd.DataFrame(columns, index=raw.index)


def add_canonical_columns(
    raw: pd.DataFrame, columns: Mapping[str, str], table: str, notes: list[str]
) -> tuple[pd.DataFrame, Columns]:
    """Add columns under their canonical names; `ValueError` if `columns` needs a column that the table lacks.

    - `columns`: canonical name -> the table's own name of the column, or arithmetic of such names, which is computed.
    - Columns that the table still lacks may come from `ALIASES`, or, with a note, from a header that differs from the
      canonical name only in case, spaces and hyphens (`Family`).
    - A column of the table with the name of an added column is renamed to `table_NAME`.
    """
    source_of = {name: source for name, source in columns.items() if name != source}
    for name, alias in ALIASES.items():
        if alias in raw.columns and name not in columns and name not in raw.columns:
            source_of[name] = alias
    similar_headers = _similar_headers(raw, columns, table)
    notes += [f"The column {header} was read as {name}." for name, header in similar_headers.items()]
    source_of |= similar_headers
    sources = {name: source for name, source in columns.items() if source not in raw.columns}
    operands = {operand for source in sources.values() for operand in source_columns(source, raw.columns)}
    amounts, counts, with_suffix = ({source_of.get(n, n) for n in names} for names in (QUANTITIES, COUNTS, WITH_SUFFIX))
    kinds = {"amounts": amounts | operands, "counts": counts, "with_suffix": with_suffix | operands}
    raw = plain_numbers(raw, table, notes, **kinds)
    computed = {}
    for name, source in sources.items():
        computed[name] = compute_column(raw, name, source, table)
        notes.append(f"The column {name} was computed as {format_value(source)}.")
    added = {name: computed[name] if name in computed else raw[source] for name, source in source_of.items()}
    renamed = {}
    for name in [name for name in source_of if name in raw.columns]:
        new_name = f"table_{name}"
        while new_name in raw.columns:
            new_name = f"table_{new_name}"
        renamed[name] = new_name
        reason = f"{name} is {format_value(source_of[name])}"
        notes.append(f"The table's own column {name} is {new_name} here, because {reason}.")
    return raw.rename(columns=renamed).assign(**added), Columns(table, source_of)


def _similar_headers(raw: pd.DataFrame, columns: Mapping[str, str], table: str) -> dict[str, str]:
    """Canonical name that the table lacks -> its header in other case, spaces or hyphens, or from `LIKELY_NAMES`."""
    taken_names = {*columns, *raw.columns}
    canonical_name = {name: name for name in CANONICAL_NAMES} | {alias: name for name, alias in ALIASES.items()}
    header_of: dict[str, str] = {}
    normalised_headers = {
        header: normalised_header(header) for header in map(str, raw.columns) if header not in columns.values()
    }
    for header, normalised in normalised_headers.items():
        name = canonical_name.get(normalised)
        if name is None or header == normalised or name in taken_names or ALIASES.get(name) in taken_names:
            continue
        if name in header_of:
            both = f"{header_of[name]} and {header}"
            raise ValueError(f"{table} has columns {both}, both of which mean {name}: rename one")
        header_of[name] = header
    for likely_header, name in LIKELY_NAMES.items():
        candidates = [header for header, text in normalised_headers.items() if text == likely_header and header != name]
        # A column `state` may also describe the state of a recurrent model.
        is_unambiguous = len(candidates) == 1 and (name != "status" or has_statuses(raw[candidates[0]]))
        if is_unambiguous and name not in taken_names and name not in header_of:
            header_of[name] = candidates[0]
    return header_of


def normalised_header(header: object) -> str:
    """The header in lower case, with _ for spaces and hyphens."""
    return re.sub(r"[\s-]+", "_", str(header).strip().lstrip("#").strip().lower())


def derive_columns(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Add columns that follow from others: `loss` and `perplexity` from each other, `flops` from N and tokens."""
    unknown = pd.Series(math.nan, frame.index)
    for name, source, function, word in (("loss", "perplexity", np.log, "ln"), ("perplexity", "loss", np.exp, "exp")):
        if source in frame:
            if name not in frame:
                notes.append(f"The column {name} was computed as {word}({source}).")
            frame = frame.assign(**{name: frame.get(name, unknown).fillna(function(frame[source]))})
    size = first_complete(frame, SIZES)
    if "tokens" not in frame:
        notes.append("The table has no column tokens: the training budget of its runs is unknown.")
    elif "flops" not in frame:
        frame = frame.assign(flops=6.0 * frame[size] * frame["tokens"])
        notes.append(f"The column flops was computed as 6 x {size} x tokens.")
    return frame


def is_complete(frame: pd.DataFrame, name: str) -> bool:
    """Whether the table has the column, with a value in every row."""
    return name in frame and not frame[name].isna().any()


def first_complete(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """The first of `names` with a value in every row. A checked table has such a column for `SIZES` and `TARGETS`."""
    return next(name for name in names if is_complete(frame, name))


def run_ids(frame: pd.DataFrame, *columns: str) -> pd.Series:
    """The run of each row: the value in the last of `columns` that is not empty, else a name unique to the row."""
    names = pd.Series([f"row{row}" for row in frame.index], frame.index, dtype=object)
    for name in (name for name in columns if name in frame):
        names = frame[name].where(frame[name].notna(), names)
    return names


def add_clusters_and_cells(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Add `cluster` (the run of a row, or the `trunk` it branched from) and `cell` (the number of the row's cell)."""
    cluster = run_ids(frame, "run_id", "trunk")
    has_several_families = frame["family"].groupby(cluster).transform("nunique") > 1
    if has_several_families.any():
        notes.append("A run_id that occurs in several families was taken as a separate run in each.")
        cluster = cluster.where(~has_several_families, frame["family"] + "/" + cluster)
    return frame.assign(cluster=cluster.astype(object), cell=group_numbers(frame, CELL))


def group_numbers(frame: pd.DataFrame, names: Collection[str]) -> pd.Series:
    """Number the combinations of values in those of the columns `names` that exist, from 0 in order of appearance."""
    numbers = np.zeros(len(frame), dtype=np.int64)
    for name in (name for name in names if name in frame):
        # `repr` makes values of any kind comparable, even lists, and keeps all digits of numbers.
        value_numbers = pd.factorize(frame[name].astype(object).map(repr))[0]
        # Number the pairs (number so far, number of the value in this column).
        numbers = pd.factorize(numbers * (value_numbers.max(initial=0) + 1) + value_numbers)[0]
    return pd.Series(numbers, frame.index)


def cell_means(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """One row per cell: its family, width and depth, its number of `runs`, and the means of `columns` over these."""
    cells = frame.groupby("cell", sort=False)
    labels = [name for name in ("family", "width", "depth") if name in frame and name not in columns]
    return pd.concat([cells[labels].first(), cells.size().rename("runs"), cells[list(columns)].mean()], axis=1)
