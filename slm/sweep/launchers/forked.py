"""Fork jobs from the fork server of `multiprocessing`, which has already imported torch; for Linux without GPUs.

Importing torch and Lightning takes seconds of CPU time, more than a small job may train. The server imports them once,
without starting a thread or a torch operation, because neither survives a fork. Apart from the imports, a forked job is
the same as `python SCRIPT ...`. If the server is killed, its jobs continue.
"""

import atexit
import multiprocessing
import os
import platform
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from unittest.mock import patch

from slm.sweep.job import PID, Job, lock_and_log

MODULES = ["slm.training.imports", "slm.training.run", "slm.tracking.preload"]
"""Modules that the fork server imports, and with them nearly everything that train.py imports."""


class Descriptor:
    """A descriptor of an open file. A process that unpickles it gets the number of its own copy of the descriptor."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[object, ...]:
        return type(DupFd(self.number)).detach, (DupFd(self.number),)


def start_server(environment: Mapping[str, str]) -> None:
    """Start the fork server unless it runs already. OpenMP reads `environment` only then, when torch is imported."""
    multiprocessing.set_forkserver_preload(MODULES)
    with patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()


def begin_forked(job: Job, environment: Mapping[str, str], *, slot: int) -> ForkServerProcess | None:
    """Start `job` as `slm.sweep.job.begin` does; None if the job runs already or the server is lost."""
    with lock_and_log(job) as files:
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
    """Turn this forked process into `python ARGUMENTS`, with standard output and error in the files `outputs`."""
    for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), *outputs)):
        os.dup2(source, target)  # 0 is standard input, 1 is output, 2 is error
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # `multiprocessing` does not call these functions


def _become_job(job: Job, environment: Mapping[str, str], slot: int, lock: int, log: int) -> None:
    """Become the script of `job`; `lock` stays open until this process ends."""
    os.setsid()
    (job.folder / PID).write_text(f"{os.getpid()} {slot} {platform.node()}\n", encoding="utf-8")
    # The server ends when the master does, unless a job keeps this descriptor open.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    become_script(job.command[1:], environment, (log, log))
