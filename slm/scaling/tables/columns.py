"""Names and kinds of the columns of a table of runs: what each is called, and what follows from the others."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling.tables.computed import computed
from slm.scaling.tables.values import are_statuses, is_blank, number, shown, truths

SIZES = ("params_total", "params_non_embedding", "N")
TARGETS = ("loss", "perplexity", "bits_per_byte")
QUANTITIES = (*SIZES, "tokens", *TARGETS, "flops", "width", "depth", "lr")
"""Columns that hold numbers above 0."""
ALIASES = {"tokens": "D", "flops": "C", "perplexity": "ppl", "bits_per_byte": "bpb"}
# Rows that agree in all of these that the table has are one cell: they differ in seed and in what was measured.
CELL = (
    *("family", *SIZES, "tokens", "width", "depth", "lr", "budget", "isoflop", "vocab_size", "steps", "schedule"),
    *("context_length", "sequence_length", "batch_tokens", "batch_seqs", "batch_size", "parametrization", "precision"),
    *("data_fingerprint", "tokenizer_fingerprint", "document_masking", "optimizer", "ema_decay"),
)
NAMES = dict.fromkeys(("run_id", "trunk", "seed", "status", *QUANTITIES, *CELL, "lr_rule", "eval_set"))
LIKELY = {"state": "status", "name": "name", "diverged": "diverged"}
"""Headers that are taken for a name if only one column has them: W&B exports `State` and `Name`."""


@dataclass(frozen=True)
class Columns:
    """The name of a table, and its own names of columns that have other names here."""

    table: str
    own: Mapping[str, str] = field(default_factory=dict)

    def error(self, row: int, column: str, value: Any, problem: str) -> ValueError:
        """One sentence on one value: table, row of the file, column, value, what is wrong and what to do."""
        return ValueError(f"{self.table}, row {row}, column {self.own.get(column, column)}: {shown(value)} {problem}")


def typed(raw: pd.DataFrame) -> pd.DataFrame:
    """Quantities as floats (NaN where there is no number), other columns as numbers or booleans if all values are."""
    columns = {}
    for name in raw.columns:
        numbers = [number(value) for value in raw[name]]
        if name in QUANTITIES:
            columns[name] = pd.Series([math.nan if n is None else n for n in numbers], raw.index, dtype=float)
        elif name in ("family", "run_id", "trunk") or str(name).endswith("fingerprint"):
            # Text even where it spells a number: 16 hex digits may, and would lose some of them.
            text = [None if is_blank(value) else str(value).strip() for value in raw[name]]
            columns[name] = pd.Series(text, raw.index, dtype=object)
        elif None in numbers and (truth := truths(raw[name])) is not None:
            columns[name] = truth
        elif None in numbers or all(math.isnan(n) for n in numbers if n is not None):
            columns[name] = raw[name]
        else:
            is_whole = all(n is not None and n.is_integer() and abs(n) < 2**53 for n in numbers)
            columns[name] = pd.Series(numbers, raw.index, dtype=np.int64 if is_whole else float)
    return pd.DataFrame(columns, index=raw.index)


def rename(raw: pd.DataFrame, columns: Mapping[str, str], table: str, notes: list[str]) -> tuple[pd.DataFrame, Columns]:
    """Add the canonical columns beside the table's own; `ValueError` for an own name that is not there.

    What is no column may be an expression of columns, whose values are computed. A header that is a name but for case,
    spaces and hyphens (`Family`) is that name, with a note, if it is not there. A column of the table whose name was
    given to another is carried as `table_NAME`.
    """
    own, values = {}, {}
    for name, there in columns.items():
        if there not in raw.columns:
            values[name] = computed(raw, name, there, table)
            notes.append(f"The column {name} was computed as {shown(there)}.")
        if name != there:
            own[name] = there
    for name, there in ALIASES.items():
        if there in raw.columns and name not in columns and name not in raw.columns:
            own[name] = there
    near = _near_names(raw, columns, table)
    notes += [f"The column {there} was read as {name}." for name, there in near.items()]
    own |= near
    values = {name: values[name] if name in values else raw[there] for name, there in own.items()}
    kept = {name: f"table_{name}" for name in own if name in raw.columns}
    for name, new in kept.items():
        while new in raw.columns:
            new = f"table_{new}"
        kept[name] = new
        notes.append(f"The table's own column {name} is {new} here, because {name} is {shown(own[name])}.")
    return raw.rename(columns=kept).assign(**values), Columns(table, own)


def _near_names(raw: pd.DataFrame, columns: Mapping[str, str], table: str) -> dict[str, str]:
    """Headers that are a name but for case, spaces and hyphens, where nothing else in the table has that name."""
    names = {name: name for name in NAMES} | {alias: name for name, alias in ALIASES.items()}
    near: dict[str, str] = {}
    headers = {
        header: re.sub(r"[\s-]+", "_", header.strip().lstrip("#").strip().lower())
        for header in map(str, raw.columns)
        if header not in columns.values()
    }
    for header, plain in headers.items():
        name = names.get(plain)
        if name is None or header == plain or {name, ALIASES.get(name, name)} & {*columns, *raw.columns}:
            continue
        if name in near:
            raise ValueError(f"{table} has columns {near[name]} and {header}, both of which mean {name}: rename one")
        near[name] = header
    for likely, name in LIKELY.items():
        similar = [header for header, plain in headers.items() if plain == likely and header != name]
        # `state` may be that of a recurrent model.
        if len(similar) == 1 and name not in {*columns, *raw.columns, *near}:
            near |= {name: similar[0]} if name != "status" or are_statuses(raw[similar[0]]) else {}
    return near


def derive(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Add what follows from the rest: `loss` and `perplexity` from each other, `flops` from N and tokens."""
    nothing = pd.Series(math.nan, frame.index)
    for name, other, formula, function in (
        ("loss", "perplexity", "ln(perplexity)", np.log),
        ("perplexity", "loss", "exp(loss)", np.exp),
    ):
        if other in frame:
            if name not in frame:
                notes.append(f"The column {name} was computed as {formula}.")
            frame = frame.assign(**{name: frame.get(name, nothing).fillna(function(frame[other]))})
    size = next(name for name in SIZES if complete(frame, name))
    if "tokens" not in frame:
        notes.append("The table has no column tokens: the training budget of its runs is unknown.")
    elif "flops" not in frame:
        frame = frame.assign(flops=6.0 * frame[size] * frame["tokens"])
        notes.append(f"The column flops was computed as 6 x {size} x tokens.")
    return frame


