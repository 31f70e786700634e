"""Engines that run the jobs of a sweep, by the name in `conf/launcher/*.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slm.sweep.launchers.base import Launcher, check, check_count
from slm.sweep.launchers.local import Local
from slm.sweep.launchers.ray import Ray
from slm.sweep.launchers.slurm import Slurm

LAUNCHERS: dict[str, Callable[..., Launcher]] = {"local": Local, "slurm": Slurm, "ray": Ray}

__all__ = ["LAUNCHERS", "Launcher", "open_launcher"]


def open_launcher(settings: Mapping[str, Any], folder: Path, *, jobs: int) -> Launcher:
    """The engine that `settings` (the launcher group) asks for, for `jobs` runs under `folder`.

    Raises `ValueError` for settings that it cannot follow, or an extra that is not installed.
    """
    check("name", settings["name"], settings["name"] in LAUNCHERS, f"one of {', '.join(LAUNCHERS)}")
    check_count("tries", settings["tries"])
    return LAUNCHERS[settings["name"]](settings, folder, jobs=jobs)
