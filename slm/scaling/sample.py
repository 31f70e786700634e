"""The numbers that one fit sees: log targets, log variables, and which rows belong together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from slm.scaling.forms import Floats
from slm.scaling.laws import Law
from slm.scaling.tables.columns import SIZES

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
    """[I] integers; rows of one cluster are not independent of each other: they share a run or a shape."""
    cells: np.ndarray
    """[I] integers; rows of one cell differ in the seed alone."""
    absolute: bool = False
    """Whether log variables stay as they are: see `Law.absolute`."""

    @property
    def refs(self) -> Floats:
        """Where the data are centred [V]: means of the log variables, 0 if `absolute`."""
        return np.zeros(self.log_x.shape[1]) if self.absolute else self.log_x.mean(axis=0)

    @property
    def centred(self) -> Floats:
        """Log variables less their means [I, V]."""
        return self.log_x - self.refs

    @property
    def independent(self) -> bool:
        """Whether no two rows share a run or a shape."""
        return len(np.unique(self.clusters)) == len(self.clusters)

    @property
    def points(self) -> int:
        """Number of distinct points in the space of variables."""
        return len(np.unique(self.log_x, axis=0))

    def subset(self, rows: np.ndarray) -> Sample:
        """Some of the rows."""
        parts = {name: getattr(self, name)[rows] for name in ("log_y", "log_x", "clusters", "cells")}
        return replace(self, **parts)

    def cell_means(self) -> Sample:
        """One row a cell: the mean of its log targets over seeds.

        Seeds say how much runs of one cell scatter; how well a law fits, only further cells can say.
        """
        cells, first, inverse = np.unique(self.cells, return_index=True, return_inverse=True)
        log_y = np.bincount(inverse, self.log_y) / np.bincount(inverse)
        clusters = linked(inverse, self.clusters)[first]
        return replace(self, log_y=log_y, log_x=self.log_x[first], clusters=clusters, cells=cells)


def linked(*groupings: np.ndarray) -> np.ndarray:
    """A number [I] for each set of rows that are connected by being in one group of any of `groupings` [I]."""
    count, edges = len(groupings[0]), []
    nodes = count
    for grouping in groupings:
        group = np.unique(grouping, return_inverse=True)[1]
        edges.append(np.stack([np.arange(count), nodes + group]))
        nodes += int(group.max()) + 1
    row, column = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(row)), (row, column)), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1][:count])


def column_of(variable: str, size: str) -> str:
    """The table's column of a law's variable; N is the column `size`."""
    return size if variable == "N" else _COLUMNS.get(variable, variable)


def missing_columns(table: HasFrame, law: Law, target: str, size: str) -> list[str]:
    """Columns that the fit would need and the table lacks."""
    needed = [target, *(column_of(v, size) for v in law.variables)]
    return [name for name in needed if name not in table.frame or not _above_zero(table.frame[name])]


def _above_zero(column: pd.Series) -> bool:
    """Whether there is a number above 0 in every row."""
    return pd.api.types.is_numeric_dtype(column) and bool((column > 0).all())


def take_sample(table: HasFrame, law: Law, target: str, size: str, *, unit: Unit = "cell") -> Sample:
    """The rows of one family's `table` as `law` sees them. Raises `ValueError` naming columns that are missing.

    Rows of one run, or of runs branched off one trunk, are one cluster; where there are several shapes, so are those of
    one shape, whose deviation from the law they share. `unit` cell takes the means over seeds.
    """
    missing = missing_columns(table, law, target, size)
    if missing:
        raise ValueError(f"{law.name} of {target} needs the column {', '.join(missing)}, which the table lacks")
    frame = table.frame
    log_x = np.log(np.stack([frame[column_of(v, size)].to_numpy(float) for v in law.variables], axis=1))
    clusters = np.unique(frame["cluster"].astype(str), return_inverse=True)[1]
    cells = frame["cell"].to_numpy(int)
    covariates = [v for v in law.variables if v != "N" and v not in _COLUMNS]
    if covariates:  # of which cells know nothing
        cells = np.asarray(frame.groupby(["cell", *covariates], sort=False).ngroup())
    if unit == "cell":
        clusters = linked(clusters, cells)
    shapes = shapes_of(frame)
    if len(np.unique(shapes)) > 1:
        clusters = linked(clusters, shapes)
    sample = Sample(np.log(frame[target].to_numpy(float)), log_x, clusters, cells, law.absolute)
    return sample.cell_means() if unit == "cell" else sample


def shapes_of(frame: pd.DataFrame) -> np.ndarray:
    """A number [I] for each shape of model: what agrees in every count of parameters, width and depth that is there."""
    columns = [name for name in (*SIZES, "width", "depth") if name in frame]
    return np.asarray(frame.groupby(columns, dropna=False, sort=False).ngroup())
