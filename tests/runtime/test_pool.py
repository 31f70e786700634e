"""Work in several processes: the same results in the same order, and an end when something goes wrong."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from slm.runtime import pool
from slm.runtime.pool import map_in_processes
from tests.running import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PATIENCE", -1.0)
    monkeypatch.setattr(pool, "num_cores", lambda: 2)


def _square_and_process(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 2))
    return number**2, os.getpid()


def _refuse_two(number: int) -> int:
    if number == 2:
        raise ValueError("two is refused")
    return number


def _die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _sleep(number: int) -> None:
    time.sleep(60)


def test_results_are_in_order_and_come_from_two_processes() -> None:
    results, processes = zip(*map_in_processes(_square_and_process, range(8)), strict=True)
    assert results == (0, 1, 4, 9, 16, 25, 36, 49)
    assert len({*processes} - {os.getpid()}) == 2
    assert not multiprocessing.active_children()


def test_little_work_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PATIENCE", 60.0)
    assert {process for _, process in map_in_processes(_square_and_process, range(4))} == {os.getpid()}
    assert list(map_in_processes(_square_and_process, [])) == []


def test_work_known_to_be_long_is_shared_at_once_and_may_be_any_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PATIENCE", 60.0)
    square = map_in_processes(lambda number: (number**2, os.getpid()), range(4), at_once=True)
    results, processes = zip(*square, strict=True)
    assert results == (0, 1, 4, 9)
    assert os.getpid() not in processes


def test_an_exception_is_raised_here() -> None:
    results = map_in_processes(_refuse_two, range(4))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two is refused"):
        next(results)
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_an_exception() -> None:
    with pytest.raises(ChildProcessError, match="was killed; was there enough memory"):
        list(map_in_processes(_die, range(4)))


def test_no_process_outlives_a_parent_that_is_killed() -> None:
    code = "from tests.runtime import test_pool as t; t.pool.PATIENCE = -1; t.pool.num_cores = lambda: 2; "
    code += "list(t.map_in_processes(t._sleep, range(4)))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)

    def processes() -> list[str]:
        return subprocess.run(["pgrep", "-g", str(parent.pid)], capture_output=True, text=True).stdout.split()

    wait_until(lambda: len(processes()) == 3)
    parent.kill()
    parent.wait()
    wait_until(lambda: not processes())


def test_an_interruption_ends_the_processes() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before, started = signal.signal(signal.SIGALRM, interrupt), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(map_in_processes(_sleep, range(4)))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 10
    assert not multiprocessing.active_children()
