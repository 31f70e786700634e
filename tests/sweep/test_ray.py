"""Jobs as Ray tasks: with a stand-in for Ray, and with Ray itself where it is installed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest

from slm.sweep.execute import execute
from slm.sweep.job import Job, id_and_slot
from slm.sweep.launchers import open_launcher, remote
from tests.running import ROOT
from tests.sweep.celled import STUB, cell, count, history, wait_until
from tests.sweep.designs import settings

RAY_MASTER = """
import subprocess
import sys
from pathlib import Path
from slm.sweep.execute import Interrupted, execute
from tests.sweep.celled import STUB, cell
from tests.sweep.designs import settings

cells = [cell("a", "seconds=0.2", steps=20), cell("b", "do=die_once"), cell("c", "do=fail")]
try:
    outcomes = execute(cells, Path(sys.argv[1]) / "runs", settings("ray"), script=STUB)
except Interrupted as error:
    sys.exit(str(error))
print(*(outcome.status for outcome in outcomes.values()))
"""


class Cancelled(Exception):
    """What the stand-in for Ray raises of a task without a result."""


def ray_on_threads() -> ModuleType:
    """The part of Ray that is used, each task a thread."""
    pool = ThreadPoolExecutor(8)

    def get(task: Future[int]) -> int:
        if task.exception() is not None:
            raise Cancelled
        return task.result()

    def remote(**resources: object) -> Callable[..., SimpleNamespace]:
        ray.__dict__["resources"] = resources
        return lambda function: SimpleNamespace(remote=lambda *given: pool.submit(function, *given))

    ray = ModuleType("ray")
    ray.__dict__.update(
        init=lambda **settings: None,
        is_initialized=lambda: False,
        remote=remote,
        wait=lambda tasks, num_returns, timeout: ([task for task in tasks if task.done()], []),
        get=get,
        exceptions=SimpleNamespace(RayError=Cancelled),
    )
    return ray


def test_cells_go_to_ray_as_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = ray_on_threads()
    monkeypatch.setitem(sys.modules, "ray", ray)
    cells = [cell("a", "do=die_once"), cell("b", "do=fail"), cell("c", trunk="a")]
    outcomes = execute(cells, tmp_path / "runs", settings("ray", cpus_per_job=3, gpus_per_job=1), script=STUB)
    assert ray.__dict__["resources"] == {"num_cpus": 3, "num_gpus": 1, "max_retries": 0}
    assert [outcome.status for outcome in outcomes.values()] == ["completed", "failed", "completed"]
    assert count(tmp_path, "start", "a") == 2
    environment = json.loads((tmp_path / "runs" / "c" / "environment.json").read_text())
    assert environment["OMP_NUM_THREADS"] == "3"


def test_jobs_that_ray_started_here_end_at_once_when_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = ray_on_threads()
    ray.__dict__["cancel"] = lambda task, force: None  # a worker that is killed leaves what it has started
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(remote, "BEAT_SECONDS", 0.1)
    job = Job(name="a", folder=tmp_path / "a", command=("sleep", "60"))
    engine = open_launcher(settings("ray"), tmp_path, num_jobs=1)
    engine.start([job])
    wait_until(lambda: id_and_slot(job.folder) is not None)
    engine.stop(force=True)
    while not (ended := engine.collect_ended()):
        time.sleep(0.01)
    assert ended == {"a": -signal.SIGKILL}


def test_a_ray_that_does_not_start_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = ray_on_threads()
    ray.__dict__["init"] = Mock(side_effect=Exception("The current node timed out\nduring startup."))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ValueError, match=r"launcher\.address=null: Ray does not answer .*timed out during startup"):
        execute([cell("a")], tmp_path / "runs", settings("ray"), script=STUB)


@pytest.mark.timeout(600)
def test_ray_itself_trains_cells_and_a_master_that_is_told_to_end_lets_them_save(tmp_path: Path) -> None:
    """Ray takes SIGTERM for itself when it connects."""
    pytest.importorskip("ray")
    command = [sys.executable, "-c", RAY_MASTER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_raylet_start_wait_time_s": "120"}
    how: dict = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    master = subprocess.Popen(command, **how)
    while not (tmp_path / "runs" / "a" / "checkpoints" / "last.ckpt").exists():
        if master.poll() is not None:
            said = master.communicate()[1]
            assert "Ray does not answer" in said, said
            pytest.skip("Ray does not start here")
        time.sleep(0.1)
    master.send_signal(signal.SIGTERM)
    said = master.communicate(timeout=120)[1]
    assert master.returncode == 1
    assert "interrupted with 0 of 3 cells completed" in said or "interrupted with 1 of 3 cells completed" in said
    assert ("interrupted", "a") in history(tmp_path)
    again = subprocess.run(command, timeout=240, **how)
    assert again.stdout.split()[-3:] == ["completed", "completed", "failed"], again.stderr
    starts = [line.split() for line in (tmp_path / "history").read_text().splitlines() if line.startswith("start a")]
    assert [int(step) > 0 for *_, step in starts] == [False, True]
    assert count(tmp_path, "start", "b") == 2
