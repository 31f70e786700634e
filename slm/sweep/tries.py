"""Whether a job that ended without a result is worth another start.

One that exits by itself is not: what is wrong with its settings will be wrong again. One that is killed is, and goes on
from its checkpoint, unless it has been killed several times with no new checkpoint; two times are enough where it was
the kernel, for want of memory.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from slm.sweep.ledger import log_tail

STARVED_TRIES = 2


class Tries:
    """Starts of the run in `folder` by one master, counted anew whenever one gets as far as a new checkpoint."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.count = self.starved = 0
        self._checkpoint = _stamp(folder)
        self._kernel_kills: int | None = None

    def note_start(self) -> None:
        """A job starts."""
        self.count += 1
        self._checkpoint, self._kernel_kills = _stamp(self.folder), kernel_kills()

    def why_failed(self, code: int | None) -> str | None:
        """Why a job that ended with exit `code` (negative for a signal, None if nobody knows) has failed for good.

        None if it is worth another start.
        """
        if code is not None and 0 <= code <= 128:
            return f"exit code {code}: {_last_word(log_tail(self.folder))}"
        if _stamp(self.folder) != self._checkpoint:  # it got further: not in vain
            self.count = self.starved = 0
        self.starved += code == -signal.SIGKILL and (kernel_kills() or 0) > (self._kernel_kills or 0)
        if self.starved >= STARVED_TRIES:
            return f"out of memory: killed by the kernel {self.starved} times with no new checkpoint"
        return f"{ended_how(code)} {self.count} times with no new checkpoint" if self.count >= self.limit else None


def ended_how(code: int | None) -> str:
    """How a job ended that left no result, by its exit code."""
    return "ended without a result" if code is None else f"killed by {_signal_name(code)}"


def kernel_kills() -> int | None:
    """Processes that the kernel of this machine has killed for want of memory since it started, if it tells."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def _stamp(folder: Path) -> int:
    """Tells the newest checkpoint of a run from an older one; 0 without any."""
    with suppress(OSError):
        return (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    return 0


def _last_word(lines: Sequence[str]) -> str:
    """The error that a job ended with, or else the last that it said."""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return [*(lines or ["it said nothing"]), *errors][-1]


def _signal_name(code: int) -> str:
    number = -code if code < 0 else code - 128
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
