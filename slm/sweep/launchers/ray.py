"""Jobs as Ray tasks, on this machine or a Ray cluster that shares the file system.

Ray ends the tasks of a master that is killed; a train.py that outlives its task keeps its lock, for which the task that
a new master starts waits (`remote.py`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm.sweep.job import Job, id_and_slot, send
from slm.sweep.launchers.local import visible_gpus
from slm.sweep.launchers.remote import RemoteJob

UNLIMITED = 1_000_000


class Ray:
    """Hands every job to Ray at once; it starts as many as `cpus_per_job` and `gpus_per_job` let it."""

    def __init__(self, settings: Mapping[str, Any], folder: Path, *, jobs: int) -> None:
        address = settings["address"]
        try:
            import ray
        except ImportError:
            raise ValueError("launcher=ray needs Ray: pip install 'slm[ray]'") from None
        self.ray, self.address = ray, address
        self.environment = {"OMP_NUM_THREADS": str(settings["cpus_per_job"])}
        self.resources = {"num_cpus": settings["cpus_per_job"], "num_gpus": settings["gpus_per_job"]}
        # The master decides whether a job is worth another start.
        self.train = ray.remote(**self.resources, max_retries=0)(_run)
        self._running: dict[str, Any] = {}
        self._folders: dict[str, Path] = {}

    def width(self) -> int:
        """By the cores and GPUs of this machine; unlimited on a cluster."""
        if self.address is not None:
            return UNLIMITED
        there = {"num_cpus": len(os.sched_getaffinity(0)), "num_gpus": len(visible_gpus())}
        return max(1, min(there[kind] // each for kind, each in self.resources.items() if each))

    def free(self) -> int:
        """No limit of its own: Ray queues."""
        return UNLIMITED

    def adopt(self, jobs: Iterable[Job]) -> list[str]:
        """None, since tasks end with the master that started them."""
        return []

    def start(self, jobs: Sequence[Job]) -> None:
        """Queue them; the first call joins or starts the cluster. Raises `ValueError` if that fails."""
        if not self.ray.is_initialized():
            self._connect()
        for job in jobs:
            there = replace(job, environment={**self.environment, **job.environment})
            self._running[job.name] = self.train.remote(RemoteJob(there))
            self._folders[job.name] = job.folder

    def ended(self) -> dict[str, int | None]:
        """A task that was cancelled, or whose worker or node was lost, has no exit code."""
        references = list(self._running.values())
        done, _ = self.ray.wait(references, num_returns=len(references), timeout=0) if references else ([], [])
        codes = {name: self._code(reference) for name, reference in self._running.items() if reference in done}
        for name in codes:
            del self._running[name]
        return codes

    def stop(self, *, at_once: bool = False) -> None:
        """Interrupt the tasks, which let train.py save; or kill their workers, and what these have started here."""
        for name, reference in self._running.items():
            found = id_and_slot(self._folders[name]) if at_once else None
            if found:
                send(signal.SIGKILL, found[0], everyone=True)
            self.ray.cancel(reference, force=at_once)

    def close(self) -> None:
        """Nothing is kept."""

    def _connect(self) -> None:
        try:
            with _signals_kept():
                self.ray.init(address=self.address, log_to_driver=False)
        except Exception as error:  # Ray has no narrower exception for a cluster that does not answer
            address, why = "null" if self.address is None else self.address, " ".join(str(error).split())
            raise ValueError(f"launcher.address={address}: Ray is not there and does not start ({why})") from error

    def _code(self, reference: Any) -> int | None:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError:
            return None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it connects, and would end the master at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _run(job: RemoteJob) -> int:
    return job()
