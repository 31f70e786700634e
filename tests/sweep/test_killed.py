"""A real sweep whose master and jobs are killed time and again ends with the table of one that was left alone.

The moments are random, from SLM_TEST_SEED; `pytest -s` shows them.
"""

import csv
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from slm.sweep.job import id_and_slot
from slm.sweep.ledger import read_outcome
from slm.training.journal import COLUMNS
from tests.running import quiet_env
from tests.seeds import seeded
from tests.sweep.small import sweep_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = 5
TIMES = ("tokens_per_second", "wall_seconds", "peak_memory_bytes")
"""Columns of results.csv that measure a process and differ from run to run. All others are functions of the design."""


class Sweep:
    """sweep.py on a folder, started as often as it takes."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder, self.command = folder, command
        self.master: subprocess.Popen[str] | None = None

    def start(self) -> None:
        output: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.master = subprocess.Popen(self.command, env=quiet_env(), **output)

    def end(self) -> None:
        """Wait for it, and for no complaint."""
        assert self.master is not None
        said, _ = self.master.communicate(timeout=1800)
        assert self.master.returncode == 0, said

    def kill(self) -> None:
        assert self.master is not None
        self.master.kill()
        self.master.communicate()

    def jobs(self) -> dict[str, int]:
        """Names and process ids of the jobs that live, whoever started them."""
        found = {run.name: id_and_slot(run) for run in sorted(self.folder.glob("runs/*"))}
        return {name: job[0] for name, job in found.items() if job is not None}

    def saved(self) -> dict[str, int]:
        """When each run saved its newest checkpoint."""
        files = self.folder.glob("runs/*/checkpoints/last.ckpt")
        return {file.parents[1].name: file.stat().st_mtime_ns for file in files}

    def has_saved(self, before: dict[str, int]) -> bool:
        """Whether a run has a newer checkpoint than it had."""
        return self.saved() != before

    def finished(self) -> dict[str, tuple[int, bytes]]:
        """When each finished cell wrote its result, and the result."""
        runs = [run for run in self.folder.glob("runs/*") if read_outcome(run).status == "completed"]
        files = [run / "result.json" for run in runs]
        return {file.parent.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture
def undisturbed(text_file: Path, cache_dir: Path, tmp_path: Path) -> Sweep:
    sweep = Sweep(tmp_path / "undisturbed", sweep_command(tmp_path / "undisturbed", text_file, cache_dir))
    sweep.start()
    sweep.end()
    return sweep


@pytest.fixture
def killed(text_file: Path, cache_dir: Path, tmp_path: Path) -> Iterator[Sweep]:
    # Forked, the jobs would be done before they are killed.
    cold = sweep_command(tmp_path / "killed", text_file, cache_dir, "launcher.warm_start=false")
    sweep = Sweep(tmp_path / "killed", cold)
    yield sweep
    if sweep.master is not None and sweep.master.poll() is None:
        sweep.kill()
    for job in sweep.jobs().values():
        os.kill(job, signal.SIGKILL)


def wait_until(happened: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)


def table(path: Path, *without: str) -> list[dict[str, str]]:
    """Rows as they are written, so that the last bit counts."""
    with path.open() as file:
        return [{key: value for key, value in row.items() if key not in without} for row in csv.DictReader(file)]


def test_a_sweep_killed_five_times_ends_as_one_that_was_left_alone(undisturbed: Sweep, killed: Sweep) -> None:
    """Each time the master dies at a random moment and a job at another, every second one when it has just saved."""
    rng, began = random.Random(seeded()), time.monotonic()
    shots: Counter[str] = Counter()
    finished: dict[str, tuple[int, bytes]] = {}

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s: {what}")

    for kill in range(KILLS):
        killed.start()
        wait_until(killed.jobs, 120)
        if kill % 2:
            wait_until(partial(killed.has_saved, killed.saved()), 120)
        master_first = not kill % 2 and rng.random() < 0.5  # a job that has just saved would be done by then
        for victim in ("master", "job") if master_first else ("job", "master"):
            time.sleep(rng.uniform(0, 15 if not kill % 2 else 2 if victim == "master" else 0.2))
            jobs = killed.jobs()
            if victim == "master":
                killed.kill()
                say(f"master killed, {len(killed.finished())} cells finished, {len(jobs)} jobs go on")
            elif jobs:
                name = rng.choice(sorted(jobs.keys() & killed.saved().keys() or jobs))
                os.kill(jobs[name], signal.SIGKILL)
                shots[name] += 1
                say(f"{name} killed")
        # Those that an earlier master finished are those that they were.
        now = killed.finished()
        assert finished.items() <= now.items()
        finished = now
    killed.start()
    killed.end()
    assert finished.items() <= killed.finished().items()
    say("done")

    for name in ("results.csv", "runs.csv"):
        assert table(killed.folder / name, *TIMES) == table(undisturbed.folder / name, *TIMES)
    for name in ("fits.json", "audit.json"):  # comparison.json tells tokens/s
        assert (killed.folder / name).read_bytes() == (undisturbed.folder / name).read_bytes()
    clocks = [column for column in COLUMNS if column.startswith("time/")]
    resumed = 0
    for run in (undisturbed.folder / "runs").iterdir():
        if not run.is_dir():
            continue
        rows = [table(sweep.folder / "runs" / run.name / "metrics.csv", *clocks) for sweep in (undisturbed, killed)]
        assert rows[0] == rows[1]
        log = (killed.folder / "runs" / run.name / "job.log").read_text()
        resumed += log.count("continuing   from step")
        assert log.count("\nmodel ") <= 1 + shots[run.name]  # a job that outlived its master was not started beside it
        assert "in use by another process" not in log
    assert resumed > 0
