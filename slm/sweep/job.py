"""Start and stop jobs. A job is a process of train.py that holds a lock in its run directory as long as it lives.

The master (the process of sweep.py) takes `job.lock` and the job inherits it, so the kernel frees the lock when the job
ends, even if the master ended before. A master that is killed and started again therefore sees which jobs still run,
and starts no job twice. `job.pid` holds the process id, the slot (`launchers/local.py`) and the machine; `job.log`
holds the output of all starts.

On Windows a process cannot inherit a lock, so a job counts as running while train.py holds its own lock. In the seconds
before train.py takes this lock, a new master may start a second process, which ends with an error.
"""

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

# The shell of the job writes job.pid before it becomes train.py, so that the file exists even if the master is killed.
# Its arguments are the path of job.pid ($0), the slot, the machine, and then the command.
NOTE_AND_BECOME = 'echo "$$ $1 $2" >"$0"; shift 2; exec "$@"'


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command and the run directory in which it runs; `folder` is an absolute path."""

    name: str
    folder: Path
    command: tuple[str, ...]


def begin(job: Job, environment: Mapping[str, str], *, slot: int = 0) -> subprocess.Popen[bytes] | None:
    """Start `job`, in its own session so that Ctrl-C does not reach it; returns None if the job runs already."""
    with lock_and_log(job) as files:
        if files is None:
            return None
        lock, log = files
        common: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        if fcntl is None:
            group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
            process = subprocess.Popen(job.command, stdout=log, creationflags=group, **common)
            (job.folder / PID).write_text(f"{process.pid} {slot} {platform.node()}\n", encoding="utf-8")
            return process
        return subprocess.Popen(
            ["sh", "-c", NOTE_AND_BECOME, str(job.folder / PID), str(slot), platform.node(), *job.command],
            stdout=log,
            pass_fds=[lock.fileno()],
            start_new_session=True,
            **common,
        )


def environment_of_a_job() -> dict[str, str]:
    """The environment of this process without the variables in `NOT_FOR_THE_JOB`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(NOT_FOR_THE_JOB)}


@contextmanager
def lock_and_log(job: Job) -> Iterator[tuple[IO[bytes], IO[bytes]] | None]:
    """Acquire the lock of `job`; yields the lock and the log, to be inherited, or None if the job runs already."""
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = None if _is_taken(job.folder / TRAINING_LOCK) else _take(job.folder / LOCK)
    if lock is None:
        yield None
        return
    (job.folder / PID).unlink(missing_ok=True)  # by now the id of an earlier job may belong to another process
    with lock, (job.folder / LOG).open("ab") as log:
        yield lock, log


def has_job(folder: Path) -> bool:
    """Whether a job runs in `folder`."""
    return _is_taken(folder / (LOCK if fcntl else TRAINING_LOCK))


def is_running(folder: Path) -> bool:
    """Whether a job, or a train.py started by hand, runs in `folder`."""
    return has_job(folder) or _is_taken(folder / TRAINING_LOCK)


def id_and_slot(folder: Path) -> tuple[int, int] | None:
    """Process id and slot of the job that runs in `folder`; None without a job, or until the job has written them.

    Also None for a job of another machine on a shared file system: its process id means nothing here.
    """
    with suppress(OSError, ValueError):
        if not has_job(folder):
            return None
        number, slot, machine = (folder / PID).read_text(encoding="utf-8").split()
        return (int(number), int(slot)) if machine == platform.node() else None
    return None


def stop(process_id: int, *, force: bool = False) -> None:
    """Tell a job to save and end; with `force`, kill its session (with its data-parallel ranks and loader workers)."""
    with suppress(OSError):  # the job has ended
        if not hasattr(os, "killpg"):  # on Windows SIGTERM kills a process, and Ctrl-Break tells it to end
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
    """Open and lock the file at `path` (on Windows, only open it); None if another process has locked the file."""
    lock = path.open("ab")
    if fcntl is None:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
