"""A cell: one training run of a sweep, and what decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from slm.analysis.runs import row_of_run, table_of_runs


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run of a sweep."""

    name: str
    """Folder of the run under DIR/runs: readable, ends with the first 8 characters of `key`."""
    key: str
    """sha256 (hex) of the canonical JSON of what decides the run: model, data, tokenizer, optim, parametrization,
    schedule, train and seed of the resolved config."""
    overrides: tuple[str, ...]
    """Of train.py, complete but for output_dir, logger grouping and launcher matters."""
    family: str
    width: int
    depth: int
    seed: int
    tokens: int
    lr: float
    lr_factor: float = 1.0
    """What `lr` is times the rate that the design gives."""
    params_total: int
    params_non_embedding: int
    flops: float
    """Exact training FLOPs of the run, counted from step 0."""
    budget: str | None = None
    """Label of the token budget."""
    impossible: str | None = None
    """Why this cell cannot be trained: the sentence of the rule that refused it. Such a cell has no run, and counts
    of zero."""
    after: str | None = None
    """Name of the trunk of a branch: a cell that must have ended before, completed or at least past `branch_step`."""
    branch_step: int = 0
    """Step of the trunk `after` at which the run begins; 0 for a run of its own."""
    shared_tokens: int = 0
    """Of `tokens`, those before `branch_step`, on which the trunk is trained and this run is not."""

    @property
    def flops_trained(self) -> float:
        """Of `flops`, those of the run's own steps."""
        return self.flops * (1 - self.shared_tokens / self.tokens) if self.shared_tokens else self.flops


def collect_cells(directory: Path, cells: Iterable[Cell], lr_rule: Callable[[str], str]) -> pd.DataFrame:
    """One row (`slm.analysis.runs`) for each cell that has a result, with its `budget` and the rule of its rate.

    `trunk` is the planned one, also of a run that was trained from step 0 in the end: to the last bit it is the same.
    """
    paths = ((cell, directory / cell.name / "result.json") for cell in cells)
    done = [(cell, path) for cell, path in paths if path.exists()]
    own = {cell.name: {"budget": cell.budget, "lr_rule": lr_rule(cell.family), "trunk": cell.after} for cell, _ in done}
    return table_of_runs([row_of_run(path, directory) | own[cell.name] for cell, path in done])
