"""Ctrl-C and SIGTERM end a run at the next optimizer step, with a checkpoint, instead of in the middle of one."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class Interrupt:
    """While entered, notes the first SIGINT or SIGTERM; a second SIGINT raises `KeyboardInterrupt` at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.getsignal(number) for number in self.SIGNALS}
        self.install()
        return self

    def install(self) -> None:
        """Take the signals (again): Lightning puts its own SIGTERM handler, which saves nothing, in front."""
        for number in self.SIGNALS:
            signal.signal(number, self._note)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader worker, forked with our handlers: the run decides, not it
            return
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        print(
            f"\n{signal.Signals(number).name}: saving a checkpoint and stopping (Ctrl-C again stops at once, without)",
            flush=True,
        )
