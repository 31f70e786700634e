"""An evaluation as a Weights & Biases run: each checkpoint's measurements, to be compared across runs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.tracking.wandb_run import Rows, record_directory

SUMMARY = {
    "perplexity": "perplexity",
    "bits_per_byte": "bits_per_byte",
    "tokens_per_second": "decode_tokens_per_second",
}
"""Columns of results.csv that go into the summary, and their names there."""


def record_evaluation(
    folder: Path,
    results: Sequence[Mapping[str, Any]],
    *,
    name: str,
    config: Mapping[str, Any],
    files: Sequence[Path],
    images: Sequence[Path],
) -> None:
    """Log one run with tables `evaluation` and `tasks`, the `images`, and the `files` as an artifact.

    `results` are the entries of results.json; table `evaluation` is the results.csv in `folder`. Raises `ValueError` if
    `check_logger` refuses the `logger` group in `config`.
    """
    columns, rows = read_rows(folder / "results.csv")
    record_directory(
        folder,
        kind="evaluation",
        name=name,
        config=config,
        tables={"evaluation": (columns, rows), "tasks": task_rows(results)},
        images=images,
        summary=summarize(columns, rows, results),
        files=files,
    )


def read_rows(path: Path) -> Rows:
    """Columns and rows of a CSV file; cells with numbers become numbers, true and false bools, empty cells None."""
    with path.open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    # Names and identifiers stay text, because a fingerprint may consist of digits.
    is_text = [
        name in ("model", "checkpoint", "family", "revision") or name.endswith("fingerprint") for name in columns
    ]
    return columns, [[_parse_cell(*cell) for cell in zip(row, is_text, strict=True)] for row in rows]


def _parse_cell(cell: str, is_text: bool) -> Any:
    if is_text or not cell:
        return cell or None
    try:
        return int(cell) if cell.lstrip("-").isdigit() else float(cell)
    except ValueError:
        return {"true": True, "false": False}.get(cell, cell)


def task_rows(results: Sequence[Mapping[str, Any]]) -> Rows:
    """One row for each checkpoint and task; a task that could not be evaluated has its `error` instead of a value."""
    columns = ["model", "task", "metric", "value", "se", "n", "num_fewshot", "error"]
    rows = [
        [entry["name"], task, *(outcome.get(key) for key in columns[2:])]
        for entry in results
        for task, outcome in (entry.get("tasks") or {}).items()
    ]
    return columns, rows


def summarize(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], results: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Finite values under `NAME/perplexity`, `/bits_per_byte`, `/decode_tokens_per_second` and `/task/TASK`."""
    measured = [dict(zip(columns, row, strict=True)) for row in rows]
    values = {f"{_key(row['model'])}/{key}": row.get(column) for row in measured for column, key in SUMMARY.items()}
    for model, task, _, value, *_ in task_rows(results)[1]:
        values[f"{_key(model)}/task/{_key(task)}"] = value
    return {key: value for key, value in values.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def _key(name: str) -> str:
    """The name as one part of a summary key, whose parts slashes separate."""
    return name.replace("/", "_")
