"""Engines that run the jobs of a sweep, by the name in `conf/launcher/*.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from slm.runtime.settings import AUTO_COUNT, COUNT, NATURAL, POSITIVE, SWITCH, TEXT, Kind, check_kinds, one_of, or_null
from slm.sweep.job import Job
from slm.sweep.launchers.local import Local
from slm.sweep.launchers.ray import Ray
from slm.sweep.launchers.slurm import Slurm


class Launcher(Protocol):
    """An engine that runs jobs. None of its methods waits for a job."""

    def width(self) -> int:
        """How many jobs run at a time according to the settings."""

    def free(self) -> int:
        """How many jobs `start` takes now."""

    def adopt(self, jobs: Iterable[Job]) -> list[str]:
        """Take over the jobs that an earlier master started and that still run or queue; returns their names."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs, at most `free()`."""

    def ended(self) -> dict[str, int | None]:
        """Jobs that ended since the last call: name and exit code (negative for a signal, None if unknown)."""

    def stop(self, *, force: bool = False) -> None:
        """Let all jobs save a checkpoint and end, or end them `force`. `ended` reports them."""


LAUNCHERS: dict[str, Callable[..., Launcher]] = {"local": Local, "slurm": Slurm, "ray": Ray}

KINDS: dict[str, dict[str, Kind]] = {
    "local": {
        "slots": AUTO_COUNT,
        "threads": AUTO_COUNT,
        "gpus_per_job": NATURAL,
        "jobs_per_gpu": AUTO_COUNT,
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


def open_launcher(settings: Mapping[str, Any], folder: Path, *, jobs: int) -> Launcher:
    """The engine of `settings` (the launcher group) for `jobs` runs under `folder`.

    Raises `ValueError` for an invalid setting or an extra that is not installed.
    """
    check_kinds({"launcher": settings}, {"launcher.name": one_of(*LAUNCHERS), "launcher.tries": COUNT})
    kinds = KINDS[settings["name"]]
    check_kinds({"launcher": settings}, {f"launcher.{key}": kind for key, kind in kinds.items()})
    return LAUNCHERS[settings["name"]](settings, folder, jobs=jobs)
