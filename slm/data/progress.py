"""Progress on stderr: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOG_SECONDS = 20.0  # between two lines of a log


def say(message: str) -> None:
    """One line for the person at the prompt."""
    _print(f"data: {message}")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: float | None, unit: str, *, room: str = "data") -> Iterator[Callable[[float], None]]:
    """Gives a function that is called with the amount done since its last call; `total` None is an unknown end.

    `room` says which part of slm speaks.
    """
    show = _bar if sys.stderr.isatty() else _log
    with show(f"{room}: {what}", total, unit) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn(f"{{task.completed:,.0f}} {unit}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)


@contextmanager
def _log(what: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    start = last = time.monotonic()
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= _LOG_SECONDS:
            last = now
            left = f" of {total:,.0f}, {(now - start) * (total / done - 1):.0f} s left" if total and done else ""
            _print(f"{what}: {done:,.0f} {unit}{left}")

    _print(f"{what} ...")
    yield advance
    _print(f"{what}: {done:,.0f} {unit} in {time.monotonic() - start:.1f} s")
