"""Jobs that are forked from a process with their imports done are jobs like any other, whatever happens to it."""

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from slm.sweep.cells import Cell
from slm.sweep.execute import execute
from slm.sweep.ledger import Outcome
from tests.running import make_command, quiet_env
from tests.sweep.celled import LOCAL, STUB, WRONG, cell, count, history, job_process, processes

WARM = LOCAL | {"warm_start": True}


def run(folder: Path, cells: list[Cell], **changes: object) -> dict[str, Outcome]:
    return execute(cells, folder / "runs", WARM, script=STUB, **changes)


def servers() -> list[int]:
    """Servers of this process."""
    return [number for number, line, parent in processes() if "forkserver" in line and parent == os.getpid()]


def open_files(number: int) -> set[str]:
    """Files of the file system that process `number` has open."""
    targets = [os.readlink(path) for path in Path(f"/proc/{number}/fd").iterdir()]
    return {target for target in targets if target.startswith("/")}


def test_forked_jobs_end_as_others_do(tmp_path: Path) -> None:
    ends = WRONG | {"good": "train", "dying-once": "die_once", "cut-off": "cut_off"}
    cells = [cell(name, f"do={what}") for name, what in ends.items()]
    cold = execute(cells, tmp_path / "cold" / "runs", LOCAL, script=STUB)
    assert run(tmp_path / "warm", cells) == cold
    assert (cold["cut-off"].status, "exit code 1" in str(cold["cut-off"].why)) == ("failed", True)
    assert sorted(history(tmp_path / "warm")) == sorted(history(tmp_path / "cold"))
    assert len(servers()) == 1  # which all sweeps of this process share


def test_a_forked_job_has_a_session_and_an_environment_of_its_own(tmp_path: Path) -> None:
    told = {}

    def look(standings: object) -> None:
        if (tmp_path / "runs" / "a" / "metrics.csv").exists() and not told:
            number = job_process(tmp_path / "runs" / "a")
            told.update(session=os.getsid(number) == number, files=open_files(number) - {"/dev/null"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slm.sweep.execute.SHOW_SECONDS", 0.0)
        patch.setenv("SLM_WORD", "x")
        run(tmp_path, [cell("a", "seconds=0.3")], show=look)
    environment = json.loads((tmp_path / "runs" / "a" / "environment.json").read_text())
    assert (environment["OMP_NUM_THREADS"], environment["SLM_WORD"]) == ("1", "x")
    # With what the stand-in locks, and nothing of another job: a lock that it held would outlive that job.
    names = ("job.lock", "job.log", ".lock")
    assert told == {"session": True, "files": {str(tmp_path / "runs" / "a" / name) for name in names}}
    run(tmp_path, [cell("b")])
    assert "SLM_WORD" not in json.loads((tmp_path / "runs" / "b" / "environment.json").read_text())


def test_jobs_outlive_their_server_and_the_next_start_without_one(tmp_path: Path) -> None:
    def kill(standings: object) -> None:
        if count(tmp_path, "start", "a") and servers():
            os.kill(servers()[0], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slm.sweep.execute.SHOW_SECONDS", 0.0)
        slow = [cell(name, "seconds=0.2", flops=flops) for name, flops in (("a", 9.0), ("b", 8.0))]
        outcomes = run(tmp_path, [*slow, cell("c"), cell("d", "do=fail")], show=kill)
    assert [outcome.status for outcome in outcomes.values()] == ["completed", "completed", "completed", "failed"]
    assert [count(tmp_path, "start", name) for name in "abcd"] == [1, 1, 1, 1]


def test_forked_training_is_the_same_to_the_last_bit(text_file: Path, cache_dir: Path, tmp_path: Path) -> None:
    command = make_command(text_file, cache_dir, "train.tokens=2560", "train.val_tokens=650")
    cells = [replace(cell("a", tokens=2560), overrides=tuple(command[2:]))]
    assert execute(cells, tmp_path / "runs", WARM)["a"].status == "completed"
    subprocess.run([*command, f"output_dir={tmp_path}/cold"], env=quiet_env(), check=True, capture_output=True)
    assert json.loads((tmp_path / "cold" / "result.json").read_text())["val"]["tokens"] == 640  # whole windows of 32
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (tmp_path / "runs" / "a", tmp_path / "cold")]
    forked, cold = (table.drop(columns=[name for name in table if name.startswith("time/")]) for table in tables)
    pd.testing.assert_frame_equal(forked, cold, check_exact=True)


def test_a_server_has_no_thread_that_its_children_would_miss(tmp_path: Path) -> None:
    """But jemalloc's, which starts itself again in a forked process."""
    run(tmp_path, [cell("a")])
    threads = [path.read_text().strip() for path in Path(f"/proc/{servers()[0]}/task").glob("*/comm")]
    assert len([name for name in threads if name != "jemalloc_bg_thd"]) == 1, threads
