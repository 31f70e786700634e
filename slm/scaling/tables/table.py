"""A table of runs, read from anywhere, checked, and in canonical columns: what every fit starts from.

>>> from slm.scaling.tables import read_table
>>> table = read_table("mobilellm_published")
>>> table.families, table.sizes, table.targets
(['MobileLLM'], ['params_total', 'params_non_embedding'], ['loss', 'perplexity'])

Notable: nothing is repaired in silence. A row that is left out and a column that is computed is a note, which the
report shows; a value that cannot be is an error that names file, row, column and value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import pandas as pd

from slm.runtime.words import shortlist
from slm.scaling.tables.checks import check_columns, check_values
from slm.scaling.tables.columns import SIZES, TARGETS, add_clusters_and_cells, complete, derive, rename, typed
from slm.scaling.tables.files import from_records, read_rows
from slm.scaling.tables.grids import best_of, note_grids
from slm.scaling.tables.rows import (
    completed,
    ranked_by,
    selected,
    without_diverged,
    without_duplicates,
    without_worst,
)
from slm.scaling.tables.suspicions import note_checkpoints, note_repeats, note_rising
from slm.scaling.tables.units import check_units, note_units


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
            raise ValueError(f"{self.name} has no family {family!r}: it has {shortlist(self.families, 12)}")
        rows = self.frame[self.frame["family"] == family].reset_index(drop=True)
        return Table(rows, self.notes, self.name)


class Options(TypedDict, total=False):
    """Which rows and columns of a table are read."""

    columns: Mapping[str, str] | None
    """Canonical names -> the table's own, or arithmetic of them."""
    where: str | None
    """A pandas query of rows to keep."""
    best_of: str | Sequence[str] | None
    """Columns of settings (`lr`); of rows that differ in them alone, the best are kept."""
    drop_worst: int
    """How many rows of the highest loss are left out."""


def read_table(source: str | Path, **options: Unpack[Options]) -> Table:
    """Read a .csv, .tsv, .json, .jsonl (these also with .gz) or .parquet file, or the table that slm ships.

    Raises `ValueError` of one sentence for what is not a table of runs.
    """
    notes: list[str] = []
    rows, name = read_rows(source, notes)
    return _table(rows, str(source), name, notes, **options)


def table_from_frame(frame: pd.DataFrame, *, name: str = "table", **options: Unpack[Options]) -> Table:
    """`read_table` for rows in memory; they are numbered from 1 in messages."""
    rows = from_records(frame.itertuples(index=False, name=None), [str(column) for column in frame.columns])
    return _table(rows, name, name, [], **options)


def _table(rows: pd.DataFrame, source: str, name: str, notes: list[str], **options: Unpack[Options]) -> Table:
    if rows.empty:
        raise ValueError(f"{source} has no rows: it needs one a run")
    raw, names = rename(rows, options.get("columns") or {}, source, notes)
    check_columns(raw, names)
    raw = selected(raw, options.get("where"), names, notes)
    raw = raw.drop(columns=sorted(set(names.own.values()) - set(names.own)), errors="ignore")
    raw = without_duplicates(completed(raw, names, notes), notes)
    frame = typed(raw)
    kept = without_diverged(raw, frame, names, notes)
    raw, frame = raw.loc[kept], frame.loc[kept]
    check_values(raw, frame, names)
    if "family" not in frame:
        frame.insert(0, "family", "all")
        notes.append("The table has no column family: all rows are one family.")
    if "N" in frame and any(complete(frame, size) for size in SIZES[:2]):
        frame = frame.drop(columns="N")
        notes.append("The column N was left out: the table says which parameters its other columns of size count.")
    frame = derive(frame, notes)
    settings = options.get("best_of") or []
    frame = best_of(frame, [settings] if isinstance(settings, str) else settings, ranked_by(frame), names, notes)
    frame = without_worst(frame, options.get("drop_worst", 0), notes)
    check_units(frame, names, loss_was_given="loss" in raw, flops_were_given="flops" in raw)
    frame = add_clusters_and_cells(frame, notes)
    suspicions = [
        *note_rising(frame),
        *note_checkpoints(frame, names),
        *note_units(frame, names, flops_were_given="flops" in raw),
        *note_grids(frame, names),
        *note_repeats(frame, next(name for name in TARGETS if name in raw)),
    ]
    return Table(frame.reset_index(drop=True), (*suspicions, *notes), name)
