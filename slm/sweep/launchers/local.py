"""Run jobs as processes of this machine, each in a slot: some GPUs, a share of a GPU, or a share of the cores.

A slot does not pin its job to cores: the system schedules single threads well, and a pinned job would share its core
with other processes. All slots have the same number of threads, which depends only on the machine and the sweep:
rounding depends on the number of threads, and a sweep that is started again must give the same bits.

On Linux, `warm_start` forks jobs of one thread and without a GPU from a process that has imported torch (`forked.py`).
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from slm.runtime.command_line import GPU_MEMORY_SHARE
from slm.runtime.system import machine_memory, num_cores
from slm.sweep.job import Job, begin, environment_of_a_job, has_job, id_and_slot, is_running, stop
from slm.sweep.launchers.gpus import gpu_memory, memory_share, visible_gpus

SERVER_LOST = 255
"""Exit code that `multiprocessing` reports for a process whose fork server was killed; its real code is unknown."""


@dataclass
class RunningJob:
    """A running job; `process` is None if an earlier master (process of sweep.py) started it."""

    folder: Path
    slot: int
    process: subprocess.Popen[bytes] | BaseProcess | None


class Local:
    """Runs jobs in slots of this machine."""

    def __init__(self, settings: Mapping[str, Any], folder: Path, *, num_jobs: int) -> None:
        gpus = visible_gpus()
        self.environments = slot_environments(settings, num_jobs=num_jobs, gpus=gpus)
        has_one_thread = self.environments[0]["OMP_NUM_THREADS"] == "1"
        # Threads, the state of a GPU's driver and the libraries of macOS do not survive a fork.
        can_fork = has_one_thread and not gpus and hasattr(os, "fork") and sys.platform != "darwin"
        self._is_warm = settings["warm_start"] and can_fork
        self._running: dict[str, RunningJob] = {}
        self._stopping = False

    def max_running(self) -> int:
        return len(self.environments)

    def num_free(self) -> int:
        return max(0, len(self.environments) - len(self._running))

    def adopt(self, jobs: Iterable[Job]) -> list[str]:
        alive = [job for job in jobs if is_running(job.folder)]
        for job in alive:
            _, slot = id_and_slot(job.folder) or (0, 0)
            self._running[job.name] = RunningJob(job.folder, slot, None)
        return [job.name for job in alive]

    def start(self, jobs: Sequence[Job]) -> None:
        """Start each job in an empty slot; a job that runs already is adopted."""
        for job in jobs:
            taken = {running.slot for running in self._running.values()}
            slot = min({*range(len(self.environments))} - taken)
            environment = {**environment_of_a_job(), **self.environments[slot]}
            process = self._begin_forked(job, environment, slot) or begin(job, environment, slot=slot)
            self._running[job.name] = RunningJob(job.folder, slot, process)

    def collect_ended(self) -> dict[str, int | None]:
        """Jobs that ended, with exit codes. The code of an adopted job is unknown, since it is not a child process."""
        codes: dict[str, int | None] = {}
        for name, running in list(self._running.items()):
            code = _exit_code(running.process)
            if code == SERVER_LOST:  # the job is treated like a job of an earlier master
                code, running.process = None, None
            # Also wait for a train.py that was started by hand, unless the sweep was told to end.
            is_alive = has_job if self._stopping else is_running
            if code is None and (running.process or is_alive(running.folder)):
                continue
            codes[name] = code
            del self._running[name]
            if code is None or code < 0:  # its ranks and workers may survive it and hold the GPU
                _stop(running, force=True)
        return codes

    def stop(self, *, force: bool = False) -> None:
        """Send SIGTERM to all jobs, upon which train.py saves a checkpoint and ends; with `force`, kill them."""
        self._stopping = True
        for running in self._running.values():
            _stop(running, force=force)

    def _begin_forked(self, job: Job, environment: Mapping[str, str], slot: int) -> BaseProcess | None:
        if not self._is_warm:
            return None
        from slm.sweep.launchers.forked import begin_forked  # Windows cannot import this

        return begin_forked(job, environment, slot=slot)


def _exit_code(process: subprocess.Popen[bytes] | BaseProcess | None) -> int | None:
    if isinstance(process, BaseProcess):
        return process.exitcode
    return process.poll() if process else None


def _stop(running: RunningJob, *, force: bool) -> None:
    if running.process:
        process_id = running.process.pid
    else:
        process_id, _ = id_and_slot(running.folder) or (None, None)
    if process_id:
        stop(process_id, force=force)


def slot_environments(settings: Mapping[str, Any], *, num_jobs: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Variables that each slot adds to the environment of its job, on a machine with `gpus`, for `num_jobs` jobs.

    With `jobs_per_gpu` above 1, slots take the GPUs in turn, and each job has its share of a GPU's memory. Here `auto`
    means 1: before training `gpus.with_jobs_per_gpu` replaces it. Raises `ValueError` if there are too few GPUs.
    """
    core_count = num_cores()
    memory_bytes = machine_memory()
    gpus_per_job = settings["gpus_per_job"] if gpus else 0
    jobs_per_gpu = settings["jobs_per_gpu"] if gpus and settings["jobs_per_gpu"] != "auto" else 1
    if gpus_per_job > len(gpus):
        raise ValueError(f"launcher.gpus_per_job={gpus_per_job} is more than the {len(gpus)} GPUs here")
    if jobs_per_gpu > 1 and gpus_per_job != 1:
        raise ValueError(f"launcher.jobs_per_gpu={jobs_per_gpu} needs launcher.gpus_per_job=1, not {gpus_per_job}")
    num_groups = len(gpus) // gpus_per_job if gpus_per_job else 0  # a job gets one group of GPUs
    if gpus_per_job:
        max_slots = num_groups * jobs_per_gpu
    else:
        fit_in_memory = core_count if memory_bytes is None else int(memory_bytes / 1e9 / settings["memory_gb"])
        max_slots = min(core_count, fit_in_memory)
    num_slots = max(1, min(max_slots, num_jobs)) if settings["slots"] == "auto" else settings["slots"]
    if gpus_per_job and num_slots > max_slots:
        shared = f" and launcher.jobs_per_gpu={jobs_per_gpu}" if jobs_per_gpu > 1 else ""
        asked = f"launcher.slots={num_slots} with launcher.gpus_per_job={gpus_per_job}{shared}"
        raise ValueError(f"{asked} needs more than {len(gpus)} GPUs")
    num_threads = max(1, core_count // num_slots) if settings["threads"] == "auto" else settings["threads"]
    # Without the second variable, torch.compile would start one worker per core in every job.
    environment = {"OMP_NUM_THREADS": str(num_threads), "TORCHINDUCTOR_COMPILE_THREADS": str(num_threads)}
    if jobs_per_gpu > 1:
        smallest_share = min(memory_share(jobs_per_gpu, gpu_memory(name)) for name in gpus)
        environment[GPU_MEMORY_SHARE] = f"{smallest_share:.4f}"
    if not gpus:
        return [environment] * num_slots
    # Groups of `gpus_per_job` GPUs; if this is 0, one empty group hides all GPUs from the jobs.
    groups = [gpus[group * gpus_per_job : (group + 1) * gpus_per_job] for group in range(max(1, num_groups))]
    names = [",".join(group) for group in groups]
    return [environment | {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]} for slot in range(num_slots)]
