"""How a sweep stands: on a terminal a table that stays in place, elsewhere a line for each change.

The time left is that of the FLOPs left at the rate at which the running cells train, and no less than that of the
slowest of them; small cells reach fewer FLOPs a second than large ones, so the end takes a little longer than it says.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slm.runtime.words import duration
from slm.sweep.execute import Standing

ORDER = ("completed", "running", "waiting", "failed", "diverged", "impossible", "not_started")
ENDS = ("completed", "diverged", "failed", "impossible")


class Board:
    """`show(standings)` as often as there is news; a context manager, which leaves the last table standing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False)
        self.said: dict[str, str] = {}
        self.begun = False

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def show(self, standings: Sequence[Standing]) -> None:
        """Bring the table up to date, or say what has changed since the last call."""
        if self.console.is_terminal:
            self.live.update(Group(Text(_summary(standings)), _table(standings)), refresh=True)
            return
        if not self.begun:  # of a sweep that goes on, what an earlier command completed is no news
            self.said = {
                standing.cell.name: _word(standing) for standing in standings if _word(standing) == "completed"
            }
            self.begun = True
            if self.said:
                print(f"{len(self.said)} of {len(standings)} completed before", file=sys.stderr, flush=True)
        changed = [
            standing for standing in standings if self.said.get(standing.cell.name, "waiting") != _word(standing)
        ]
        for standing in changed:
            self.said[standing.cell.name] = _word(standing)
            why = f" ({standing.outcome.why})" if standing.outcome.why and not standing.running else ""
            print(f"{standing.cell.name}: {_word(standing)}{why}; {_summary(standings)}", file=sys.stderr, flush=True)


def _word(standing: Standing) -> str:
    """`running`, how it ended, or `waiting`; a branch whose trunk went wrong will not start, and says why."""
    if standing.running:
        return "running"
    never = standing.outcome.status == "not_started" and standing.outcome.why
    return standing.outcome.status if never or standing.outcome.status in ENDS else "waiting"


def _table(standings: Sequence[Standing]) -> Table:
    """The cells that run, and those that went wrong."""
    table = Table("cell", "status", "tokens", "loss", "tokens/s", "left", box=None)
    for standing in standings:
        if standing.running:
            table.add_row(standing.cell.name, "running", *_figures(standing))
        elif _word(standing) in ("failed", "diverged", "impossible", "not_started"):
            table.add_row(standing.cell.name, f"{_word(standing)}: {standing.outcome.why}")
    return table


def _figures(standing: Standing) -> list[str]:
    progress, left = standing.progress, _seconds_left(standing)
    if progress is None:
        return ["starting"]
    return [
        f"{progress.tokens / standing.cell.tokens:.0%}",
        "" if progress.loss is None else f"{progress.loss:.3f}",
        "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f}",
        "" if left is None else duration(left),
    ]


def _summary(standings: Sequence[Standing]) -> str:
    counts = Counter(map(_word, standings))
    parts = [f"{counts[word]} {word}" for word in ORDER if counts[word]]
    left = _all_seconds_left(standings)
    return ", ".join(parts) + (f"; about {duration(left)} left" if left is not None else "")


def _seconds_left(standing: Standing) -> float | None:
    progress = standing.progress
    if progress is None or not progress.tokens_per_second:
        return None
    return max(0, standing.cell.tokens - progress.tokens) / progress.tokens_per_second


def _all_seconds_left(standings: Sequence[Standing]) -> float | None:
    """None until a running cell has told its speed; one that has not yet counts as being as fast as those that have."""
    rates, seconds, silent, waiting = [], [], [], 0.0
    for standing in standings:
        left, cell = _seconds_left(standing) if standing.running else None, standing.cell
        if left is not None and standing.progress is not None:
            rates.append((standing.progress.tokens_per_second or 0.0) * cell.flops / cell.tokens)
            seconds.append(left)
        elif standing.running:
            silent.append(cell.flops_trained)
        elif _word(standing) == "waiting":
            waiting += cell.flops_trained
    if not rates:
        return None
    rate = sum(rates) / len(rates)
    flops = sum(map(math.prod, zip(rates, seconds, strict=True))) + sum(silent) + waiting
    return max(*seconds, max(silent, default=0.0) / rate, flops / (rate * (len(rates) + len(silent))))
