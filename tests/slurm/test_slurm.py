"""`sweep.py launcher=slurm` and multi-node train.py on a real SLURM, with none of its parts replaced."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.running import make_command, quiet_env
from tests.slurm.cluster import Cluster, why_impossible
from tests.sweep.celled import job_process
from tests.sweep.small import sweep_command

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SWEEP = shlex.split("""
    sweep.budget.tokens=50_000 launcher=slurm launcher.gpus_per_job=0 launcher.cpus_per_job=1
    launcher.silence_minutes=0.5 launcher.time_minutes=30
""")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Shorter than pytest's, as sockets want it, and open to every daemon."""
    with tempfile.TemporaryDirectory(prefix="slm-slurm-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    """Without accounting, as small clusters are: there is no sacct."""
    with Cluster(folder) as running:
        yield running


@pytest.fixture
def accounted_cluster(folder: Path) -> Iterator[Cluster]:
    if reason := why_impossible(accounting=True):
        pytest.skip(reason)
    with Cluster(folder, accounting=True) as running:
        yield running


class Sweep:
    """sweep.py as a user starts it on a login node, with six cells of a few seconds."""

    def __init__(self, cluster: Cluster, folder: Path, text_file: Path, cache_dir: Path, *changes: str) -> None:
        self.cluster, self.folder, self.log = cluster, folder, folder.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                sweep_command(folder, text_file, cache_dir, *SWEEP, *changes),
                cwd=cluster.folder,
                env=quiet_env() | cluster.names,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> int:
        return self.process.wait(600)

    def next_to_save(self, *others: Path) -> Path:
        """A run directory that is not among `others`, once its job runs and has saved a checkpoint."""
        return self._wait_for(lambda: next((run for run in self._saved() if run not in others), None))

    def _wait_for(self, look: Callable[[], Path | None]) -> Path:
        deadline = time.monotonic() + 300
        while not (found := look()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return found

    def _saved(self) -> list[Path]:
        runs = [checkpoint.parents[1] for checkpoint in self.folder.glob("runs/*/checkpoints/last.ckpt")]
        return [run for run in runs if not (run / "result.json").exists()]


def slurm_id(run: Path) -> str:
    return (run / "job.slurm").read_text()


def test_six_cells_end_with_six_results_whatever_befalls_their_jobs(
    cluster: Cluster, folder: Path, text_file: Path, cache_dir: Path
) -> None:
    """One is killed, one preempted, one cancelled, and for a while the controller is away; each goes on."""
    sweep = Sweep(cluster, folder / "sweep", text_file, cache_dir, "launcher.array_parallelism=2")
    killed = sweep.next_to_save()
    os.kill(job_process(killed), signal.SIGKILL)
    preempted = sweep.next_to_save(killed)
    queued_as = slurm_id(preempted)
    cluster.ask("scontrol", "requeue", queued_as)
    cancelled = sweep.next_to_save(killed, preempted)
    cancelled_as = slurm_id(cancelled)
    cluster.ask("scancel", cancelled_as)
    with cluster.without_controller():
        time.sleep(15)

    assert sweep.wait() == 0, sweep.log.read_text()
    results = [json.loads(path.read_text()) for path in (folder / "sweep" / "runs").glob("*/result.json")]
    assert [result["status"] for result in results] == ["completed"] * 6
    with (folder / "sweep" / "results.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 6
    for run in (killed, preempted, cancelled):
        assert "continuing   from step" in (run / "job.log").read_text()
    assert slurm_id(preempted) == queued_as  # SLURM started it again, not the master
    assert slurm_id(cancelled) != cancelled_as
    assert cluster.ask("squeue", "--noheader", "--states=PENDING,RUNNING") == ""


def test_a_sweep_that_is_interrupted_saves_and_leaves_no_job_behind(
    accounted_cluster: Cluster, folder: Path, text_file: Path, cache_dir: Path
) -> None:
    sweep = Sweep(accounted_cluster, folder / "sweep", text_file, cache_dir, "launcher.array_parallelism=1")
    run = sweep.next_to_save()
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    assert json.loads((run / "result.json").read_text())["status"] == "interrupted"
    assert accounted_cluster.ask("squeue", "--noheader") == ""
    assert "interrupted with 0 of 6 cells completed" in sweep.log.read_text()


def test_what_slurm_refuses_is_one_sentence(cluster: Cluster, folder: Path, text_file: Path, cache_dir: Path) -> None:
    sweep = Sweep(cluster, folder / "sweep", text_file, cache_dir, "launcher.partition=day")
    assert sweep.wait() == 1
    assert "error: SLURM refused the launcher.* settings: " in sweep.log.read_text()
    assert "invalid partition specified: day" in sweep.log.read_text()
    assert "Traceback" not in sweep.log.read_text()


def test_two_nodes_train_as_one_process_does(cluster: Cluster, folder: Path, text_file: Path, cache_dir: Path) -> None:
    """By `srun` with a task a device, Lightning finds its ranks in SLURM's environment."""
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    exact = "trainer.precision=32-true"
    here = make_command(text_file, cache_dir, exact, f"output_dir={folder}/one")
    there = make_command(text_file, cache_dir, exact, *two, f"output_dir={folder}/two")
    # Two names for one machine, which the name service does not know.
    environment = quiet_env() | cluster.names | {"MASTER_ADDR": "127.0.0.1"}
    for command in (here, ["srun", "--nodes=2", "--ntasks-per-node=1", *there]):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    losses = [json.loads((folder / name / "result.json").read_text())["val"]["loss"] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
