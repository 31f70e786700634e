"""Read the outcome of a cell from its run directory, and decide whether a job without a result is started again.

A cell is one run of the sweep, a job is the process that trains it, and the master (sweep.py) starts the jobs. The
outcome is read from `result.json`, which train.py writes last and atomically. If there is none, it is read from
`failure.json`, which the master writes for a job that ended without a result. A truncated file counts as absent: the
job is then started again, and trains no step if its run is complete. For an evaluation, results.json is read.
"""

import csv
import json
import math
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from slm.runtime.files import read_json_object, replace, write_json
from slm.sweep.job import LOG

Status = Literal["completed", "diverged", "failed", "interrupted", "impossible", "not_started"]

FAILURE = "failure.json"
LOG_LINES = 20  # number of lines from the end of a job's log that `failure.json` keeps
TAIL_BYTES = 8192  # number of bytes read from the end of a metrics.csv: about fifty rows
KILLED = -9  # exit code of a process that SIGKILL ended; `signal.SIGKILL` does not exist on Windows
MAX_OOM_KILLS = 2
"""A cell fails once the kernel has killed its job this many times for lack of memory, with no new checkpoint."""


@dataclass(frozen=True)
class Outcome:
    """The status of a cell, and why it has no result."""

    status: Status
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """The progress of a run according to the newest rows of its metrics.csv."""

    tokens: int
    loss: float | None  # mean training loss in nats per token
    tokens_per_second: float | None


class Tries:
    """Counts how often one master has started the run in `folder` since its newest checkpoint."""

    def __init__(self, folder: Path, max_starts: int) -> None:
        self.folder, self.max_starts = folder, max_starts
        self.num_starts, self.num_oom_kills = 0, 0
        self._checkpoint_time_at_start = _checkpoint_time(folder)
        self._kernel_kills_at_start: int | None = None

    def note_start(self) -> None:
        """Count a start."""
        self.num_starts += 1
        self._checkpoint_time_at_start = _checkpoint_time(self.folder)
        self._kernel_kills_at_start = count_kernel_kills()

    def why_failed(self, code: int | None) -> str | None:
        """Return why a job that ended with exit code `code` is not started again; None if it is started again.

        `code` is negative for a signal and None if unknown. A job that exits by itself has failed, since the next start
        would have the same settings. A job that was killed continues from its checkpoint.
        """
        if code is not None and 0 <= code <= 128:  # a shell reports 128 + the number of a signal
            return f"exit code {code}: {_error_in(log_tail(self.folder))}"
        if _checkpoint_time(self.folder) != self._checkpoint_time_at_start:
            self.num_starts, self.num_oom_kills = 0, 0
        if code == KILLED and (count_kernel_kills() or 0) > (self._kernel_kills_at_start or 0):
            self.num_oom_kills += 1
        if self.num_oom_kills >= MAX_OOM_KILLS:
            return f"out of memory: killed by the kernel {self.num_oom_kills} times with no new checkpoint"
        if self.num_starts >= self.max_starts:
            return f"{how_it_ended(code)} {self.num_starts} times with no new checkpoint"
        return None


def how_it_ended(code: int | None) -> str:
    """Describe how a job with this exit code ended."""
    if code is None:
        return "ended without a result"
    number = -code if code < 0 else code - 128
    with suppress(ValueError):
        return f"killed by {signal.Signals(number).name}"
    return f"killed by signal {number}"


