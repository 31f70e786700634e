"""The data of one fit: log targets, log variables, and which rows belong together."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from slm.scaling.forms import Floats, Law
from slm.scaling.tables import Table
from slm.scaling.tables.columns import group_numbers

Unit = Literal["run", "cell"]  # what a law is fitted to: single runs, or means of cells over seeds
COLUMNS = {"D": "tokens", "C": "flops", "w": "width", "d": "depth"}
"""Variable of a law -> column of the table. N is the requested column of sizes; other variables are column names."""


@dataclass(frozen=True)
class Sample:
    """The I rows to which a law with V variables is fitted."""

    log_y: Floats  # targets on the scale of the law's residuals: logs, except behind a link (`Law.to_scale`)
    log_x: Floats  # natural logarithms [I, V], not centred
    clusters: np.ndarray
    """The cluster of each row [I], an integer. Rows of one cluster share a run or a shape: they are not independent."""
    cells: np.ndarray
    """The cell of each row [I], an integer. Rows of one cell differ only in the seed."""
    is_uncentred: bool = False  # see `Law.is_uncentred`

    @property
    def refs(self) -> Floats:
        """The centre of the data [V]: means of the log variables, 0 if `is_uncentred`."""
        return np.zeros(self.log_x.shape[1]) if self.is_uncentred else self.log_x.mean(axis=0)

    @property
    def centred(self) -> Floats:
        """Log variables [I, V] minus `refs`."""
        return self.log_x - self.refs

    @property
    def is_independent(self) -> bool:
        """Whether no two rows share a run or a shape."""
        return len(np.unique(self.clusters)) == len(self.clusters)

    @property
    def num_points(self) -> int:
        """The number of distinct points in the space of variables."""
        return len(np.unique(self.log_x, axis=0))

    def subset(self, rows: np.ndarray) -> "Sample":
        """The sample with only these rows."""
        return Sample(self.log_y[rows], self.log_x[rows], self.clusters[rows], self.cells[rows], self.is_uncentred)

    def by_cell(self) -> tuple[Floats, np.ndarray, float]:
        """The mean log target of each cell, the cell of each row as an index, and the sum of squares within cells."""
        cell_of_row = np.unique(self.cells, return_inverse=True)[1]
        means = np.bincount(cell_of_row, self.log_y) / np.bincount(cell_of_row)
        return means, cell_of_row, float(((self.log_y - means[cell_of_row]) ** 2).sum())

    def cell_means(self) -> "Sample":
        """One row per cell, with the mean of its log targets over seeds.

        A law is tested by how many cells it describes. Many seeds of few cells would only look like more evidence.
        """
        means, cell_of_row, _ = self.by_cell()
        first_rows = np.unique(cell_of_row, return_index=True)[1]
        clusters = connected_groups(cell_of_row, self.clusters)[first_rows]
        return replace(self.subset(first_rows), log_y=means, clusters=clusters)


def connected_groups(*groupings: np.ndarray) -> np.ndarray:
    """Number the sets of connected rows [I]; two rows are connected if they share a group in any of `groupings` [I]."""
    # The nodes of the graph are the rows, then the groups of each grouping. An edge joins each row and its group.
    edges = []
    num_rows = len(groupings[0])
    num_nodes = num_rows
    for grouping in groupings:
        group_of_row = np.unique(grouping, return_inverse=True)[1]
        edges.append(np.stack([np.arange(num_rows), num_nodes + group_of_row]))
        num_nodes += int(group_of_row.max()) + 1
    row, group = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(row)), (row, group)), shape=(num_nodes, num_nodes))
    return np.asarray(connected_components(graph, directed=False)[1][:num_rows])


def column_of(variable: str, size: str) -> str:
    """The column of the table that holds a variable of a law; `size` for N."""
    return size if variable == "N" else COLUMNS.get(variable, variable)


def missing_columns(table: Table, law: Law, target: str, size: str) -> list[str]:
    """Columns that the fit needs, but that are not in the table with a number above 0 in every row."""

    def is_usable(name: str) -> bool:
        column = table.frame.get(name)
        return column is not None and pd.api.types.is_numeric_dtype(column) and bool((column > 0).all())

    needed = [target, *(column_of(v, size) for v in law.variables)]
    return [name for name in needed if not is_usable(name)]


def take_sample(table: Table, law: Law, target: str, size: str, *, unit: Unit = "cell") -> Sample:
    """The sample that `law` is fitted to, from a table of one family. `ValueError` names missing columns.

    Rows of one run, or of runs branched off one run, are one cluster. If the table has several shapes of model, rows of
    one shape are one cluster too, because they deviate from the law together. `unit="cell"` takes means over seeds.
    """
    if missing := missing_columns(table, law, target, size):
        raise ValueError(f"{law.name} of {target} needs the column {', '.join(missing)}, which the table lacks")
    frame = table.frame
    log_x = np.log(np.stack([frame[column_of(v, size)].to_numpy(float) for v in law.variables], axis=1))
    # Rows of one cell of the table may differ in columns that only a formula uses, so these divide cells further.
    formula_columns = [v for v in law.variables if v != "N" and v not in COLUMNS]
    cells = frame["cell"].to_numpy()
    if formula_columns:
        cells = group_numbers(frame, ["cell", *formula_columns]).to_numpy()
    groupings = [table.cluster_of_row]
    if unit == "cell":
        groupings.append(cells)
    if table.shape_of_row.max() > 0:  # the table has several shapes
        groupings.append(table.shape_of_row)
    clusters = connected_groups(*groupings) if len(groupings) > 1 else table.cluster_of_row
    sample = Sample(law.to_scale(frame[target].to_numpy(float)), log_x, clusters, cells, law.is_uncentred)
    return sample.cell_means() if unit == "cell" else sample
