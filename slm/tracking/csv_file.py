"""`metrics.csv`: one row per step at which something was logged, exact to the last bit, and whole after a resume."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class CsvTracker:
    """Appends rows with fixed columns; an empty cell means "not measured at this step"."""

    def __init__(self, path: Path, columns: Sequence[str], *, resume_step: int = 0) -> None:
        """Open `path`, dropping rows of steps after `resume_step`: the run is about to take those again.

        Raises `ValueError` if `path` holds something else.
        """
        self.path, self.columns = path, ("step", *columns)
        kept = _rows_until(path, resume_step) if path.exists() else []
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(partial, path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row; `ValueError` for a metric that is no column."""
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writerow({"step": step, **{name: repr(value) for name, value in metrics.items()}})

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Samples are no numbers: they are left out."""

    def finish(self, summary: Mapping[str, Any], *, succeeded: bool) -> None:
        """Every row is already on disk."""


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        whole = [line for line in file if line.endswith("\n")]  # a killed run may have written half a line
    rows = list(csv.DictReader(whole))
    if not all((row.get("step") or "").isdigit() for row in rows):
        raise ValueError(f"{path} is not a table of metrics by step: restore it, or choose another output_dir")
    return [row for row in rows if int(row["step"]) <= step]