def complete(frame: pd.DataFrame, name: str) -> bool:
    """Whether the table has the column, with a value in every row."""
    return name in frame and not frame[name].isna().any()


def add_clusters_and_cells(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Add `cluster` and `cell` (a number for rows that differ in seed and results alone).

    A cluster is the run of the row, or the run (`trunk`) that it was branched off.
    """
    cluster = pd.Series([f"row{row}" for row in frame.index], frame.index)
    for name in (name for name in ("run_id", "trunk") if name in frame):
        cluster = frame[name].where(frame[name].notna(), cluster)
    shared = frame["family"].groupby(cluster).transform("nunique") > 1
    if shared.any():
        notes.append("A run_id that stands in several families was taken as a run of each.")
        cluster = cluster.where(~shared, frame["family"] + "/" + cluster)
    return frame.assign(cluster=cluster.astype(object), cell=groups(frame, CELL))


def groups(frame: pd.DataFrame, names: Collection[str]) -> pd.Series:
    """A number for each combination of values of those of the columns that are there, from 0 in order of appearance."""
    numbers = np.zeros(len(frame), dtype=np.int64)
    for name in (name for name in names if name in frame):
        # Text compares values of any kind, lists too, and keeps all digits of a number.
        values = pd.factorize(frame[name].astype(object).map(repr))[0]
        numbers = pd.factorize(numbers * (values.max(initial=0) + 1) + values)[0]
    return pd.Series(numbers, frame.index)
