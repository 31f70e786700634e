"""An evaluation in Weights & Biases: what was measured of each checkpoint, to be compared across runs there."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.tracking.directory import Rows, record_directory

SUMMARY = {
    "perplexity": "perplexity",
    "bits_per_byte": "bits_per_byte",
    "tokens_per_second": "decode_tokens_per_second",
}
"""Columns of results.csv, and what they are called in a summary."""


def record_evaluation(
    folder: Path,
    results: Sequence[Mapping[str, Any]],
    *,
    name: str,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    files: Sequence[Path],
    images: Sequence[Path],
) -> None:
    """Log one run: tables `evaluation` and `tasks`, `images`, and `files` as an artifact.

    `results` are entries of results.json, and `folder` holds the results.csv that was written from them, whose rows are
    the table. `settings` is the `logger` config group, with `job_type` evaluate. Raises `ValueError` for settings that
    `check_logger` refuses.
    """
    columns, rows = read_rows(folder / "results.csv")
    record_directory(
        folder,
        kind="evaluation",
        name=name,
        config=config,
        settings=settings,
        tables={"evaluation": (columns, rows), "tasks": task_rows(results)},
        images=images,
        summary=summary(columns, rows, results),
        files=files,
    )


def read_rows(path: Path) -> Rows:
    """Columns and rows of a CSV file; cells that spell numbers are numbers, empty ones None."""
    with path.open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    # Text stays text in columns that name or identify: a fingerprint may spell a number.
    text = [name in ("model", "checkpoint", "family", "revision") or name.endswith("fingerprint") for name in columns]
    return columns, [[_value(cell, plain) for cell, plain in zip(row, text, strict=True)] for row in rows]


def _value(cell: str, text: bool) -> Any:
    if text or not cell:
        return cell or None
    try:
        return int(cell) if cell.lstrip("-").isdigit() else float(cell)
    except ValueError:
        return {"true": True, "false": False}.get(cell, cell)


def task_rows(results: Sequence[Mapping[str, Any]]) -> Rows:
    """One row a checkpoint and task; a task that could not be evaluated has its reason in place of a value."""
    columns = ["model", "task", "metric", "value", "se", "n", "num_fewshot", "error"]
    rows = [
        [entry["name"], task, *(one.get(key) for key in columns[2:])]
        for entry in results
        for task, one in (entry.get("tasks") or {}).items()
    ]
    return columns, rows


def summary(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], results: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """`<name>/perplexity`, `/bits_per_byte`, `/decode_tokens_per_second`, `/task/<task>`, where they are."""
    measured = [dict(zip(columns, row, strict=True)) for row in rows]
    values = {f"{plain(row['model'])}/{key}": row.get(column) for row in measured for column, key in SUMMARY.items()}
    values |= {
        f"{plain(entry['name'])}/task/{plain(task)}": one.get("value")
        for entry in results
        for task, one in (entry.get("tasks") or {}).items()
    }
    return {key: value for key, value in values.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def plain(name: str) -> str:
    """A name as one part of a key."""
    return name.replace("/", "_")
