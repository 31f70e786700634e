"""Read a table of runs from a file or a frame, check it, and name its columns. Every fit starts from such a table.

>>> from slm.scaling.tables import read_table
>>> table = read_table("mobilellm_published")
>>> table.families, table.sizes, table.targets
(['MobileLLM'], ['params_total', 'params_non_embedding'], ['loss', 'perplexity'])

Nothing is repaired silently: the report shows a note on each row that is left out and each column that is computed.
An impossible value is an error that names file, row, column and value.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import pandas as pd

from slm.runtime.words import shortlist
from slm.scaling.tables import checks, columns, filters, suspicions
from slm.scaling.tables.columns import SIZES, TARGETS, group_numbers, is_complete
from slm.scaling.tables.files import from_records, read_rows


@dataclass(frozen=True, eq=False)
class Table:
    """Runs in canonical columns.

    `loss` is in nats per token; `params_*`, `N` and `tokens` are counts; `flops` count the whole training. `cluster`
    names the run of the row, or the run from which it was branched. Rows of one `cell` differ only in seed and results.
    """

    frame: pd.DataFrame  # the rows, indexed from 0
    notes: tuple[str, ...]  # sentences on what was left out, computed or found suspicious
    name: str  # the name of the file without suffix

    @property
    def families(self) -> list[str]:
        """Families in the order in which they appear."""
        return list(dict.fromkeys(self.frame["family"]))

    @property
    def sizes(self) -> list[str]:
        """The columns among `params_total`, `params_non_embedding` and `N` with a value in every row."""
        return [name for name in SIZES if is_complete(self.frame, name)]

    @property
    def targets(self) -> list[str]:
        """The columns among `loss`, `perplexity` and `bits_per_byte` with a value in every row."""
        return [name for name in TARGETS if is_complete(self.frame, name)]

    def family(self, name: str) -> "Table":
        """The rows of one family. The `ValueError` for an unknown name lists the families."""
        if name not in self._by_family:
            raise ValueError(f"{self.name} has no family {name!r}: it has {shortlist(self.families, 12)}")
        return self._by_family[name]

    # An analysis takes some hundred samples of each family, so these are computed once.

    @cached_property
    def _by_family(self) -> dict[str, "Table"]:
        rows = {name: self.frame[self.frame["family"] == name].reset_index(drop=True) for name in self.families}
        return {name: Table(frame, self.notes, self.name) for name, frame in rows.items()}

    @cached_property
    def cluster_of_row(self) -> np.ndarray:
        """The number of each row's `cluster`."""
        return np.unique(self.frame["cluster"].astype(str), return_inverse=True)[1]

    @cached_property
    def shape_of_row(self) -> np.ndarray:
        """The number of each row's shape: models of one shape agree in all counts of parameters, width and depth."""
        return group_numbers(self.frame, [*SIZES, "width", "depth"]).to_numpy()


class Options(TypedDict, total=False):
    """Options for reading a table."""

    columns: Mapping[str, str] | None
    """Canonical name of a column -> its name in the table, or arithmetic of such names."""
    where: str | None
    """A pandas query that is true for rows to keep."""
    best_of: str | Sequence[str] | None
    """Columns of tuned settings, such as `lr`: of rows that differ only in these columns, the best are kept."""
    drop_worst: int
    """How many rows to leave out: those with the highest result."""
    target: str | None
    """A column of the user's own that laws describe: a table with it needs no loss, perplexity or bits per byte."""
    read: Collection[str] | None
    """Columns that the caller reads in addition to this module: notes name all others. None: no such notes."""


def read_table(source: str | Path, **options: Unpack[Options]) -> Table:
    """Read a .csv, .tsv, .json, .jsonl (these also with .gz) or .parquet file, or the table that slm ships.

    Raises a `ValueError` of one sentence if the source is not a table of runs.
    """
    notes: list[str] = []
    rows, name = read_rows(source, notes)
    return _checked_table(rows, str(source), name, notes, **options)


def table_from_frame(frame: pd.DataFrame, *, name: str = "table", **options: Unpack[Options]) -> Table:
    """Like `read_table`, for rows in memory. Messages number the rows from 1."""
    rows = from_records(frame.itertuples(index=False, name=None), [str(column) for column in frame.columns])
    return _checked_table(rows, name, name, [], **options)


def _checked_table(rows: pd.DataFrame, source: str, name: str, notes: list[str], **options: Unpack[Options]) -> Table:
    if rows.empty:
        raise ValueError(f"{source} has no rows: it needs one for each run")
    raw, column_names = columns.add_canonical_columns(rows, options.get("columns") or {}, source, notes)
    checks.check_columns(raw, column_names, options.get("target"))
    raw = filters.select_rows(raw, options.get("where"), column_names, notes)
    # The query may use a column under the table's own name; from here on only the canonical copy is needed.
    copied = set(column_names.original.values()) - set(column_names.original)
    raw = raw.drop(columns=sorted(copied), errors="ignore")
    raw = filters.drop_duplicates(filters.keep_completed(raw, column_names, notes), notes)
    if options.get("target"):  # results.csv has a column perplexity even if only tasks were measured
        raw = raw.drop(columns=[name for name in TARGETS if name in raw and raw[name].isna().all()])
    frame = columns.convert_types(raw)
    kept_rows = filters.rows_not_diverged(raw, frame, column_names, notes)
    raw, frame = raw.loc[kept_rows], frame.loc[kept_rows]
    checks.check_values(raw, frame, column_names)
    if "family" not in frame:
        frame.insert(0, "family", "all")
        notes.append("The table has no column family: all rows are one family.")
    if "N" in frame and any(is_complete(frame, size) for size in SIZES[:2]):
        frame = frame.drop(columns="N")
        notes.append("The column N was left out, because other columns of size say which parameters they count.")
    frame = columns.derive_columns(frame, notes)
    best_of = options.get("best_of") or []
    frame = filters.keep_best(frame, [best_of] if isinstance(best_of, str) else best_of, column_names, notes)
    frame = filters.drop_worst_rows(frame, options.get("drop_worst", 0), notes)
    checks.check_units(frame, column_names, loss_was_given="loss" in raw, flops_were_given="flops" in raw)
    frame = columns.add_clusters_and_cells(frame, notes)
    misspelt, unread = suspicions.note_unread_columns(raw, options.get("read"), source)
    given_target = next((name for name in TARGETS if name in raw), None)
    suspicious = [
        *misspelt,
        *suspicions.note_similar_families(frame),
        *(suspicions.note_rising_results(frame) if given_target else []),
        *suspicions.note_checkpoints(frame, column_names),
        *checks.note_units(frame, column_names, flops_were_given="flops" in raw),
        *suspicions.note_untuned_settings(frame, column_names),
        *(suspicions.note_repeated_results(frame, given_target) if given_target else []),
    ]
    return Table(frame.reset_index(drop=True), (*suspicious, *notes, *unread), name)
