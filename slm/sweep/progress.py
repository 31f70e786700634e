"""Progress of an analysis: a bar with the time left on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

QUIET_SECONDS = 2.0


class Progress:
    """`report(what, done, total)` as often as there is something to say."""

    def __init__(self) -> None:
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.bar.add_task("reading", total=None)
        self.last = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def report(self, what: str, done: int, total: int) -> None:
        """Say that `what` is being done, after `done` of `total` steps."""
        if sys.stderr.isatty():
            self.bar.update(self.task, description=what, completed=done, total=total)
        elif time.monotonic() - self.last > QUIET_SECONDS:
            self.last = time.monotonic()
            print(f"{what} ({done}/{total})", file=sys.stderr, flush=True)
