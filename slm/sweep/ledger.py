"""What became of a cell, told by its run directory alone.

`result.json`, which train.py writes last and atomically, counts first; then `failure.json`, which the master writes for
a job that ended without one. A file that is cut short or no JSON counts as absent: the cell is trained again, which
costs nothing where the run is done. The folder of an evaluation is judged by its results.json instead.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from slm.sweep.job import LOG

Status = Literal["completed", "diverged", "failed", "interrupted", "impossible", "not_started"]

FAILURE = "failure.json"
LOG_LINES = 20
"""Last lines of a job's log that its failure record keeps."""
TAIL_BYTES = 8192
"""Read of the end of a metrics.csv: some fifty rows."""


@dataclass(frozen=True)
class Outcome:
    """What became of a cell, and why in a sentence if it has no result."""

    status: Status
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, by the newest row of its metrics.csv."""

    tokens: int
    loss: float | None
    """Mean training loss, in nats a token."""
    tokens_per_second: float | None


def outcome_of(folder: Path) -> Outcome:
    """What became of the job in `folder`, as far as its files say; a run that goes on counts as interrupted."""
    result, failure = _read(folder / "result.json"), _read(folder / FAILURE)
    if result.get("status") == "completed" or evaluation_of(folder):
        return Outcome("completed")
    steps = f"step {result.get('steps')} of {result.get('planned_steps')}"
    if result.get("status") == "diverged":
        return Outcome("diverged", f"diverged at {steps}, with a training loss of {_shown(result)}")
    if failure:
        return Outcome("failed", str(failure.get("why")))
    if result.get("status") == "interrupted":
        return Outcome("interrupted", f"interrupted at {steps}")
    if (folder / "config.yaml").exists():
        return Outcome("interrupted", "ended without a result")
    return Outcome("not_started")


def evaluation_of(folder: Path) -> dict[str, Any]:
    """The one entry of what evaluate.py wrote into `folder`; empty unless everything asked of it was measured."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        (entry,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        if entry["status"] == "completed" and not any("error" in task for task in entry["tasks"].values()):
            return dict(entry)
    return {}


def record_failure(folder: Path, *, why: str, exit_code: int | None, starts: int) -> None:
    """Write down that the run in `folder` failed: `exit_code` is negative for a signal, None where nobody saw it."""
    failure = {
        "why": why,
        "exit_code": exit_code,
        "signal": -exit_code if exit_code is not None and exit_code < 0 else None,
        "starts": starts,
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "log": log_tail(folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FAILURE}.partial"
    partial.write_text(json.dumps(failure, indent=2) + "\n")
    os.replace(partial, folder / FAILURE)


def log_tail(folder: Path) -> list[str]:
    """The last lines of the job's log that say something."""
    with suppress(OSError), (folder / LOG).open(errors="replace") as log:
        return list(deque((line.rstrip() for line in log if line.strip()), LOG_LINES))
    return []


def make_ready_to_retry(folder: Path) -> None:
    """Let a run that failed go on from its checkpoint, and one that diverged start anew; what was there is kept.

    A failure record is numbered. A diverged run's folder is renamed NAME-1.retried, and its result
    diverged.json, which no table of runs reads.
    """
    if _read(folder / "result.json").get("status") == "diverged":
        os.replace(folder / "result.json", folder / "diverged.json")
        os.replace(folder, _unused(folder.with_name(folder.name + ".retried")))
    elif (folder / FAILURE).exists():
        os.replace(folder / FAILURE, _unused(folder / FAILURE))


def progress_of(folder: Path) -> Progress | None:
    """How far the run in `folder` is; None before its first row."""
    try:
        latest = _latest_values(folder / "metrics.csv")
        speed, loss = latest.get("time/tokens_per_second"), latest.get("train/loss")
        return Progress(
            tokens=int(latest["tokens"]),
            loss=float(loss) if loss else None,
            tokens_per_second=float(speed) if speed else None,
        )
    except (OSError, ValueError, KeyError):
        return None


def _latest_values(table: Path) -> dict[str, str]:
    """The newest value of each column, by the whole lines at the end of a CSV file."""
    with table.open("rb") as file:
        header = file.readline()
        start = max(len(header), table.stat().st_size - TAIL_BYTES)
        file.seek(start)
        lines = file.read().decode().split("\n")[start > len(header) : -1]  # at either end there may be half a line
    return {key: value for row in csv.DictReader([header.decode(), *lines]) for key, value in row.items() if value}


def _unused(path: Path) -> Path:
    """`path` with the first number behind its stem that is not taken."""
    number = 1
    while (numbered := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return numbered


def _shown(result: Mapping[str, Any]) -> str:
    loss = result.get("train_loss_final")
    return f"{loss:.3g}" if isinstance(loss, float) and math.isfinite(loss) else "no finite number"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none that is whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
