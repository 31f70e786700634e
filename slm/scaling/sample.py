"""The numbers that one fit sees: log targets, log variables, and which rows belong together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from slm.scaling.forms import Floats, Law
from slm.scaling.tables.columns import SIZES

Unit = Literal["run", "cell"]
COLUMN_OF = {"D": "tokens", "C": "flops", "w": "width", "d": "depth"}
"""The table's columns of variables of laws. N is the size that is asked for, other variables are columns themselves."""


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
    def is_independent(self) -> bool:
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

    def by_cell(self) -> tuple[Floats, np.ndarray, float]:
        """Mean log target of each cell, the place of each row's cell in it, and the sum of squares within cells."""
        inverse = np.unique(self.cells, return_inverse=True)[1]
        means = np.bincount(inverse, self.log_y) / np.bincount(inverse)
        return means, inverse, float(((self.log_y - means[inverse]) ** 2).sum())

    def cell_means(self) -> Sample:
        """One row a cell: the mean of its log targets over seeds.

        Seeds say how much runs of one cell scatter; how well a law fits, only further cells can say.
        """
        means, inverse, _ = self.by_cell()
        first = np.unique(inverse, return_index=True)[1]
        return replace(self.subset(first), log_y=means, clusters=linked(inverse, self.clusters)[first])


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
    return size if variable == "N" else COLUMN_OF.get(variable, variable)


def missing_columns(table: HasFrame, law: Law, target: str, size: str) -> list[str]:
    """Columns that the fit needs and the table lacks, or has without a number above 0 in every row."""

    def is_usable(name: str) -> bool:
        column = table.frame.get(name)
        return column is not None and pd.api.types.is_numeric_dtype(column) and bool((column > 0).all())

    needed = [target, *(column_of(v, size) for v in law.variables)]
    return [name for name in needed if not is_usable(name)]


def take_sample(table: HasFrame, law: Law, target: str, size: str, *, unit: Unit = "cell") -> Sample:
    """The rows of one family's `table` as `law` sees them. Raises `ValueError` naming columns that are missing.

    Rows of one run, or of runs branched off one trunk, are one cluster. Where there are several shapes of model, rows
    of one shape are too, since they deviate from the law together. `unit="cell"` takes the means over seeds.
    """
    if missing := missing_columns(table, law, target, size):
        raise ValueError(f"{law.name} of {target} needs the column {', '.join(missing)}, which the table lacks")
    frame = table.frame
    log_x = np.log(np.stack([frame[column_of(v, size)].to_numpy(float) for v in law.variables], axis=1))
    # Cells were made without the columns that only a formula has as variables.
    own = [v for v in law.variables if v != "N" and v not in COLUMN_OF]
    cells = frame["cell"].to_numpy(int) if not own else np.asarray(frame.groupby(["cell", *own], sort=False).ngroup())
    # A shape is what agrees in every count of parameters, width and depth that is there.
    sizes = [name for name in (*SIZES, "width", "depth") if name in frame]
    shapes = np.asarray(frame.groupby(sizes, dropna=False, sort=False).ngroup())
    clusters = np.unique(frame["cluster"].astype(str), return_inverse=True)[1]
    if coarser := [*([cells] if unit == "cell" else []), *([shapes] if shapes.any() else [])]:
        clusters = linked(clusters, *coarser)
    sample = Sample(np.log(frame[target].to_numpy(float)), log_x, clusters, cells, law.absolute)
    return sample.cell_means() if unit == "cell" else sample
