"""One progress for every program: a bar with the time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from slm.runtime.words import duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LOG_SECONDS = 10.0
"""Least time between two lines of a log."""


def say(message: str) -> None:
    """Print one line on stderr."""
    print(message, file=sys.stderr, flush=True)


class Progress:
    """How far a task is, of `total` units (None: not known). A context manager, which leaves the terminal as it was."""

    def __init__(
        self,
        task: str,
        total: float | None = None,
        unit: str = "",
        *,
        start: float = 0.0,
        file: TextIO | None = None,
        shown: bool = True,
    ) -> None:
        self.task, self.total, self.unit, self.start, self.done = task, total, unit, start, start
        self.file, self.shown = file or sys.stderr, shown
        self.bar = _bar(self.file) if shown and self.file.isatty() else None
        self.row: Any = None

    def __enter__(self) -> Progress:
        self.begin(self.start)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def begin(self, start: float) -> None:
        """Start the clock and the bar, with `start` units done already."""
        self.start = self.done = start
        self.began = self.logged = time.monotonic()
        if self.bar:
            self.row = self.bar.add_task(self.task, total=self.total, completed=int(start), amount="")
            self.bar.start()

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            self.bar.stop()

    def advance(self, amount: float) -> None:
        """Add to what is done."""
        self.update(self.done + amount)

    def update(
        self, done: float, status: str = "", *, task: str | None = None, total: float | None = None, log: bool = False
    ) -> None:
        """Show that `done` units are done, with a `status` in words; `log` prints a line whatever the time."""
        if not self.shown:
            return
        self.done, self.task, self.total = done, task or self.task, total or self.total
        now = time.monotonic()
        if self.bar:
            amount = " ".join(filter(None, (self._amount(), status)))
            self.bar.update(self.row, description=self.task, total=self.total, completed=done, amount=amount)
        if log or (self.bar is None and now - self.logged >= LOG_SECONDS):
            self.logged = now
            line = "  ".join(filter(None, (f"{self.task} {self._amount()}", status, self._time_left(now))))
            if self.bar:
                self.bar.console.print(line, highlight=False)
            else:
                print(line, file=self.file, flush=True)

    def _amount(self) -> str:
        of = f"/{self.total:,.0f}" if self.total else ""
        return f"{self.done:,.0f}{of} {self.unit}".rstrip()

    def _time_left(self, now: float) -> str:
        if not self.total or self.done <= self.start:
            return ""
        return f"{duration((now - self.began) * (self.total - self.done) / (self.done - self.start))} left"


@contextmanager
def progress(task: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    """Gives a function that adds to the amount done; a log has the task's begin and its end in any case."""
    with Progress(task, total, unit) as shown:
        if shown.bar is None:
            say(f"{task} ...")
        yield shown.advance
        if shown.bar is None:
            say(f"{task}: {shown.done:,.0f} {unit} in {time.monotonic() - shown.began:.1f} s")


def _bar(file: TextIO) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(file=file),
        speed_estimate_period=60,
    )
