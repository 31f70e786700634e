"""What Ctrl-C and SIGUSR1 do where the running code does not handle them. Imports little, since scripts start with it.

While modules are imported, a `KeyboardInterrupt` would end in a traceback, or in another error of the library that it
interrupts. So a signal ends the process there, with one line: nothing has been started or written yet.
"""

import os
import signal
from types import FrameType

INTERRUPTED = 130  # exit code after SIGINT


def end_at_interrupt() -> None:
    """Let Ctrl-C end this process at once. Where SIGINT is ignored, as under nohup, it stays ignored."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)


def raise_at_interrupt() -> bool:
    """Let Ctrl-C raise `KeyboardInterrupt` again; returns whether `end_at_interrupt` had been called."""
    was_called = signal.getsignal(signal.SIGINT) == _end
    if was_called:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return was_called


def end_at_warning() -> None:
    """Let SIGUSR1, by which SLURM announces a time limit, end this process with the exit code of SIGTERM."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _end)


def _end(number: int, frame: FrameType | None) -> None:
    text, code = "interrupted", INTERRUPTED
    if number != signal.SIGINT:
        text, code = "SIGUSR1: stopped while nothing was trained; the same command continues", 128 + signal.SIGTERM
    os.write(2, f"\n{text}\n".encode())
    os._exit(code)
