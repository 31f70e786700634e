"""A table of runs, read from anywhere, checked, and in canonical columns: what every fit starts from.

>>> from slm.scaling.tables import read_table
>>> table = read_table("mobilellm_published")
>>> table.families, table.sizes, table.targets
(['MobileLLM'], ['params_total', 'params_non_embedding'], ['loss', 'perplexity'])

Notable: nothing is repaired in silence. A row that is left out and a column that is computed is a note, which the
report shows; a value that cannot be is an error that names file, row, column and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from slm.scaling.tables.checks import check_columns, check_units, check_values
from slm.scaling.tables.columns import (
    SIZES,
    TARGETS,
    Columns,
    add_clusters_and_cells,
    complete,
    derive,
    is_blank,
    rename,
    shown,
    typed,
)
from slm.scaling.tables.files import from_records, read_rows


@dataclass(frozen=True, eq=False)
class Table:
    """Runs in canonical columns.

    `loss` is nats a token, `params_*`, `N` and `tokens` are counts, `flops` those of the whole training; `cluster`
    names the run that a row is of or was branched off, and rows of equal `cell` differ in nothing but seed and results.
    """

    frame: pd.DataFrame
    """The rows, indexed from 0."""
    notes: tuple[str, ...]
    """Sentences on what was left out, computed or found suspicious."""
    name: str
    """What the table is called: the stem of its file."""

    @property
    def families(self) -> list[str]:
        """Families in the order in which they appear."""
        return list(dict.fromkeys(self.frame["family"]))

    @property
    def sizes(self) -> list[str]:
        """Those of `params_total`, `params_non_embedding` and `N` that every row has."""
        return [name for name in SIZES if complete(self.frame, name)]

    @property
    def targets(self) -> list[str]:
        """Those of `loss`, `perplexity` and `bits_per_byte` that every row has."""
        return [name for name in TARGETS if complete(self.frame, name)]

    def of(self, family: str) -> Table:
        """The rows of one family; `ValueError` lists those that there are."""
        if family not in self.families:
            raise ValueError(f"{self.name} has no family {family!r}: it has {', '.join(self.families)}")
        rows = self.frame[self.frame["family"] == family].reset_index(drop=True)
        return Table(rows, self.notes, self.name)


def read_table(
    source: str | Path, *, columns: Mapping[str, str] | None = None, where: str | None = None, drop_worst: int = 0
) -> Table:
    """Read a .csv, .tsv, .json, .jsonl or .parquet file, or a table that slm ships (`mobilellm_published`).

    `columns` maps canonical names to the table's own, `where` is a pandas query of rows to keep, `drop_worst` leaves
    out that many rows of the highest loss. Raises `ValueError` of one sentence for what is not a table of runs.
    """
    rows, name = read_rows(source)
    return _table(rows, str(source), name, columns or {}, where, drop_worst)


def table_from_frame(
    frame: pd.DataFrame,
    *,
    name: str = "table",
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    drop_worst: int = 0,
) -> Table:
    """`read_table` for rows in memory; they are numbered from 1 in messages."""
    rows = from_records(frame.itertuples(index=False, name=None), [str(column) for column in frame.columns])
    return _table(rows, name, name, columns or {}, where, drop_worst)


def _table(
    rows: pd.DataFrame, source: str, name: str, columns: Mapping[str, str], where: str | None, drop_worst: int
) -> Table:
    if rows.empty:
        raise ValueError(f"{source} has no rows: it needs one a run")
    notes: list[str] = []
    raw, names = rename(rows, columns, source, notes)
    for column in (column for column in names.own if column in rows):
        notes.append(f"The table's own column {column} was left out: {column} is {names.own[column]} here.")
    check_columns(raw, names)
    raw = _selected(raw, where, names, notes)
    raw = raw.drop(columns=sorted(set(names.own.values()) - set(names.own)))
    raw = _without_duplicates(_completed(raw, names, notes), notes)
    frame = typed(raw)
    check_values(raw, frame, names)
    if "family" not in frame:
        frame.insert(0, "family", "all")
        notes.append("The table has no column family: all rows are one family.")
    frame = _without_worst(derive(_one_size(frame, notes), notes), drop_worst, names, notes)
    check_units(frame, names, loss_was_given="loss" in raw)
    frame = add_clusters_and_cells(frame, notes)
    _note_repeats(frame, notes)
    _note_copies(frame, next(name for name in TARGETS if name in raw), notes)
    return Table(frame.reset_index(drop=True), tuple(notes), name)


def _selected(raw: pd.DataFrame, where: str | None, columns: Columns, notes: list[str]) -> pd.DataFrame:
    if where is None or not where.strip():
        return raw
    there = ", ".join(str(column) for column in raw.columns)
    try:
        kept = typed(raw).eval(where, engine="python")
    except Exception as error:  # a query can go wrong in every way that Python can
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"where={where} does not work on {columns.table}: {reason}; its columns are {there}") from None
    if not isinstance(kept, pd.Series) or not pd.api.types.is_bool_dtype(kept):
        raise ValueError(f"where={where} is no condition that is true or false for a row, such as: tokens > 1e9")
    kept = kept.fillna(False).astype(bool)
    if not kept.any():
        raise ValueError(f"where={where} leaves no row of {columns.table}; its columns are {there}")
    if not kept.all():
        notes.append(f"Of {len(raw)} rows, the {int(kept.sum())} where {where} were kept.")
    return raw[kept]


def _completed(raw: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    if "status" not in raw:
        return raw
    status = raw["status"].map(lambda value: "no status" if is_blank(value) else str(value).strip().lower())
    out = status[status != "completed"]
    if len(out) == len(raw):
        raise ValueError(
            f"{columns.table} has no row whose status is completed: they are {', '.join(sorted(set(out)))}"
        )
    if len(out):
        which = ", ".join(f"{row} ({what})" for row, what in out.items())
        notes.append(f"{_count(len(out), 'row')} left out whose run did not complete: {which}.")
    return raw[status == "completed"]


def _without_duplicates(raw: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    text = raw.apply(lambda row: "\0".join(repr(value) for value in row), axis=1)
    again = text.duplicated()
    if again.any():
        which = ", ".join(str(row) for row in raw.index[again])
        notes.append(f"{_count(int(again.sum()), 'row')} left out as exact duplicates of rows above them: {which}.")
    return raw[~again]


def _one_size(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Leave out `N` where one of the two known counts is there."""
    if "N" not in frame or not any(complete(frame, name) for name in SIZES[:2]):
        return frame
    notes.append("The column N was left out: the table says which parameters its other columns of size count.")
    return frame.drop(columns="N")


