"""Jobs as processes of this machine, each in a slot: its GPUs or its share of the cores.

A slot does not pin its job to cores: the system moves single threads well, and a pinned job would share its core with
whatever else runs there. All slots have the same number of threads, and it follows from the machine and the sweep
alone, because sums over several threads round differently: a sweep that is started again must give the same bits.

Without GPUs and with one thread a job, `warm_start` forks jobs from a process that has imported what they need.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from slm.sweep.job import Job, begin, environment_of_a_job, id_and_slot, is_job, is_running, send
from slm.sweep.launchers.forked import SERVER_LOST, begin_forked


@dataclass
class Running:
    """A job that was started here, or by an earlier master (then without a process of ours)."""

    folder: Path
    slot: int
    process: subprocess.Popen[bytes] | ForkServerProcess | None


class Local:
    """Slots on this machine."""

    def __init__(self, settings: Mapping[str, Any], folder: Path, *, jobs: int) -> None:
        gpus = visible_gpus()
        self.environments = slot_environments(settings, jobs=jobs, gpus=gpus)
        warm, alone = settings["warm_start"], self.environments[0]["OMP_NUM_THREADS"] == "1"
        # Neither threads nor what a driver holds survives a fork.
        self._warm = warm and alone and not gpus and sys.platform == "linux"
        self._running: dict[str, Running] = {}
        self._stopping = False

    def width(self) -> int:
        """Slots."""
        return len(self.environments)

    def free(self) -> int:
        """Slots that are empty."""
        return max(0, len(self.environments) - len(self._running))

    def adopt(self, jobs: Iterable[Job]) -> list[str]:
        """Jobs that live although their master died; they keep the slots that they have."""
        alive = [job for job in jobs if is_running(job.folder)]
        for job in alive:
            self._running[job.name] = Running(job.folder, (id_and_slot(job.folder) or (0, 0))[1], None)
        return [job.name for job in alive]

    def start(self, jobs: Sequence[Job]) -> None:
        """Start each in an empty slot; one that runs already is adopted."""
        for job in jobs:
            taken = {running.slot for running in self._running.values()}
            slot = next(number for number in range(len(self.environments)) if number not in taken)
            self._running[job.name] = Running(job.folder, slot, self._begin(job, slot))

    def _begin(self, job: Job, slot: int) -> subprocess.Popen[bytes] | ForkServerProcess | None:
        environment = {**environment_of_a_job(), **self.environments[slot]}
        forked = begin_forked(job, environment, slot=slot) if self._warm else None
        return forked or begin(job, environment, slot=slot)

    def ended(self) -> dict[str, int | None]:
        """Of an adopted job, whose parent we are not, no exit code is known."""
        codes: dict[str, int | None] = {}
        for name, running in list(self._running.items()):
            code = _exit_code(running.process)
            if code == SERVER_LOST:
                code = running.process = None  # as if an earlier master had started it
            # Who trains by hand is waited for, but not once the sweep is told to end.
            lives = is_job if self._stopping else is_running
            if code is None and (running.process or lives(running.folder)):
                continue
            codes[name] = code
            del self._running[name]
            if code is None or code < 0:  # ranks and workers of a process that was killed would go on holding the GPU
                _signal(running, signal.SIGKILL, everyone=True)
        return codes

    def stop(self, *, at_once: bool = False) -> None:
        """SIGTERM, upon which train.py saves a checkpoint; or SIGKILL to all its processes."""
        self._stopping = True
        for running in self._running.values():
            _signal(running, signal.SIGKILL if at_once else signal.SIGTERM, everyone=at_once)

    def close(self) -> None:
        """Nothing to let go of: the server of forked jobs ends with this process."""


def _exit_code(process: subprocess.Popen[bytes] | ForkServerProcess | None) -> int | None:
    if isinstance(process, ForkServerProcess):
        return process.exitcode
    return process.poll() if process else None


def _signal(running: Running, number: signal.Signals, *, everyone: bool) -> None:
    found = id_and_slot(running.folder)
    process_id = running.process.pid if running.process else found and found[0]
    if process_id:
        send(number, process_id, everyone=everyone)


def slot_environments(settings: Mapping[str, Any], *, jobs: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """What each slot adds to the environment of its job, on a machine with `gpus`, for a sweep of `jobs` runs."""
    memory = settings["memory_gb"]
    cores, per_job = len(os.sched_getaffinity(0)), settings["gpus_per_job"] if gpus else 0
    if per_job > len(gpus):
        raise ValueError(f"launcher.gpus_per_job={per_job} is more than the {len(gpus)} GPUs here")
    room = len(gpus) // per_job if per_job else min(cores, int(_memory_bytes() / (memory * 1e9)))
    slots = max(1, min(room, jobs)) if settings["slots"] == "auto" else settings["slots"]
    if per_job and slots > room:
        raise ValueError(
            f"launcher.slots={slots} with launcher.gpus_per_job={per_job} needs more than {len(gpus)} GPUs"
        )
    threads = max(1, cores // slots) if settings["threads"] == "auto" else settings["threads"]
    return [
        # The compiler's own workers are as many as there are cores, in every job, unless told otherwise.
        {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
        | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * per_job : (slot + 1) * per_job])} if gpus else {})
        for slot in range(slots)
    ]


def visible_gpus() -> list[str]:
    """Names of the GPUs that a job may use, found without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
