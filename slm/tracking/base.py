"""What every tracker can do, and several trackers as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tracker(Protocol):
    """A place that metrics are written to. `metrics` always holds `tokens`, the axis runs are compared on."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one row."""

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Record a generated sample; it comes before the row of its step."""

    def finish(self, summary: Mapping[str, Any], *, succeeded: bool) -> None:
        """Record final figures and close; nothing may be logged afterwards."""


class Trackers:
    """Several trackers that each get everything."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one row everywhere."""
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Record a generated sample everywhere."""
        for tracker in self.trackers:
            tracker.log_sample(step, tokens, prompt, text)

    def finish(self, summary: Mapping[str, Any], *, succeeded: bool) -> None:
        """Close all."""
        for tracker in self.trackers:
            tracker.finish(summary, succeeded=succeeded)
