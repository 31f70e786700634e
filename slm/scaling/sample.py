"""The numbers that one fit sees: log targets, log variables, and which rows belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from slm.scaling.forms import Floats
from slm.scaling.laws import Law

Unit = Literal["run", "cell"]
_COLUMNS = {"D": "tokens", "C": "flops", "w": "width", "d": "depth"}


class HasFrame(Protocol):
    """A results table: what `slm.scaling.read_table` returns."""

    @property
    def frame(self) -> pd.DataFrame:
        """Canonical columns, among them `cluster` and `cell`."""


@dataclass(frozen=True)
class Sample:
    """I rows that a law with V variables is fitted to."""

    log_y: Floats
    log_x: Floats
    """[I, V], natural logarithms, not centred."""
    clusters: np.ndarray
    """[I] integers; rows of one cluster are not independent of each other."""
    cells: np.ndarray
    """[I] integers; rows of one cell differ in the seed alone."""

    @property
    def refs(self) -> Floats:
        """Means of the log variables [V], at which the data are centred."""
        return self.log_x.mean(axis=0)

    @property
    def centred(self) -> Floats:
        """Log variables less their means [I, V]."""
        return self.log_x - self.refs

    @property
    def rows_share_runs(self) -> bool:
        """Whether any cluster has several rows."""
        return len(np.unique(self.clusters)) < len(self.clusters)

    @property
    def points(self) -> int:
        """Number of distinct points in the space of variables."""
        return len(np.unique(self.log_x, axis=0))

    def with_targets(self, log_y: Floats) -> Sample:
        """The same design with other targets."""
        return Sample(log_y, self.log_x, self.clusters, self.cells)

    def cell_means(self) -> Sample:
        """One row a cell: the mean of its log targets. For data whose scatter lies between cells, not between seeds."""
        cells, first, inverse = np.unique(self.cells, return_index=True, return_inverse=True)
        log_y = np.bincount(inverse, self.log_y) / np.bincount(inverse)
        return Sample(log_y, self.log_x[first], self._linked_cells(inverse, len(cells)), cells)

    def _linked_cells(self, inverse: np.ndarray, count: int) -> np.ndarray:
        """For each cell the group of cells that a run connects it with, such as the checkpoints of one run."""
        runs = np.unique(self.clusters, return_inverse=True)[1]
        edges = coo_array((np.ones(len(runs)), (inverse, count + runs)), shape=(count + len(runs),) * 2)
        return np.asarray(connected_components(edges, directed=False)[1][:count])


def column_of(variable: str, size: str) -> str:
    """The table's column of a law's variable; N is the column `size`."""
    return size if variable == "N" else _COLUMNS[variable]


def missing_columns(table: HasFrame, law: Law, target: str, size: str) -> list[str]:
    """Columns that the fit would need and the table lacks."""
    needed = [target, *(column_of(v, size) for v in law.variables)]
    return [name for name in needed if name not in table.frame or table.frame[name].isna().any()]


def take_sample(table: HasFrame, law: Law, target: str, size: str, *, unit: Unit = "run") -> Sample:
    """The rows of `table` as `law` sees them. Raises `ValueError` naming columns that are missing."""
    missing = missing_columns(table, law, target, size)
    if missing:
        raise ValueError(f"{law.name} of {target} needs the column {', '.join(missing)}, which the table lacks")
    frame = table.frame
    log_x = np.log(np.stack([frame[column_of(v, size)].to_numpy(float) for v in law.variables], axis=1))
    clusters = np.unique(frame["cluster"].astype(str), return_inverse=True)[1]
    sample = Sample(np.log(frame[target].to_numpy(float)), log_x, clusters, frame["cell"].to_numpy(int))
    return sample.cell_means() if unit == "cell" else sample
