"""Open the trackers that a `logger` config asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.tracking.base import Tracker, Trackers
from slm.tracking.csv_file import CsvTracker
from slm.tracking.tensorboard_file import TensorBoardTracker, check_tensorboard
from slm.tracking.wandb_run import WandbTracker, check_wandb


def check_logger(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for `logger` settings that cannot work here; opens and writes nothing."""
    if settings["wandb"]:
        check_wandb(settings)
    if settings["tensorboard"]:
        check_tensorboard()


def open_trackers(
    folder: Path,
    *,
    name: str,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    columns: Sequence[str],
    resume_step: int = 0,
) -> Trackers:
    """Open all trackers of the run directory `folder`; `settings` is the `logger` config group.

    `columns` are those of metrics.csv. Raises `ValueError` for settings that `check_logger` refuses.
    """
    trackers: list[Tracker] = [CsvTracker(folder / "metrics.csv", columns, resume_step=resume_step)]
    if settings["wandb"]:
        trackers.append(WandbTracker(folder, config, name=name, settings=settings))
    if settings["tensorboard"]:
        trackers.append(TensorBoardTracker(folder, resume_step=resume_step))
    return Trackers(trackers)
