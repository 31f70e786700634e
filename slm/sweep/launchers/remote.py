"""Jobs on other machines: the function that an engine runs there, and how the master notices what became of it.

The engine's own word is not enough: a job that SLURM loses is pending or running there for ever. So the job function
touches `job.beat` every few seconds, and a job that is not queued and whose beat stands still for
`launcher.silence_minutes` is lost. It leaves its exit code in `job.exit`.

Starting a cell twice is harmless, which is why a master that is killed while it submits loses nothing: the second
waits for the lock of the first (`slm/sweep/job.py`), and then finds the run completed, or goes on with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from slm.sweep.job import Job, begin, environment_of_a_job, is_running, send
from slm.sweep.launchers.base import check

BEAT, EXIT = "job.beat", "job.exit"
BEAT_SECONDS = 5.0


class RemoteJob:
    """A function to run elsewhere, picklable: trains a cell and returns the exit code."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the job to its end, beating. An end by SIGTERM leaves no exit code: the scheduler may start it again."""
        (self.job.folder / EXIT).unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._pass_on)
        try:
            code = self._beat_until_the_end()
        finally:
            self.save_and_end()
        if code not in (-signal.SIGTERM, 128 + signal.SIGTERM):
            partial = self.job.folder / f"{EXIT}.partial"
            partial.write_text(json.dumps({"code": code}))
            os.replace(partial, self.job.folder / EXIT)
        return code

    def checkpoint(self) -> Any:
        """What submitit calls before a time limit, or when the job is preempted: save, end, and go on later."""
        from submitit.helpers import DelayedSubmission

        self.save_and_end()
        return DelayedSubmission(RemoteJob(self.job))

    def save_and_end(self) -> None:
        """SIGTERM, upon which train.py saves a checkpoint; waits for its end."""
        if self.process is not None and self.process.poll() is None:
            send(signal.SIGTERM, self.process.pid)
            while is_running(self.job.folder):  # in a signal handler, Popen's own lock may be held below us
                time.sleep(0.2)

    def _beat_until_the_end(self) -> int:
        self.job.folder.mkdir(parents=True, exist_ok=True)
        while True:
            (self.job.folder / BEAT).write_text(str(time.time()))
            if self.process is None:
                self.process = begin(self.job, environment_of_a_job())
            if self.process is None:  # one that an earlier master started is still at it
                time.sleep(BEAT_SECONDS)
                continue
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(BEAT_SECONDS)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.process is not None:
            send(signal.SIGTERM, self.process.pid)


class Beats:
    """Which run directories have fallen silent. Goes by this machine's clock: those of others may differ."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        minutes = settings["silence_minutes"]
        least = 3 * BEAT_SECONDS / 60
        good = isinstance(minutes, (int, float)) and minutes >= least
        check("silence_minutes", minutes, good, f"a number of at least {least:g}")
        self.seconds = 60 * minutes
        self._seen: dict[Path, tuple[str, float]] = {}

    def is_silent(self, folder: Path) -> bool:
        """Whether the beat of `folder` has stood still for too long, since it was first asked for at the earliest."""
        beat, now = _read(folder / BEAT), time.monotonic()
        before, since = self._seen.get(folder, ("", now))
        if folder not in self._seen or beat != before:
            since = now
        self._seen[folder] = beat, since
        return now - since > self.seconds

    def forget(self, folder: Path) -> None:
        """A job starts or queues anew: its silence is counted from the next question on."""
        self._seen.pop(folder, None)


def exit_code(folder: Path) -> int | None:
    """What the job function left; None where it has not ended, or has been ended."""
    with suppress(ValueError, KeyError):
        return int(json.loads(_read(folder / EXIT) or "{}")["code"])
    return None


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""
