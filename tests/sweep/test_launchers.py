"""Engines: slots of this machine, and jobs elsewhere that may be lost."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.sweep import execute as master
from slm.sweep.execute import execute
from slm.sweep.job import Job
from slm.sweep.launchers import open_launcher, remote, slurm
from slm.sweep.launchers.local import slot_environments, visible_gpus
from slm.sweep.launchers.remote import RemoteJob
from tests.running import ROOT
from tests.sweep.celled import LOCAL, STUB, cell, count, history, job_process, wait_until
from tests.sweep.designs import composed, settings

SETTINGS = settings("local", memory_gb=1e-6)
QUICK = settings("slurm", silence_minutes=0.02)


@given(cores=st.integers(1, 64), gpus=st.integers(0, 8), per_job=st.integers(0, 8), jobs=st.integers(1, 40))
def test_slots_share_the_machine_without_overlap(cores: int, gpus: int, per_job: int, jobs: int) -> None:
    names = [f"GPU-{n}" for n in range(gpus)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda process: range(cores))
        asked = SETTINGS | {"gpus_per_job": per_job}
        if gpus and per_job > gpus:
            with pytest.raises(ValueError, match="more than"):
                slot_environments(asked, num_jobs=jobs, gpus=names)
            return
        slots = slot_environments(asked, num_jobs=jobs, gpus=names)
    given_out = [name for slot in slots for name in slot.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    assert len(given_out) == len(set(given_out)) == (per_job * len(slots) if gpus else 0)
    assert len({slot["OMP_NUM_THREADS"] for slot in slots}) == 1  # or a cell's bits would depend on its slot
    if not given_out:
        assert len(slots) == min(cores, jobs)
    if len(slots) <= cores:
        assert cores / 2 < sum(int(slot["OMP_NUM_THREADS"]) for slot in slots) <= cores


def test_memory_bounds_the_slots_that_nobody_asked_for() -> None:
    assert len(slot_environments(settings("local", memory_gb=1e6), num_jobs=9, gpus=[])) == 1
    assert len(slot_environments(settings("local", memory_gb=1e6, slots=3), num_jobs=9, gpus=[])) == 3


def test_gpus_that_were_hidden_from_us_are_hidden_from_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen, expected in (("", []), ("-1", []), ("2, GPU-8f", ["2", "GPU-8f"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert visible_gpus() == expected


def test_a_job_has_the_share_of_its_slot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLM_WORD", "x")
    execute([cell("a")], tmp_path / "runs", LOCAL | {"threads": 3}, script=STUB)
    environment = json.loads((tmp_path / "runs" / "a" / "environment.json").read_text())
    assert (environment["OMP_NUM_THREADS"], environment["SLM_WORD"]) == ("3", "x")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "lokal", "tries": 1}, "launcher.name=lokal must be one of local, slurm, ray"),
        (settings("local", tries=0), "launcher.tries=0 must be a whole number of at least 1"),
        (settings("local", slots="all"), "launcher.slots=all must be auto, or a whole number"),
        (settings("local", threads=0), "launcher.threads=0"),
        (settings("local", gpus_per_job=-1), "launcher.gpus_per_job=-1"),
        (settings("local", memory_gb="lots"), "launcher.memory_gb=lots must be a number above 0"),
        (settings("slurm", silence_minutes=0.1), "launcher.silence_minutes=0.1 must be a number of at least 0.25"),
        (settings("slurm", cpus_per_job="4"), "launcher.cpus_per_job=4"),
        (settings("slurm", sbatch=["requeue"]), "launcher.sbatch="),
        (settings("ray", gpus_per_job=None), "launcher.gpus_per_job=null"),
        (settings("ray", address=5), "launcher.address=5"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(asked: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        open_launcher(asked, tmp_path / "runs", num_jobs=1)


@pytest.mark.parametrize(("name", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_extra_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"launcher={name} needs .*: pip install 'slm\[{name}\]'"):
        open_launcher(settings(name), tmp_path / "runs", num_jobs=1)


def test_slurm_without_slurm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="finds no SLURM here"):
        open_launcher(settings("slurm"), tmp_path / "runs", num_jobs=1)


class OtherMachine:
    """A scheduler whose nodes are processes here, and which does to them what clusters do."""

    def __init__(self) -> None:
        self.processes: dict[str, multiprocessing.process.BaseProcess] = {}
        self.told: dict[str, str] = {}
        self.cancelled: list[str] = []

    def submit(self, functions: Sequence[RemoteJob]) -> list[str]:
        numbers = [f"{len(self.processes)}_{n}" for n in range(len(functions))]
        for number, function in zip(numbers, functions, strict=True):
            self.start(number, function)
        return numbers

    def start(self, number: str, function: RemoteJob) -> None:
        self.processes[number] = multiprocessing.get_context("fork").Process(target=function)
        self.processes[number].start()

    def states(self) -> dict[str, str] | None:
        alive = {number: "RUNNING" for number, process in self.processes.items() if process.is_alive()}
        return alive | self.told

    def cancel(self, ids: Sequence[str]) -> None:
        self.cancelled += ids
        for number in ids:
            self.told.pop(number, None)
            self.processes[number].terminate()


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> OtherMachine:
    """Stands in for SLURM; beats and questions are fast."""
    machine = OtherMachine()
    monkeypatch.setattr(remote, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "Submitit", lambda settings, folder: machine)
    monkeypatch.setattr(master, "SHOW_SECONDS", 0.0)
    return machine


def kill_when_started(folder: Path, machine: OtherMachine, number: signal.Signals, standings: object) -> None:
    """What `show` is given: signals the first job function, once, and its job with it if that is SIGKILL."""
    job = machine.processes.get("0_0")
    running = folder / "runs" / "a" / "metrics.csv"
    if job is not None and job.pid and job.is_alive() and running.exists() and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(job.pid, number)
        if number == signal.SIGKILL:  # second, or the job's function might still note how its process ended
            os.kill(job_process(folder / "runs" / "a"), number)


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_job_that_slurm_loses_is_missed_by_silence(forgotten: bool, other_machine: OtherMachine, tmp_path: Path):
    """Whether the scheduler forgets the job or says for ever that it runs."""
    if not forgotten:
        other_machine.told["0_0"] = "RUNNING"
    cells = [cell("a", "seconds=0.1", steps=6), cell("b", "do=fail")]
    kill = partial(kill_when_started, tmp_path, other_machine, signal.SIGKILL)
    outcomes = execute(cells, tmp_path / "runs", QUICK, script=STUB, show=kill)
    assert (outcomes["a"].status, outcomes["b"].status) == ("completed", "failed")
    assert count(tmp_path, "start", "a") == 2
    assert ("0_0" in other_machine.cancelled) != forgotten


def test_a_preempted_job_saves_and_waits_its_turn_however_long(other_machine: OtherMachine, tmp_path: Path) -> None:
    asked = []

    def show(standings: object) -> None:
        kill_when_started(tmp_path, other_machine, signal.SIGTERM, standings)
        if (tmp_path / "killed").exists() and not other_machine.processes["0_0"].is_alive():
            other_machine.told["0_0"] = "PENDING"
            asked.append(time.monotonic())
            if asked[-1] - asked[0] > 2:  # longer than the silence that would be a loss
                del other_machine.told["0_0"]
                other_machine.start("0_0", RemoteJob(master_job(tmp_path), {}))

    outcomes = execute([cell("a", "seconds=0.1", steps=9)], tmp_path / "runs", QUICK, script=STUB, show=show)
    assert outcomes["a"].status == "completed"
    assert [what for what, _ in history(tmp_path)] == ["start", "interrupted", "start", "completed"]
    assert list(other_machine.processes) == ["0_0"]


def master_job(folder: Path) -> Job:
    run = folder / "runs" / "a"
    command = (sys.executable, str(STUB), "steps=9", "seconds=0.1", f"output_dir={run}")
    return Job(name="a", folder=run, command=command)


def job_in(folder: Path) -> Job:
    return Job(name="a", folder=folder / "a", command=("true",))


def test_nothing_is_submitted_while_slurm_does_not_answer(
    other_machine: OtherMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = open_launcher(QUICK, tmp_path, num_jobs=1)
    assert engine.adopt([job_in(tmp_path)]) == []
    assert engine.num_free() > 0
    monkeypatch.setattr(other_machine, "states", lambda: None)
    assert engine.collect_ended() == {}
    assert engine.num_free() == 0
    with pytest.raises(ValueError, match="controller does not answer"):
        engine.adopt([job_in(tmp_path)])


def test_a_second_interrupt_does_not_wait_for_slurm(other_machine: OtherMachine, tmp_path: Path) -> None:
    """Which gives jobs its KillWait, however it is asked."""
    engine = open_launcher(QUICK, tmp_path, num_jobs=1)
    engine.start([job_in(tmp_path)])
    other_machine.processes["0_0"].join()
    (tmp_path / "a" / remote.EXIT).unlink()
    other_machine.told["0_0"] = "COMPLETING"
    other_machine.cancel = lambda ids: None  # type: ignore[method-assign]
    engine.stop()
    assert engine.collect_ended() == {}
    engine.stop(force=True)
    assert engine.collect_ended() == {"a": None}


SBATCH = """#!/bin/sh
# sbatch FILE: runs each task of the array at once, as slurmd would a copy of FILE, which submitit then moves
cp "$1" {there}/submitted
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for task in $(seq 0 "$tasks"); do
  SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 sh -c \
    "echo 7_$task RUNNING >{there}/task$task; sh {there}/submitted; rm {there}/task$task" >{there}/log$task 2>&1 &
