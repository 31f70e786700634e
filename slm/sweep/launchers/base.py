"""The interface of an engine that runs jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from slm.sweep.job import Job


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

    def stop(self, *, at_once: bool = False) -> None:
        """Let all jobs save a checkpoint and end, or end them `at_once`. `ended` reports them."""

    def close(self) -> None:
        """Release the engine's resources. Running jobs go on; no other method is called afterwards."""
