"""Apply a function to many arguments, in several processes once that is worth it."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from slm.runtime.system import num_cores

Argument = TypeVar("Argument")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent ends
PATIENCE = 0.1  # seconds of work after which other processes are started: starting them takes as long


def map_in_processes(
    function: Callable[[Argument], Result], arguments: Sequence[Argument], *, at_once: bool = False
) -> Iterator[Result]:
    """Yield `function(argument)` for each argument, in order; results must be picklable.

    This process works alone for `PATIENCE` seconds, or not at all if `at_once`. Then it starts one process per core for
    the rest; only on Linux, because a fork is not safe on macOS, and Windows has none. An exception, also of the
    caller, ends the processes.
    Raises `ChildProcessError` if one of them was killed.
    """
    start = time.monotonic()
    may_fork = sys.platform == "linux" and hasattr(os, "fork") and num_cores() > 1
    for index, argument in enumerate(arguments):
        rest = arguments[index:]
        is_worth_it = at_once or time.monotonic() - start > PATIENCE
        if is_worth_it and len(rest) > 1 and may_fork:
            yield from _map_forked(function, rest)
            return
        yield function(argument)


def _map_forked(function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> Iterator[Result]:
    context, children = multiprocessing.get_context("fork"), set(multiprocessing.active_children())
    num_processes = min(num_cores(), len(arguments))
    inherited = (os.getpid(), function, arguments)  # by the fork: nothing but results is copied between processes
    with ProcessPoolExecutor(num_processes, context, initializer=_begin, initargs=inherited) as pool:
        # Not `pool.map`, which cancels its futures: when the processes are killed, the pool would complain about that.
        futures = [pool.submit(_apply, index) for index in range(len(arguments))]
        try:
            for future in futures:
                yield future.result()
        except BaseException as error:
            for process in set(multiprocessing.active_children()) - children:
                process.kill()
            if isinstance(error, BrokenProcessPool):
                raise ChildProcessError("a process of this program was killed; was there enough memory?") from error
            raise


_work: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []  # of a process of a pool: its function and arguments


def _apply(index: int) -> Any:
    function, arguments = _work[-1]
    return function(arguments[index])


def _begin(parent: int, function: Callable[[Any], Any], arguments: Sequence[Any]) -> None:
    """Take the work, leave signals to the parent, and end when it ends, even if it is killed.

    The terminal sends Ctrl-C to all processes; the parent's handler of SIGTERM is for the parent.
    """
    _work.append((function, arguments))
    gc.freeze()  # searching inherited objects for garbage would copy them, and takes a tenth of the time of figures
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the last line
        os._exit(1)