done
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""


def test_cells_go_to_slurm_as_an_array_with_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of submitit, on commands that stand in for SLURM's."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0.2)
    there = tmp_path / "cluster"
    there.mkdir()
    squeue = '#!/bin/sh\necho "$@" >{there}/asked; cat {there}/task* 2>/dev/null; true\n'
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("squeue", squeue), ("scancel", "#!/bin/sh\n")):
        (there / name).write_text(text.format(there=there))
        (there / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{there}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    given = ("partition=night", "gpus_per_job=0", "array_parallelism=2", "memory_gb=2", "sbatch={nice: 5, qos: low}")
    asked = composed("launcher=slurm", *(f"launcher.{item}" for item in given))["launcher"]
    cells = [cell("a"), cell("b", "do=diverge"), cell("c", "do=fail")]
    outcomes = execute(cells, tmp_path / "runs", asked, script=STUB)
    assert [outcome.status for outcome in outcomes.values()] == ["completed", "diverged", "failed"]
    script = (there / "submitted").read_text()
    options = ("array=0-2%2", "partition=night", "requeue", "cpus-per-task=4", "mem=2GB", "nice=5", "qos=low")
    for option in (*options, "time=240", "signal=USR2@120"):
        assert f"#SBATCH --{option}\n" in script
    assert "gpus" not in script
    environment = json.loads((tmp_path / "runs" / "a" / "environment.json").read_text())
    assert environment["OMP_NUM_THREADS"] == "4"
    assert not [name for name in environment if name.startswith("SLURM_")]  # Lightning would take it for its cluster


def test_a_job_near_its_time_limit_saves_and_is_handed_back_to_go_on(tmp_path: Path) -> None:
    """By submitit, which calls `checkpoint` when SLURM signals and queues what that returns."""
    pytest.importorskip("submitit")
    job = master_job(tmp_path)
    function = RemoteJob(job, {})
    with ThreadPoolExecutor(1) as node:
        code = node.submit(function)
        wait_until((job.folder / "checkpoints" / "last.ckpt").exists)
        again = function.checkpoint()
        assert code.result() == 128 + signal.SIGTERM
    assert remote.exit_code(job.folder) is None  # or the master would take it for failed
    assert again.function() == remote.exit_code(job.folder) == 0
    assert [what for what, _ in history(tmp_path)] == ["start", "interrupted", "start", "completed"]


def test_a_local_job_inside_an_allocation_is_a_run_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`salloc -n 2`, then `python sweep.py`: train.py refuses an environment of two tasks."""
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "TORCHELASTIC_RUN_ID", "PMI_RANK"):
        monkeypatch.setenv(name, "2")
    assert execute([cell("a")], tmp_path / "runs", LOCAL, script=STUB)["a"].status == "completed"
    environment = json.loads((tmp_path / "runs" / "a" / "environment.json").read_text())
    assert not [name for name in environment if name.startswith(("SLURM_", "TORCHELASTIC_", "PMI_"))]
    assert environment["PATH"] == os.environ["PATH"]
