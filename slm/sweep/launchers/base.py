"""What the master asks of an engine that runs jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from slm.runtime.settings import written_out
from slm.sweep.job import Job


class Launcher(Protocol):
    """Runs jobs somewhere. None of its methods waits for a job."""

    def width(self) -> int:
        """How many jobs run at a time, as far as the settings tell."""

    def free(self) -> int:
        """How many jobs `start` takes now."""

    def adopt(self, jobs: Iterable[Job]) -> list[str]:
        """Names of those that an earlier master started and that still run or queue: they are waited for."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs, at most `free()`."""

    def ended(self) -> dict[str, int | None]:
        """Jobs that ended since the last call: name and exit code, negative for a signal, None where nobody knows."""

    def stop(self, *, at_once: bool = False) -> None:
        """Let all jobs save a checkpoint and end; or end them `at_once`. `ended` tells when they have."""

    def close(self) -> None:
        """Let go of what the engine keeps for its jobs; nothing is asked of it any more, and those that run go on."""


def check(key: str, value: object, good: bool, wanted: str) -> None:
    """Raise `ValueError` for a setting of the launcher that is none."""
    if not good:
        raise ValueError(f"launcher.{key}={value} must be {wanted}{written_out(value)}")


def check_count(key: str, value: object, *, least: int = 1, auto: bool = False) -> None:
    """Raise `ValueError` for what is no whole number from `least` on (nor `auto`, where that is a choice)."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    choice = "auto, or " if auto else ""
    check(key, value, whole or (auto and value == "auto"), f"{choice}a whole number of at least {least}")