def count_kernel_kills() -> int | None:
    """Count the processes that this machine's kernel has killed for lack of memory since boot; None if unknown."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="utf-8").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def read_outcome(folder: Path) -> Outcome:
    """Return the outcome of the job in `folder`; a job that still runs counts as interrupted."""
    result, failure = read_json_object(folder / "result.json"), read_json_object(folder / FAILURE)
    if result.get("status") == "completed" or read_evaluation(folder):
        return Outcome("completed")
    steps = f"step {result.get('steps')} of {result.get('planned_steps')}"
    if result.get("status") == "diverged":
        loss = result.get("train_loss_final")
        is_finite = isinstance(loss, float) and math.isfinite(loss)
        last_loss = f"a training loss of {loss:.3g}" if is_finite else "no finite loss"
        return Outcome("diverged", f"diverged at {steps}, with {last_loss}")
    if failure:
        return Outcome("failed", str(failure.get("why")))
    if result.get("status") == "interrupted":
        return Outcome("interrupted", f"interrupted at {steps}")
    if (folder / "config.yaml").exists():
        return Outcome("interrupted", "ended without a result")
    return Outcome("not_started")


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Return the only entry of results.json in `folder`; empty unless the evaluation completed without errors."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        (entry,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        if entry["status"] == "completed" and not any("error" in task for task in entry["tasks"].values()):
            return dict(entry)
    return {}


def record_failure(folder: Path, *, why: str, exit_code: int | None, num_starts: int) -> None:
    """Write `failure.json` into `folder`; `exit_code` is negative for a signal and None if unknown."""
    failure = {
        "why": why,
        "exit_code": exit_code,
        "signal": -exit_code if exit_code is not None and exit_code < 0 else None,
        "starts": num_starts,
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "log": log_tail(folder),
    }
    write_json(folder / FAILURE, failure, indent=2)


def log_tail(folder: Path) -> list[str]:
    """Return the last `LOG_LINES` lines of the job's log that are not blank."""
    with suppress(OSError), (folder / LOG).open(encoding="utf-8", errors="replace") as log:
        return list(deque((line.rstrip() for line in log if line.strip()), LOG_LINES))
    return []


def make_ready_to_retry(folder: Path) -> None:
    """Let a failed run continue from its checkpoint and a diverged run start from step 0; nothing is deleted.

    A failure record is renamed to failure-1.json. The folder of a diverged run is renamed to NAME-1.retried, and the
    result.json in it to diverged.json, so that tables of runs ignore it.
    """
    if read_json_object(folder / "result.json").get("status") == "diverged":
        replace(folder / "result.json", folder / "diverged.json")
        replace(folder, _numbered(folder.with_name(folder.name + ".retried")))
    elif (folder / FAILURE).exists():
        replace(folder / FAILURE, _numbered(folder / FAILURE))


def read_progress(folder: Path) -> RunProgress | None:
    """Return the progress of the run in `folder`; None before its first row of metrics."""
    try:
        latest = _latest_values(folder / "metrics.csv")
        loss, speed = latest.get("train/loss"), latest.get("time/tokens_per_second")
        return RunProgress(tokens=int(latest["tokens"]), loss=loss, tokens_per_second=speed)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _latest_values(table: Path) -> dict[str, float]:
    """Return the newest value of each column among the complete lines at the end of a CSV file."""
    with table.open("rb") as file:
        header = file.readline()
        start = max(len(header), table.stat().st_size - TAIL_BYTES)
        file.seek(start)
        lines = file.read().decode().split("\n")[:-1]  # a run that still writes may have truncated the last line
        if start > len(header):  # reading began within a line
            lines = lines[1:]
    rows = csv.DictReader([header.decode(), *lines])
    # A later row overwrites the values of earlier rows.
    return {column: float(value) for row in rows for column, value in row.items() if value}


def _numbered(path: Path) -> Path:
    """Return `path` with -1, -2, ... after its stem: the first of these paths that does not exist."""
    number = 1
    while (candidate := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return candidate


def _error_in(log: Sequence[str]) -> str:
    errors = [line.removeprefix("error: ") for line in log if line.startswith("error: ")]
    lines = errors or log or ["its log is empty"]
    return lines[-1]


def _checkpoint_time(folder: Path) -> int:
    """Return the modification time of the newest checkpoint in ns; 0 if there is none."""
    with suppress(OSError):
        return (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    return 0
