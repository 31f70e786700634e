"""Progress for the person at the prompt: a bar with time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from slm.command_line import duration

# Seconds between two lines of a log.
LOG_SECONDS = 10.0


class Progress:
    """Shows the rows of a run. Silent on all processes but the first."""

    def __init__(self, total_steps: int, *, shown: bool = True) -> None:
        self.total_steps, self.shown = total_steps, shown
        self.latest: dict[str, float] = {}
        self.first_step: int | None = None
        self.started = self.printed = time.perf_counter()
        self.bar: RichProgress | None = None
        self.task: Any = None

    def start(self, step: int) -> None:
        """Begin at `step`, which is above 0 in a continued run."""
        self.first_step, self.started = step, time.perf_counter()
        if self.shown and sys.stdout.isatty():
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            self.bar = RichProgress(*columns, console=Console(), speed_estimate_period=60)
            self.task = self.bar.add_task("training", total=self.total_steps, completed=step, status="")
            self.bar.start()

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """Show the newest row; a validation always gets a line of its own."""
        if not self.shown:
            return
        self.latest |= row
        if self.bar is not None:
            self.bar.update(self.task, completed=step, status=self._status())
        now = time.perf_counter()
        if "val/loss" in row or (self.bar is None and now - self.printed >= LOG_SECONDS):
            self.printed = now
            line = f"step {step}/{self.total_steps}  {self._status()}  {self._time_left(step)}"
            print(line, flush=True) if self.bar is None else self.bar.console.print(line, highlight=False)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()

    def _status(self) -> str:
        shown = {
            "train/loss": "loss {:.3f}",
            "val/loss": "val {:.3f}",
            "val/bits_per_byte": "({:.3f} bits/byte)",
            "time/tokens_per_second": "{:,.0f} tok/s",
            "time/mfu": "MFU {:.0%}",
        }
        return " ".join(text.format(self.latest[name]) for name, text in shown.items() if name in self.latest)

    def _time_left(self, step: int) -> str:
        done = step - (self.first_step or 0)
        seconds = (time.perf_counter() - self.started) / max(1, done) * (self.total_steps - step)
        return f"{duration(seconds)} left"
