"""The progress display of every program: a bar with the time left on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from slm.runtime.words import duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LOG_SECONDS = 10.0  # shortest time between two lines in a log


def say(message: str) -> None:
    """Print one line on stderr."""
    print(message, file=sys.stderr, flush=True)


class Progress:
    """Shows how many of `total` units (None: unknown) of a task are done. Use it in a `with` statement."""

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
        self.task, self.total, self.unit = task, total, unit
        self.start, self.done = start, start
        self.file, self.shown = file or sys.stderr, shown
        self.bar = _bar(self.file) if shown and self.file.isatty() else None
        self.bar_task: Any = None

    def __enter__(self) -> "Progress":
        self.begin(self.start)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def begin(self, start: float) -> None:
        """Start the clock and the bar; `start` units are done already."""
        self.start, self.done = start, start
        self.start_time = self.last_log_time = time.monotonic()
        if self.bar:
            self.bar_task = self.bar.add_task(self.task, total=self.total, completed=int(start), amount="")
            self.bar.start()

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            self.bar.stop()

    def advance(self, amount: float) -> None:
        """Add `amount` to the units that are done."""
        self.update(self.done + amount)

    def update(
        self, done: float, status: str = "", *, task: str | None = None, total: float | None = None, log: bool = False
    ) -> None:
        """Show that `done` units are done, and a `status` in words. With `log`, also print a line if there is a bar."""
        if not self.shown:
            return
        self.done = done
        self.task = task or self.task
        self.total = total or self.total
        now = time.monotonic()
        if self.bar:
            amount = f"{self._amount()} {status}".strip()
            self.bar.update(self.bar_task, description=self.task, total=self.total, completed=done, amount=amount)
        if log or (self.bar is None and now - self.last_log_time >= LOG_SECONDS):
            self.last_log_time = now
            line = "  ".join(filter(None, (f"{self.task} {self._amount()}", status, self._time_left(now))))
            if self.bar:
                self.bar.console.print(line, highlight=False)
            else:
                print(line, file=self.file, flush=True)

    def _amount(self) -> str:
        out_of_total = f"/{self.total:,.0f}" if self.total else ""
        return f"{self.done:,.0f}{out_of_total} {self.unit}".rstrip()

    def _time_left(self, now: float) -> str:
        if not self.total or self.done <= self.start:
            return ""
        seconds_per_unit = (now - self.start_time) / (self.done - self.start)
        return f"{duration(seconds_per_unit * (self.total - self.done))} left"


@contextmanager
def progress(task: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that adds to the amount done. A log gets a line at the start and the end of the task."""
    with Progress(task, total, unit) as display:
        if display.bar is None:
            say(f"{task} ...")
        yield display.advance
        if display.bar is None:
            say(f"{task}: {display.done:,.0f} {unit} in {time.monotonic() - display.start_time:.1f} s")


def _bar(file: TextIO) -> "Bar":
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
