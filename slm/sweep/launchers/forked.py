"""Jobs forked from a process that has already imported what train.py needs.

Importing torch and Lightning takes seconds of a core, longer than a small job may train. The fork server of
`multiprocessing` imports them once, while there is neither a thread nor a torch operation, because neither survives a
fork. Each job is then what `python SCRIPT ...` would be, but for the imports. If the server is killed, its jobs live
on, as those of an earlier master do.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from unittest.mock import patch

from slm.sweep.job import PID, Job, held

MODULES = ["slm.training.run"]
"""Most of train.py's imports. Not wandb: importing it makes a folder, which the first job to end would delete."""
SERVER_LOST = 255
"""Exit code of a process whose server was killed, so that nobody knows its own."""


class Descriptor:
    """An open file's descriptor; unpickled in a forked process, it is the number that the descriptor has there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[object, ...]:
        return type(DupFd(self.number)).detach, (DupFd(self.number),)


def start_server(environment: Mapping[str, str]) -> None:
    """Start the server unless it runs. OpenMP reads `environment` when torch is imported, and never again."""
    multiprocessing.set_forkserver_preload(MODULES)
    with patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()


def begin_forked(job: Job, environment: Mapping[str, str], *, slot: int) -> ForkServerProcess | None:
    """Start `job` as `slm.sweep.job.begin` does; None where it runs already, or the server is lost."""
    with held(job) as files:
        if files is None:
            return None
        descriptors = [Descriptor(file.fileno()) for file in files]
        try:
            start_server(environment)
            process = multiprocessing.get_context("forkserver").Process(
                target=_become_job, args=(job, environment, slot, *descriptors)
            )
            process.start()
        except (EOFError, OSError):
            return None
        return process


def become_script(arguments: Sequence[str], environment: Mapping[str, str], outputs: Sequence[int]) -> None:
    """Turn this forked process into `python ARGUMENTS`, with standard output and error in `outputs`."""
    for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), *outputs)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # `multiprocessing` ends a process without them


def _become_job(job: Job, environment: Mapping[str, str], slot: int, lock: int, log: int) -> None:
    """Become the script of `job`; `lock` stays open as long as this process lives."""
    os.setsid()
    (job.folder / PID).write_text(f"{os.getpid()} {slot} {os.uname().nodename}\n")
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # the server ends with its master
    become_script(job.command[1:], environment, (log, log))
