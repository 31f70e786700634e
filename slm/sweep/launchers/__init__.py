"""Launchers run the jobs of a sweep; `launcher.name` in `conf/launcher/*.yaml` chooses one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from slm.runtime.settings import AUTO_COUNT, COUNT, NATURAL, POSITIVE, SWITCH, TEXT, Kind, check_kinds, one_of, or_null
from slm.sweep.job import Job
from slm.sweep.launchers.local import Local
from slm.sweep.launchers.ray import Ray
from slm.sweep.launchers.slurm import Slurm


class Launcher(Protocol):
    """The interface of a launcher. None of its methods waits for a job."""

    def max_running(self) -> int:
        """The largest number of jobs that the settings allow to run at a time."""

    def num_free(self) -> int:
        """The number of jobs that `start` accepts now."""

    def adopt(self, jobs: Iterable[Job]) -> list[str]:
        """Take over the jobs that an earlier master started and that still run or queue; returns their names."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Start `jobs`, which are at most `num_free()`."""

    def collect_ended(self) -> dict[str, int | None]:
        """Jobs that ended since the last call: name -> exit code (negative for a signal, None if unknown)."""

    def stop(self, *, force: bool = False) -> None:
        """Tell all jobs to save a checkpoint and end; with `force`, kill them. `collect_ended` reports their ends."""


LAUNCHERS: dict[str, Callable[..., Launcher]] = {"local": Local, "slurm": Slurm, "ray": Ray}

KINDS: dict[str, dict[str, Kind]] = {
    "local": {
        **dict.fromkeys(("slots", "threads", "jobs_per_gpu"), AUTO_COUNT),
        "gpus_per_job": NATURAL,
        "memory_gb": POSITIVE,
        "warm_start": SWITCH,
    },
    "slurm": {
        **dict.fromkeys(("cpus_per_job", "array_parallelism", "time_minutes", "signal_seconds"), COUNT),
        "gpus_per_job": NATURAL,
        "sbatch": or_null(Kind("a mapping of options", lambda value: isinstance(value, Mapping))),
    },
    "ray": {"cpus_per_job": COUNT, "gpus_per_job": NATURAL, "address": or_null(TEXT)},
}


def open_launcher(settings: Mapping[str, Any], folder: Path, *, num_jobs: int) -> Launcher:
    """Open the launcher that `settings` choose. Raises `ValueError` for an invalid setting or a missing extra."""
    check_kinds({"launcher": settings}, {"launcher.name": one_of(*LAUNCHERS), "launcher.tries": COUNT})
    kinds = KINDS[settings["name"]]
    check_kinds({"launcher": settings}, {f"launcher.{key}": kind for key, kind in kinds.items()})
    return LAUNCHERS[settings["name"]](settings, folder, num_jobs=num_jobs)
