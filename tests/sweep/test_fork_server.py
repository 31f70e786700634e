"""Jobs that are forked from a process with their imports done are jobs like any other, whatever happens to it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from slm.sweep.cells import Cell
from slm.sweep.execute import execute
from slm.sweep.launchers import forked
from slm.sweep.ledger import Outcome
from tests.running import ROOT, make_command, quiet_env
from tests.sweep.celled import LOCAL, STUB, cell, count, history

WARM = LOCAL | {"warm_start": True}


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for train.py needs no torch."""
    monkeypatch.setattr(forked, "MODULES", ("json",))


def run(folder: Path, cells: list[Cell], **changes: object) -> dict[str, Outcome]:
    return execute(cells, folder / "runs", WARM, script=STUB, **changes)


def processes() -> Iterator[tuple[int, str, int]]:
    """(id, command line, parent) of all that run."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield int(process.name), (process / "cmdline").read_text(), int(parent)
        except OSError:
            continue


def servers() -> list[int]:
    """Servers of this process."""
    return [number for number, line, parent in processes() if "fork_server" in line and parent == os.getpid()]


def job_of(folder: Path, name: str) -> int:
    return int((folder / "runs" / name / "job.pid").read_text().split()[0])


@pytest.mark.usefixtures("light")
def test_forked_jobs_end_as_others_do(tmp_path: Path) -> None:
    cells = [
        cell("good"),
        cell("diverging", "do=diverge"),
        cell("failing", "do=fail"),
        cell("dying", "do=die"),
        cell("dying-once", "do=die_once"),
        cell("silent", "do=silent"),
        cell("cut-off", "do=cut_off"),
    ]
    cold = execute(cells, tmp_path / "cold" / "runs", LOCAL, script=STUB)
    assert run(tmp_path / "warm", cells) == cold
    assert (cold["cut-off"].status, "exit code 1" in str(cold["cut-off"].why)) == ("failed", True)
    assert sorted(history(tmp_path / "warm")) == sorted(history(tmp_path / "cold"))
    assert not servers()


@pytest.mark.usefixtures("light")
def test_a_forked_job_has_a_session_and_an_environment_of_its_own(tmp_path: Path) -> None:
    told = {}

    def look(standings: object) -> None:
        if (tmp_path / "runs" / "a" / "metrics.csv").exists() and not told:
            number = job_of(tmp_path, "a")
            told.update(session=os.getsid(number) == number, files=len(list(Path(f"/proc/{number}/fd").iterdir())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slm.sweep.execute.SHOW_SECONDS", 0.0)
        run(tmp_path, [cell("a", "seconds=0.3")], environment={"SLM_WORD": "x"}, show=look)
    environment = json.loads((tmp_path / "runs" / "a" / "environment.json").read_text())
    assert (environment["OMP_NUM_THREADS"], environment["SLM_WORD"]) == ("1", "x")
    # Standard input, output and error, the job's lock and log, and what the stand-in locks: nothing of the server.
    assert told == {"session": True, "files": 6}
    run(tmp_path, [cell("b")])
    assert "SLM_WORD" not in json.loads((tmp_path / "runs" / "b" / "environment.json").read_text())


@pytest.mark.usefixtures("light")
def test_jobs_outlive_their_server_and_the_next_start_without_one(tmp_path: Path) -> None:
    def kill(standings: object) -> None:
        if count(tmp_path, "start", "a") and servers():
            os.kill(servers()[0], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slm.sweep.execute.SHOW_SECONDS", 0.0)
        cells = [
            cell("a", "seconds=0.2", flops=9.0),
            cell("b", "seconds=0.2", flops=8.0),
            cell("c"),
            cell("d", "do=fail"),
        ]
        outcomes = run(tmp_path, cells, show=kill)
    assert [outcome.status for outcome in outcomes.values()] == ["completed", "completed", "completed", "failed"]
    assert [count(tmp_path, "start", name) for name in "abcd"] == [1, 1, 1, 1]


MASTER = """
import sys
from pathlib import Path
from slm.sweep.execute import execute
from slm.sweep.launchers import forked
from tests.sweep.celled import STUB, cell
from tests.sweep.test_fork_server import WARM

forked.MODULES = ()
cells = [cell(f"c{i}", "seconds=0.1", "save_every=2", steps=4 + i, flops=i) for i in range(5)]
execute(cells, Path(sys.argv[1]) / "runs", WARM | {"tries": 9}, script=STUB)
"""


def test_a_master_that_is_killed_leaves_jobs_to_the_next_and_no_server(tmp_path: Path) -> None:
    rng = random.Random(time.time_ns())
    for kill in range(4):
        master = subprocess.Popen([sys.executable, "-c", MASTER, str(tmp_path)], cwd=ROOT)
        before, deadline = len(history(tmp_path)), time.monotonic() + 60
        while kill < 3 and master.poll() is None and len(history(tmp_path)) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        if kill < 3:
            time.sleep(rng.uniform(0, 0.3))
            master.kill()
        assert master.wait(60) == (0 if kill == 3 else master.returncode)
    events = history(tmp_path)
    assert not [event for event in events if event[0] == "twice"]
    assert sorted(name for what, name in events if what == "completed") == [f"c{number}" for number in range(5)]
    assert not [number for number, line, parent in processes() if "fork_server" in line and str(tmp_path) in line]


def test_forked_training_is_the_same_to_the_last_bit(
    run_train: Callable[..., subprocess.CompletedProcess[str]], text_file: Path, cache_dir: Path, tmp_path: Path
) -> None:
    short = ("train.tokens=2560", "train.val_tokens=650")
    overrides = tuple(make_command(text_file, cache_dir, *short)[2:])
    cells = [Cell(**{**vars(cell("a", tokens=2560)), "overrides": overrides})]
    assert execute(cells, tmp_path / "runs", WARM, environment=quiet_env())["a"].status == "completed"
    assert run_train(*short, f"output_dir={tmp_path}/cold").returncode == 0
    assert json.loads((tmp_path / "cold" / "result.json").read_text())["val"]["tokens"] == 640  # whole windows of 32
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (tmp_path / "runs" / "a", tmp_path / "cold")]
    forked, cold = (table.drop(columns=[name for name in table if name.startswith("time/")]) for table in tables)
    pd.testing.assert_frame_equal(forked, cold, check_exact=True)
