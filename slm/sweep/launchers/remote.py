"""Run jobs on other machines: the function that a launcher runs there, and how the master notices that it ended.

The state that SLURM reports is not enough, since SLURM may show a lost job as running forever. So the job function
writes the time to `job.beat`, as a heartbeat, every few seconds. A job counts as lost if it is not queued and its beat
has not changed for `launcher.silence_minutes`. When the job ends, the function writes the exit code to `job.exit`.

If a master (process of sweep.py) is killed while it submits a job, the next master may submit the job again. The second
submission waits for the lock of the first (`slm/sweep/job.py`), and then finds the run completed or continues it.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from slm.runtime.files import read_json_object, write_json
from slm.runtime.settings import Kind, check_kind
from slm.runtime.words import is_number
from slm.sweep.job import Job, begin, environment_of_a_job, is_running, stop

BEAT, EXIT = "job.beat", "job.exit"
BEAT_SECONDS = 5.0
UNLIMITED = 1_000_000
"""Number of jobs that a launcher with its own queue accepts."""


class RemoteJob:
    """The job function: picklable; runs a job with the additional variables `environment` and returns its exit code."""

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self.job, self.environment = job, environment
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the job to its end. A job ended by SIGTERM leaves no `job.exit`, since it may be started again."""
        (self.job.folder / EXIT).unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._pass_on)
        try:
            code = self._beat_until_the_end()
        finally:
            self.save_and_end()
        if code not in (-signal.SIGTERM, 128 + signal.SIGTERM):
            write_json(self.job.folder / EXIT, {"code": code})
        return code

    def checkpoint(self) -> Any:
        """Let the job save and end, and submit it again; submitit calls this before a time limit or a preemption."""
        from submitit.helpers import DelayedSubmission

        self.save_and_end()
        return DelayedSubmission(RemoteJob(self.job, self.environment))

    def save_and_end(self) -> None:
        """Send SIGTERM, after which train.py saves a checkpoint, and wait for its end."""
        if self.process is not None and self.process.poll() is None:
            stop(self.process.pid)
            # Popen.wait might wait forever: the code that a signal handler interrupts may hold the lock of Popen.
            while is_running(self.job.folder):
                time.sleep(0.2)

    def _beat_until_the_end(self) -> int:
        self.job.folder.mkdir(parents=True, exist_ok=True)
        while True:
            (self.job.folder / BEAT).write_text(str(time.time()), encoding="utf-8")
            if self.process is None:
                self.process = begin(self.job, {**environment_of_a_job(), **self.environment})
            if self.process is None:  # another process of this job still runs
                time.sleep(BEAT_SECONDS)
                continue
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(BEAT_SECONDS)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.process is not None:
            stop(self.process.pid)


class Beats:
    """Tells in which run directories the beat has stopped, by this machine's clock: clocks of others may differ."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        least = 3 * BEAT_SECONDS / 60
        kind = Kind(f"a number of at least {least:g}", lambda value: is_number(value) and value >= least)
        check_kind("launcher.silence_minutes", settings["silence_minutes"], kind)
        self.max_silent_seconds = 60 * settings["silence_minutes"]
        self._last_change: dict[Path, tuple[str, float]] = {}  # run directory -> its beat, and when it was first seen

    def is_silent(self, folder: Path) -> bool:
        """Whether the beat of `folder` has not changed for too long, counted from the first call."""
        beat = _read(folder / BEAT)
        now = time.monotonic()
        last_beat, first_seen = self._last_change.get(folder, (None, now))
        if beat != last_beat:
            self._last_change[folder] = beat, now
            return False
        return now - first_seen > self.max_silent_seconds

    def forget(self, folder: Path) -> None:
        """Measure the silence of `folder` from now on, for a job that starts or queues again."""
        self._last_change.pop(folder, None)


def exit_code(folder: Path) -> int | None:
    """The exit code that the job function wrote; None if the function has not ended or was killed."""
    code: int | None = read_json_object(folder / EXIT).get("code")
    return code


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""
