"""Show the status of a sweep: on a terminal in a table that stays in place, elsewhere with a line for each change.

The time left is the remaining FLOPs divided by the speed of the running cells, and at least the time left of the
slowest running cell. Small cells reach fewer FLOP/s than large cells, so the end takes a little longer than estimated.
"""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slm.runtime.progress import say
from slm.runtime.words import duration
from slm.sweep.execute import FINAL_STATUSES, CellStatus

STATUS_ORDER = ("completed", "running", "waiting", "failed", "diverged", "impossible", "not_started")


class Board:
    """A context manager that shows the status of all cells; the last table stays on the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False)
        self.printed: dict[str, str] | None = None
        """Name of a cell -> the last status that was printed; None before the first call of `show`."""

    def __enter__(self) -> "Board":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def show(self, statuses: Sequence[CellStatus]) -> None:
        """Update the table, or print the changes since the last call."""
        if self.console.is_terminal:
            self.live.update(Group(Text(_summary(statuses)), _table(statuses)), refresh=True)
            return
        word_of_cell = {status.cell.name: _status_word(status) for status in statuses}
        if self.printed is None:  # cells completed by an earlier command are only counted
            self.printed = {name: word for name, word in word_of_cell.items() if word == "completed"}
            if self.printed:
                say(f"{len(self.printed)} of {len(statuses)} cells were completed before")
        for status in statuses:
            name, word = status.cell.name, word_of_cell[status.cell.name]
            if self.printed.get(name, "waiting") != word:
                self.printed[name] = word
                why = f" ({status.outcome.why})" if status.outcome.why and not status.is_running else ""
                say(f"{name}: {word}{why}; {_summary(statuses)}")


def _status_word(status: CellStatus) -> str:
    if status.is_running:
        return "running"
    outcome = status.outcome
    is_branch_without_checkpoint = outcome.status == "not_started" and outcome.why is not None
    is_final = outcome.status in (*FINAL_STATUSES, "impossible") or is_branch_without_checkpoint
    return outcome.status if is_final else "waiting"


def _table(statuses: Sequence[CellStatus]) -> Table:
    table = Table("cell", "status", "tokens", "loss", "tokens/s", "left", box=None)
    for status in statuses:
        if status.is_running:
            table.add_row(status.cell.name, "running", *_progress_columns(status))
        elif _status_word(status) not in ("completed", "waiting"):
            table.add_row(status.cell.name, f"{_status_word(status)}: {status.outcome.why}")
    return table


def _progress_columns(status: CellStatus) -> list[str]:
    progress = status.progress
    if progress is None:
        return ["starting"]
    seconds_left = _seconds_left(status)
    return [
        f"{progress.tokens / status.cell.tokens:.0%}",
        "" if progress.loss is None else f"{progress.loss:.3f}",
        "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f}",
        "" if seconds_left is None else duration(seconds_left),
    ]


def _summary(statuses: Sequence[CellStatus]) -> str:
    counts = Counter(map(_status_word, statuses))
    parts = [f"{counts[word]} {word}" for word in STATUS_ORDER if counts[word]]
    left = _all_seconds_left(statuses)
    return ", ".join(parts) + (f"; about {duration(left)} left" if left is not None else "")


def _seconds_left(status: CellStatus) -> float | None:
    progress = status.progress
    if progress is None or not progress.tokens_per_second:
        return None
    return max(0, status.cell.tokens - progress.tokens) / progress.tokens_per_second


def _all_seconds_left(statuses: Sequence[CellStatus]) -> float | None:
    """None until a running cell has a speed. Each cell without a speed counts with the mean speed of the others."""
    speeds, times_left, flops_of_starting = [], [], []
    waiting_flops = 0.0
    for status in statuses:
        cell = status.cell
        left = _seconds_left(status)
        if left is not None and status.progress is not None:
            speeds.append((status.progress.tokens_per_second or 0.0) * cell.flops / cell.tokens)
            times_left.append(left)
        elif status.is_running:
            flops_of_starting.append(cell.flops_trained)
        elif _status_word(status) == "waiting":
            waiting_flops += cell.flops_trained
    if not speeds:
        return None
    mean_speed = sum(speeds) / len(speeds)
    running_flops = sum(speed * left for speed, left in zip(speeds, times_left, strict=True))
    all_flops = running_flops + sum(flops_of_starting) + waiting_flops
    num_running = len(speeds) + len(flops_of_starting)
    longest_start = max(flops_of_starting, default=0.0) / mean_speed
    return max(*times_left, longest_start, all_flops / (mean_speed * num_running))
