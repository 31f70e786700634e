"""Cells of stand-in jobs, and what tests ask of what became of them."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from slm.sweep.cells import Cell
from tests.running import ROOT

STUB = Path(__file__).with_name("stub_train.py")
LOCAL: dict[str, Any] = {"name": "local", "slots": 2, "gpus_per_job": 0, "threads": 1, "memory_gb": 1, "tries": 2}
LOCAL |= {"warm_start": False, "jobs_per_gpu": "auto"}
WRONG = {"diverging": "diverge", "failing": "fail", "dying": "die", "silent": "silent"}
"""Cells that end badly, and what their stand-ins do."""


def cell(name: str, *overrides: str, flops: float = 1e6, steps: int = 3, **changes: Any) -> Cell:
    fixed = {"key": name, "family": "f", "width": 32, "depth": 2, "seed": 1, "lr": 1e-3, "tokens": steps * 100}
    counts = {"params_total": 10, "params_non_embedding": 5, "flops": flops}
    return Cell(name=name, overrides=(f"steps={steps}", *overrides), **{**fixed, **counts, **changes})


def history(folder: Path) -> list[tuple[str, str]]:
    """What the stand-ins did, in order: (start | completed | ..., cell)."""
    lines = (folder / "history").read_text().splitlines() if (folder / "history").exists() else []
    return [(what, name) for what, name, _ in map(str.split, lines)]


def count(folder: Path, what: str, name: str) -> int:
    return history(folder).count((what, name))


def job_process(run: Path) -> int:
    """Id of the process that trains in `run`."""
    return int((run / "job.pid").read_text().split()[0])


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes() -> Iterator[tuple[int, str, int]]:
    """(id, command line, parent) of all that run."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield int(process.name), (process / "cmdline").read_text(), int(parent)


MASTER = """
import sys
from pathlib import Path
from slm.sweep.execute import Interrupted, execute
from slm.sweep.launchers import forked
from tests.sweep.celled import LOCAL, STUB, cell

forked.MODULES = [sys.argv[1]]  # to find the server by; one that cannot be imported is passed over
cells = [cell(f"c{i}", "seconds=0.1", "save_every=2", steps=4 + i, flops=i) for i in range(5)]
launcher = LOCAL | {"tries": 9, "warm_start": sys.argv[2] == "True"}
try:
    outcomes = execute(cells, Path(sys.argv[1]) / "runs", launcher, script=STUB)
except Interrupted as error:
    sys.exit(str(error))
assert all(outcome.status == "completed" for outcome in outcomes.values()), outcomes
"""


def start_master(folder: Path, *, warm_start: bool = False) -> subprocess.Popen[str]:
    """A sweep of five cells in a process of its own."""
    command = [sys.executable, "-c", MASTER, str(folder), str(warm_start)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
