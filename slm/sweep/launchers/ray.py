"""Run jobs as Ray tasks, on this machine or on a Ray cluster that shares the file system.

If the master (the process of sweep.py) is killed, Ray ends its tasks. A train.py that outlives its task keeps its lock,
and the task that a new master starts waits for this lock (`remote.py`).
"""

import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.runtime.system import num_cores
from slm.sweep.job import Job, id_and_slot, stop
from slm.sweep.launchers.gpus import visible_gpus
from slm.sweep.launchers.remote import UNLIMITED, RemoteJob


class Ray:
    """Queues all jobs at once; Ray runs as many at a time as `cpus_per_job` and `gpus_per_job` allow."""

    def __init__(self, settings: Mapping[str, Any], folder: Path, *, num_jobs: int) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError("launcher=ray needs Ray: pip install 'slm[ray]'") from None
        self.ray, self.address = ray, settings["address"]
        self.environment = {"OMP_NUM_THREADS": str(settings["cpus_per_job"])}
        self.resources = {"num_cpus": settings["cpus_per_job"], "num_gpus": settings["gpus_per_job"]}
        # Without retries by Ray, because the master decides whether a job is started again.
        self.run_job = ray.remote(**self.resources, max_retries=0)(lambda job: job())
        self._running: dict[str, tuple[Job, Any]] = {}

    def max_running(self) -> int:
        """The number of jobs for which this machine has cores and GPUs; unlimited on a cluster."""
        if self.address is not None:
            return UNLIMITED
        available = {"num_cpus": num_cores(), "num_gpus": len(visible_gpus())}
        return max(1, min(available[kind] // per_job for kind, per_job in self.resources.items() if per_job))

    def num_free(self) -> int:
        return UNLIMITED  # Ray queues jobs

    def adopt(self, jobs: Iterable[Job]) -> list[str]:
        return []  # tasks end with the master that started them

    def start(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; the first call joins or starts the cluster. Raises `ValueError` if Ray does not start."""
        if not self.ray.is_initialized():
            self._connect()
        for job in jobs:
            self._running[job.name] = job, self.run_job.remote(RemoteJob(job, self.environment))

    def collect_ended(self) -> dict[str, int | None]:
        """Jobs that ended, with exit codes. A task that was cancelled, or lost with its worker or node, has no code."""
        if not self._running:
            return {}
        tasks = [task for _, task in self._running.values()]
        ended, _ = self.ray.wait(tasks, num_returns=len(tasks), timeout=0)
        codes = {name: self._code(task) for name, (_, task) in self._running.items() if task in ended}
        for name in codes:
            del self._running[name]
        return codes

    def stop(self, *, force: bool = False) -> None:
        """Interrupt all tasks, and train.py saves; with `force`, kill all workers and the jobs of this machine."""
        for job, task in self._running.values():
            if force and (found := id_and_slot(job.folder)):
                process_id, _ = found
                stop(process_id, force=True)
            self.ray.cancel(task, force=force)

    def _connect(self) -> None:
        old_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.ray.init(address=self.address, log_to_driver=False)
        except Exception as error:  # Ray has no narrower exception for a cluster that does not answer
            address = "null" if self.address is None else self.address
            why = " ".join(str(error).split())
            raise ValueError(f"launcher.address={address}: Ray does not answer and does not start ({why})") from error
        finally:  # Ray installs a SIGTERM handler that would end the master at once
            for number, handler in old_handlers.items():
                signal.signal(number, handler)

    def _code(self, task: Any) -> int | None:
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError:
            return None
