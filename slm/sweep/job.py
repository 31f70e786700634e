"""A job: a process of train.py in a run directory, which holds a lock as long as it lives.

The master takes `job.lock` and the process inherits it, so the kernel frees the lock when the job ends, even if the
master ended before. A master that is killed and started again therefore sees which jobs still run, and starts none
twice. `job.pid` holds the process id, the slot and the machine; `job.log` the output of all starts.

A process inherits no lock on Windows. There the lock of train.py itself counts, which it takes some seconds after its
start: a master that is killed and started again within these may start a second process, which then ends with an error.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slm.runtime.files import LOCK as TRAINING_LOCK

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK, PID, LOG = "job.lock", "job.pid", "job.log"

NOT_FOR_THE_JOB = ("SLURM_", "SUBMITIT_", "PMI_", "PMIX_", "TORCHELASTIC_")
"""Prefixes of variables that srun, MPI and torchrun set for their processes, which a job must not inherit."""

# The job itself writes its id before it becomes train.py, so that the file exists even if the master is killed.
NOTE_AND_BECOME = 'echo "$$ $1 $2" >"$0"; shift 2; exec "$@"'


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run, and where."""

    name: str
    folder: Path
    """The run directory; absolute."""
    command: tuple[str, ...]


def begin(job: Job, environment: Mapping[str, str], *, slot: int = 0) -> subprocess.Popen[bytes] | None:
    """Start `job` in a session of its own, so that Ctrl-C reaches only the master; None if it runs already."""
    with held(job) as files:
        if files is None:
            return None
        lock, log = files
        usual: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        if fcntl is None:
            group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
            process = subprocess.Popen(job.command, stdout=log, creationflags=group, **usual)
            (job.folder / PID).write_text(f"{process.pid} {slot} {platform.node()}\n", encoding="utf-8")
            return process
        return subprocess.Popen(
            ["sh", "-c", NOTE_AND_BECOME, str(job.folder / PID), str(slot), platform.node(), *job.command],
            stdout=log,
            pass_fds=[lock.fileno()],
            start_new_session=True,
            **usual,
        )


def environment_of_a_job() -> dict[str, str]:
    """The environment of this process without `NOT_FOR_THE_JOB`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(NOT_FOR_THE_JOB)}


@contextmanager
def held(job: Job) -> Iterator[tuple[IO[bytes], IO[bytes]] | None]:
    """The acquired lock of `job` and its log, both for its process to inherit; None if the job runs already."""
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = None if _is_taken(job.folder / TRAINING_LOCK) else _take(job.folder / LOCK)
    if lock is None:
        yield None
        return
    (job.folder / PID).unlink(missing_ok=True)  # the id of an earlier job may be another process's now
    with lock, (job.folder / LOG).open("ab") as log:
        yield lock, log


def is_job(folder: Path) -> bool:
    """Whether a job runs in `folder`."""
    return _is_taken(folder / (LOCK if fcntl else TRAINING_LOCK))


def is_running(folder: Path) -> bool:
    """Whether a job, or a train.py started by hand, runs in `folder`."""
    return is_job(folder) or _is_taken(folder / TRAINING_LOCK)


def id_and_slot(folder: Path) -> tuple[int, int] | None:
    """Process id and slot of the job that runs in `folder` on this machine; None without one, or while it starts.

    On a shared file system a job of another machine holds the lock too, but its id has no meaning here.
    """
    with suppress(OSError, ValueError):
        if not is_job(folder):
            return None
        number, slot, machine = (folder / PID).read_text(encoding="utf-8").split()
        return (int(number), int(slot)) if machine == platform.node() else None
    return None


def stop(process_id: int, *, force: bool = False) -> None:
    """Let a job save and end, if it still runs; or kill its session `force` (data-parallel ranks, loader workers)."""
    with suppress(OSError):  # it has ended
        if not hasattr(os, "killpg"):  # Windows, where SIGTERM kills a process, and Ctrl-Break reaches its group
            os.kill(process_id, signal.SIGTERM if force else getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        elif force:
            os.killpg(process_id, signal.SIGKILL)
        else:
            os.kill(process_id, signal.SIGTERM)


def _is_taken(path: Path) -> bool:
    if not path.exists():
        return False
    if fcntl is None:
        from filelock import FileLock, Timeout

        try:
            FileLock(path).acquire(timeout=0).lock.release()
        except Timeout:
            return True
        return False
    if lock := _take(path):
        lock.close()
    return lock is None


def _take(path: Path) -> IO[bytes] | None:
    """The open file, and locked where a process inherits that; None if another process has locked it."""
    lock = path.open("ab")
    if fcntl is None:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
