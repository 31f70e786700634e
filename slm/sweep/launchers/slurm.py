"""Run jobs on a SLURM cluster; submitit submits them as arrays.

`squeue` tells whether a job is queued or runs. (submitit asks `sacct` instead, and on a cluster without accounting it
waits forever for a job that was killed.) Everything else is read from the run directory (`remote.py`). A job that SLURM
preempts is requeued, by SLURM or by submitit, and train.py continues from its checkpoint.
"""

import hashlib
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from slm.sweep.job import Job
from slm.sweep.launchers.remote import EXIT, UNLIMITED, Beats, RemoteJob, exit_code

ID = "job.slurm"
"""File in a run directory with the SLURM id of the last submission."""
ASK_SECONDS = 10.0
"""Seconds between two queries of the scheduler and the shared disk, to spare both for other users."""
MAX_TIMEOUTS = 1_000_000
"""How often a job may reach its time limit and continue: no limit in practice."""


class Slurm:
    """Submits every ready job; `array_parallelism` and the cluster limit how many run at a time."""

    def __init__(self, settings: Mapping[str, Any], folder: Path, *, num_jobs: int) -> None:
        self.environment = {"OMP_NUM_THREADS": str(settings["cpus_per_job"])}
        if settings["gpus_per_job"] == 0:  # without cgroups a job sees all GPUs of its node
            self.environment["CUDA_VISIBLE_DEVICES"] = ""
        self.beats = Beats(settings)
        self.array_parallelism = settings["array_parallelism"]
        self.scheduler = Submitit(settings, folder)
        self._submitted: dict[str, tuple[Job, str]] = {}  # name -> the job and its SLURM id
        self._states: dict[str, str] | None = None  # SLURM id -> state; None while SLURM does not answer
        self._asked_at = float("-inf")
        self._stopping, self._force = False, False

    def max_running(self) -> int:
        """The number of jobs of one array that run at a time if the cluster has room."""
        return int(self.array_parallelism)

    def num_free(self) -> int:
        return 0 if self._states is None else UNLIMITED  # SLURM queues any number, if it answers

    def adopt(self, jobs: Iterable[Job]) -> list[str]:
        """Take over the jobs whose last submission queues or runs. Raises `ValueError` if SLURM does not answer."""
        self._states = self.scheduler.states()
        if self._states is None:
            raise ValueError("launcher=slurm: SLURM's controller does not answer squeue: try again later")
        for job in jobs:
            with suppress(OSError):
                job_id = (job.folder / ID).read_text(encoding="utf-8")
                if job_id in self._states:
                    self._submitted[job.name] = job, job_id
        return list(self._submitted)

    def start(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / EXIT).unlink(missing_ok=True)
            self.beats.forget(job.folder)
        job_ids = self.scheduler.submit([RemoteJob(job, self.environment) for job in jobs])
        for job, job_id in zip(jobs, job_ids, strict=True):
            (job.folder / ID).write_text(job_id, encoding="utf-8")
            self._submitted[job.name] = job, job_id

    def collect_ended(self) -> dict[str, int | None]:
        """Jobs that wrote an exit code, and lost jobs (`remote.py`), whose exit code is unknown."""
        if self._force:
            remaining, self._submitted = self._submitted, {}
            return dict.fromkeys(remaining)
        if time.monotonic() - self._asked_at < ASK_SECONDS:
            return {}
        self._states = self.scheduler.states()
        self._asked_at = time.monotonic()
        codes: dict[str, int | None] = {}
        for name, (job, job_id) in list(self._submitted.items()):
            code = exit_code(job.folder)
            if code is not None or self._is_lost(job, job_id):
                codes[name] = code
                del self._submitted[name]
        return codes

    def stop(self, *, force: bool = False) -> None:
        """Cancel all jobs, upon which train.py saves a checkpoint. With `force`, do not wait for their end."""
        self._stopping, self._force = True, force
        self._asked_at = float("-inf")
        self.scheduler.cancel([job_id for _, job_id in self._submitted.values()])

    def _is_lost(self, job: Job, job_id: str) -> bool:
        if self._states is None:
            return False
        state = self._states.get(job_id)
        if state is None and self._stopping:
            return True
        if state not in (None, "RUNNING", "COMPLETING"):  # queued: a job that waits has no beat
            self.beats.forget(job.folder)
            return False
        if not self.beats.is_silent(job.folder):
            return False
        if state is not None:
            self.scheduler.cancel([job_id])
        return True


class Submitit:
    """Access to SLURM through submitit and `squeue`."""

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        try:
            from submitit import SlurmExecutor
        except ImportError:
            raise ValueError("launcher=slurm needs submitit: pip install 'slm[slurm]'") from None
        # `squeue` finds jobs by this name, even if the master was killed before it wrote their ids.
        self.name = f"slm-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        try:
            self.executor = SlurmExecutor(folder / ".submitit", max_num_timeout=MAX_TIMEOUTS)
        except RuntimeError:
            raise ValueError("launcher=slurm finds no SLURM here (no srun): start sweep.py on a login node") from None
        memory = settings["memory_gb"]
        optional = {
            "partition": settings["partition"],
            "account": settings["account"],
            "gpus_per_node": settings["gpus_per_job"],
            "mem": f"{memory}GB" if memory else None,
        }
        self.executor.update_parameters(
            job_name=self.name,
            time=settings["time_minutes"],
            cpus_per_task=settings["cpus_per_job"],
            array_parallelism=settings["array_parallelism"],
            signal_delay_s=settings["signal_seconds"],
            stderr_to_stdout=True,
            additional_parameters={"requeue": True, **(settings["sbatch"] or {})},
            **{key: value for key, value in optional.items() if value},
        )

    def submit(self, functions: Sequence[RemoteJob]) -> list[str]:
        """Submit `functions` as one array; returns their ids. Raises `ValueError` if SLURM refuses."""
        from submitit.core.utils import FailedJobError

        try:
            with self.executor.batch():
                jobs = [self.executor.submit(function) for function in functions]
        except FailedJobError as error:
            raise ValueError(f"SLURM refused the launcher.* settings: {'; '.join(str(error).splitlines())}") from error
        return [job.job_id for job in jobs]

    def states(self) -> dict[str, str] | None:
        """SLURM id -> state, from `squeue`; None if the controller does not answer."""
        command = ["squeue", "--noheader", "--array", f"--name={self.name}", "--format=%i %T"]
        result = subprocess.run(command, capture_output=True, encoding="utf-8")
        return dict(line.split() for line in result.stdout.splitlines()) if result.returncode == 0 else None

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs with `scancel`."""
        if ids:
            subprocess.run(["scancel", *ids], capture_output=True)
