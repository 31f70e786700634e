"""An evaluation as a Weights & Biases run (job_type=evaluate), where checkpoints can be compared across runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.evaluation.report.results import Entry, Results
from slm.evaluation.report.rows import rows
from slm.runtime.words import is_number
from slm.tracking import record_directory

SUMMARY = ("perplexity", "bits_per_byte", "decode_tokens_per_second")
"""Columns of results.csv that go into the summary."""
TASK_COLUMNS = ("model", "task", "metric", "value", "se", "n", "num_fewshot", "error")


def record(folder: Path, entries: Sequence[Entry], settings: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Log one run with tables `evaluation` and `tasks`, the figures among `files`, and all files as an artifact.

    `entries` are those of results.json in `folder`; table `evaluation` has the rows of results.csv. A task that could
    not be evaluated has its `error` instead of a value.
    """
    results = Results(entries)
    checkpoints = rows(results)
    tasks = [
        {"model": e["name"], "task": task, **result} for e in results.entries for task, result in e["tasks"].items()
    ]
    values = {f"{_key(row['model'])}/{column}": row.get(column) for row in checkpoints for column in SUMMARY}
    values |= {f"{_key(row['model'])}/task/{_key(row['task'])}": row.get("value") for row in tasks}
    record_directory(
        folder,
        kind="evaluation",
        name=f"evaluation-{folder.name}",
        config=settings,
        tables={
            "evaluation": (list(checkpoints[0]), [list(row.values()) for row in checkpoints]),
            "tasks": (TASK_COLUMNS, [[row.get(column) for column in TASK_COLUMNS] for row in tasks]),
        },
        images=[file for file in files if file.suffix == ".png"],
        summary={key: value for key, value in values.items() if is_number(value)},
        files=[folder / "results.json", *files],
    )


def _key(name: str) -> str:
    """The name as one part of a summary key, whose parts slashes separate."""
    return name.replace("/", "_")