def _without_worst(frame: pd.DataFrame, drop_worst: int, columns: Columns, notes: list[str]) -> pd.DataFrame:
    if not isinstance(drop_worst, int) or isinstance(drop_worst, bool) or not 0 <= drop_worst < len(frame):
        raise ValueError(
            f"drop_worst={drop_worst} must be a whole number from 0 to {len(frame) - 1}: some rows must stay"
        )
    target = "loss" if complete(frame, "loss") else "bits_per_byte"
    worst = frame[target].sort_values(ascending=False, kind="stable").head(drop_worst)
    if drop_worst:
        which = ", ".join(f"{row} ({shown(float(value))})" for row, value in worst.items())
        notes.append(f"drop_worst={drop_worst} left out the rows of the highest {target}: {which}.")
    return frame.drop(index=worst.index)


def _note_repeats(frame: pd.DataFrame, notes: list[str]) -> None:
    """Two seeds do not end at the same loss to the last digit."""
    target = "loss" if complete(frame, "loss") else "bits_per_byte"
    repeated = frame.duplicated(["cell", target], keep=False)
    if repeated.any():
        which = ", ".join(str(row) for row in frame.index[repeated])
        notes.append(f"Suspicious: rows {which} have the settings and the {target} of another row to all digits.")


def _note_copies(frame: pd.DataFrame, written: str, notes: list[str]) -> None:
    """Two families do not reach the same result to all of four and more decimals, unless there are many runs."""
    values = frame[written].dropna()
    text = values.map(lambda value: np.format_float_positional(value, trim="-").partition(".")[2])
    values = values[text.str.len() >= 4]
    families, lasts = frame["family"][values.index], text.str.len().max()
    rows = values.index[families.groupby(values).transform("nunique") > 1]
    if not len(rows):
        return
    copies = values[rows]
    first: dict[float, int] = {}
    for row, value in copies.items():
        first.setdefault(value, row)
    other = next(row for row in rows if families[row] != families[first[copies[row]]])
    pairs = (len(values) ** 2 - (families.value_counts() ** 2).sum()) / 2
    spread = float(values.max() - values.min())
    by_chance = pairs * 10.0**-lasts / spread if spread else 0.0
    if stats.poisson.sf(copies.nunique() - 1, by_chance) < 0.01:
        notes.append(
            f"Suspicious: {len(rows)} rows have the {written} of a row of another family to all digits, such as rows "
            f"{first[copies[other]]} and {other} ({families[first[copies[other]]]} and {families[other]}: "
            f"{shown(float(copies[other]))})."
        )


def _count(count: int, what: str) -> str:
    return f"{count} {what} was" if count == 1 else f"{count} {what}s were"
