"""Engines that run the jobs of a sweep, by the name in `conf/launcher/*.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slm.runtime.settings import AUTO_COUNT, COUNT, NATURAL, POSITIVE, SWITCH, TEXT, Kind, check_kinds, one_of, or_null
from slm.sweep.launchers.base import Launcher
from slm.sweep.launchers.local import Local
from slm.sweep.launchers.ray import Ray
from slm.sweep.launchers.slurm import Slurm

LAUNCHERS: dict[str, Callable[..., Launcher]] = {"local": Local, "slurm": Slurm, "ray": Ray}

KINDS: dict[str, dict[str, Kind]] = {
    "local": {
        "slots": AUTO_COUNT,
        "threads": AUTO_COUNT,
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

__all__ = ["LAUNCHERS", "Launcher", "open_launcher"]


def open_launcher(settings: Mapping[str, Any], folder: Path, *, jobs: int) -> Launcher:
    """The engine of `settings` (the launcher group) for `jobs` runs under `folder`.

    Raises `ValueError` for an invalid setting or an extra that is not installed.
    """
    check_kinds({"launcher": settings}, {"launcher.name": one_of(*LAUNCHERS), "launcher.tries": COUNT})
    kinds = KINDS[settings["name"]]
    check_kinds({"launcher": settings}, {f"launcher.{key}": kind for key, kind in kinds.items()})
    return LAUNCHERS[settings["name"]](settings, folder, jobs=jobs)
