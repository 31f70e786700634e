"""A directory of results in Weights & Biases: tables, figures and summary of a run, and its files as an artifact."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.tracking.wandb_run import parts_written, start_run

Rows = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Names of columns, and rows."""


def record_directory(
    folder: Path,
    *,
    kind: str,
    name: str,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    tables: Mapping[str, Rows],
    images: Sequence[Path],
    summary: Mapping[str, Any],
    files: Sequence[Path],
) -> None:
    """Log one run with `tables`, `images` (under figures/), `summary`, and `files` of `folder` as an artifact.

    `kind` is the artifact's type, `settings` the `logger` config group. Raises `ValueError` for settings that
    `check_logger` refuses.
    """
    import wandb

    step = parts_written(folder)  # a second record of a directory follows the first instead of replacing its rows
    run = start_run(folder, config, name=name, settings=settings)
    try:
        logged: dict[str, Any] = {
            key: wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
            for key, (columns, rows) in tables.items()
        }
        run.log(logged | {f"figures/{path.stem}": wandb.Image(str(path)) for path in images}, step=step)
        run.summary.update(dict(summary))
        artifact = wandb.Artifact(artifact_name(name, run.id), type=kind)
        for path in files:
            artifact.add_file(str(path), name=str(path.relative_to(folder)))
        run.log_artifact(artifact)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def artifact_name(name: str, run_id: str) -> str:
    """A name that W&B takes: letters, digits, `-`, `_` and `.`, at most 128 of them."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[: 127 - len(run_id)] + f"-{run_id}"
