"""Jobs as processes of this machine, each in a slot: its GPUs or its share of the cores.

A slot does not pin its job to cores: the system schedules single threads well, and a pinned job would share its core
with other processes. All slots have the same number of threads, which depends on the machine and the sweep alone:
rounding depends on the number of threads, and a sweep that is started again must give the same bits.

Without GPUs and with one thread per job, `warm_start` forks jobs from the fork server of `multiprocessing`. Importing
torch and Lightning takes seconds of a core, longer than a small job may train. The server imports them once, without
starting a thread or a torch operation, because neither survives a fork. Apart from the imports, a forked job is the
same as `python SCRIPT ...`. If the server is killed, its jobs continue, like those of an earlier master.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any
from unittest.mock import patch

from slm.sweep.job import PID, Job, begin, environment_of_a_job, held, id_and_slot, is_job, is_running, send

MODULES = ["slm.training.run"]
"""Imports of the fork server: most of those of train.py. Not wandb, whose import makes a folder that the first job to
end would delete."""
SERVER_LOST = 255
"""Exit code that `multiprocessing` reports for a process whose server was killed; its own code is unknown."""


@dataclass
class Running:
    """A running job; `process` is None if an earlier master started it."""

    folder: Path
    slot: int
    process: subprocess.Popen[bytes] | ForkServerProcess | None


class Local:
    """Slots on this machine."""

    def __init__(self, settings: Mapping[str, Any], folder: Path, *, jobs: int) -> None:
        gpus = visible_gpus()
        self.environments = slot_environments(settings, jobs=jobs, gpus=gpus)
        has_one_thread = self.environments[0]["OMP_NUM_THREADS"] == "1"
        # Neither threads nor the state of a GPU's driver survive a fork.
        self._warm = settings["warm_start"] and has_one_thread and not gpus and sys.platform == "linux"
        self._running: dict[str, Running] = {}
        self._stopping = False

    def width(self) -> int:
        """The number of slots."""
        return len(self.environments)

    def free(self) -> int:
        """The number of empty slots."""
        return max(0, len(self.environments) - len(self._running))

    def adopt(self, jobs: Iterable[Job]) -> list[str]:
        """Running jobs of an earlier master; they keep their slots."""
        alive = [job for job in jobs if is_running(job.folder)]
        for job in alive:
            self._running[job.name] = Running(job.folder, (id_and_slot(job.folder) or (0, 0))[1], None)
        return [job.name for job in alive]

    def start(self, jobs: Sequence[Job]) -> None:
        """Start each in an empty slot; one that runs already is adopted."""
        for job in jobs:
            taken = {running.slot for running in self._running.values()}
            slot = next(number for number in range(len(self.environments)) if number not in taken)
            environment = {**environment_of_a_job(), **self.environments[slot]}
            forked = begin_forked(job, environment, slot=slot) if self._warm else None
            self._running[job.name] = Running(job.folder, slot, forked or begin(job, environment, slot=slot))

    def ended(self) -> dict[str, int | None]:
        """The exit code of an adopted job, which is not a child of this process, is unknown."""
        codes: dict[str, int | None] = {}
        for name, running in list(self._running.items()):
            code = _exit_code(running.process)
            if code == SERVER_LOST:
                code = running.process = None  # as if an earlier master had started it
            # A train.py started by hand is waited for, unless the sweep was told to end.
            is_alive = is_job if self._stopping else is_running
            if code is None and (running.process or is_alive(running.folder)):
                continue
            codes[name] = code
            del self._running[name]
            if code is None or code < 0:  # the ranks and workers of a killed process would keep the GPU
                _signal(running, signal.SIGKILL, everyone=True)
        return codes

    def stop(self, *, at_once: bool = False) -> None:
        """SIGTERM, upon which train.py saves a checkpoint; or SIGKILL to all its processes."""
        self._stopping = True
        for running in self._running.values():
            _signal(running, signal.SIGKILL if at_once else signal.SIGTERM, everyone=at_once)


def _exit_code(process: subprocess.Popen[bytes] | ForkServerProcess | None) -> int | None:
    if isinstance(process, ForkServerProcess):
        return process.exitcode
    return process.poll() if process else None


def _signal(running: Running, number: signal.Signals, *, everyone: bool) -> None:
    process_id = running.process.pid if running.process else (id_and_slot(running.folder) or (None,))[0]
    if process_id:
        send(number, process_id, everyone=everyone)


def slot_environments(settings: Mapping[str, Any], *, jobs: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Variables that each slot adds to the environment of its job, on a machine with `gpus`, for `jobs` runs."""
    cores, per_job = len(os.sched_getaffinity(0)), settings["gpus_per_job"] if gpus else 0
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if per_job > len(gpus):
        raise ValueError(f"launcher.gpus_per_job={per_job} is more than the {len(gpus)} GPUs here")
    room = len(gpus) // per_job if per_job else min(cores, int(memory_gb / settings["memory_gb"]))
    slots = max(1, min(room, jobs)) if settings["slots"] == "auto" else settings["slots"]
    if per_job and slots > room:
        raise ValueError(
            f"launcher.slots={slots} with launcher.gpus_per_job={per_job} needs more than {len(gpus)} GPUs"
        )
    threads = max(1, cores // slots) if settings["threads"] == "auto" else settings["threads"]
    return [
        # Without the second variable every job's compiler would start a worker for each core.
        {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
        | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * per_job : (slot + 1) * per_job])} if gpus else {})
        for slot in range(slots)
    ]


def visible_gpus() -> list[str]:
    """Names of the GPUs that a job may use, without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


class Descriptor:
    """An open file's descriptor. Unpickled in a forked process, it is the number of the descriptor there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[object, ...]:
        return type(DupFd(self.number)).detach, (DupFd(self.number),)


def start_server(environment: Mapping[str, str]) -> None:
    """Start the fork server unless it runs. OpenMP reads `environment` once, when torch is imported."""
    multiprocessing.set_forkserver_preload(MODULES)
    with patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()


def begin_forked(job: Job, environment: Mapping[str, str], *, slot: int) -> ForkServerProcess | None:
    """Start `job` as `slm.sweep.job.begin` does; None if it runs already or the server is lost."""
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
    """Turn this forked process into `python ARGUMENTS`, with standard output and error in the files `outputs`."""
    for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), *outputs)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # `multiprocessing` does not call them


def _become_job(job: Job, environment: Mapping[str, str], slot: int, lock: int, log: int) -> None:
    """Become the script of `job`; `lock` stays open until this process ends."""
    os.setsid()
    (job.folder / PID).write_text(f"{os.getpid()} {slot} {os.uname().nodename}\n")
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # the server ends with its master
    become_script(job.command[1:], environment, (log, log))
