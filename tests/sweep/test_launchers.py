"""Engines: slots of this machine, and jobs elsewhere that may be lost."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from slm.sweep import execute as master
from slm.sweep.execute import execute
from slm.sweep.job import Job, id_and_slot
from slm.sweep.launchers import open_launcher, remote, slurm
from slm.sweep.launchers.local import slot_environments, visible_gpus
from slm.sweep.launchers.remote import RemoteJob
from tests.running import ROOT
from tests.sweep.celled import LOCAL, STUB, cell, count, history
from tests.sweep.test_command_line import composed


def settings(name: str, **changes: object) -> dict:
    file = OmegaConf.load(ROOT / "conf" / "launcher" / f"{name}.yaml")
    return OmegaConf.to_container(file) | changes  # type: ignore[return-value,operator]


SETTINGS = settings("local", memory_gb=1e-6)


@given(cores=st.integers(1, 64), gpus=st.integers(0, 8), per_job=st.integers(0, 8), jobs=st.integers(1, 40))
def test_slots_share_the_machine_without_overlap(cores: int, gpus: int, per_job: int, jobs: int) -> None:
    names = [f"GPU-{n}" for n in range(gpus)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda process: range(cores))
        asked = SETTINGS | {"gpus_per_job": per_job}
        if gpus and per_job > gpus:
            with pytest.raises(ValueError, match="more than"):
                slot_environments(asked, jobs=jobs, gpus=names)
            return
        slots = slot_environments(asked, jobs=jobs, gpus=names)
    given_out = [name for slot in slots for name in slot.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    assert len(given_out) == len(set(given_out)) == (per_job * len(slots) if gpus else 0)
    assert len({slot["OMP_NUM_THREADS"] for slot in slots}) == 1  # or a cell's bits would depend on its slot
    if not given_out:
        assert len(slots) == min(cores, jobs)
    if len(slots) <= cores:
        assert cores / 2 < sum(int(slot["OMP_NUM_THREADS"]) for slot in slots) <= cores


def test_memory_bounds_the_slots_that_nobody_asked_for() -> None:
    assert len(slot_environments(settings("local", memory_gb=1e6), jobs=9, gpus=[])) == 1
    assert len(slot_environments(settings("local", memory_gb=1e6, slots=3), jobs=9, gpus=[])) == 3


def test_gpus_that_were_hidden_from_us_are_hidden_from_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen, expected in (("", []), ("-1", []), ("2, GPU-8f", ["2", "GPU-8f"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert visible_gpus() == expected


def test_a_job_has_the_share_of_its_slot(tmp_path: Path) -> None:
    execute([cell("a")], tmp_path / "runs", LOCAL | {"threads": 3}, script=STUB, environment={"SLM_WORD": "x"})
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
        (settings("ray", gpus_per_job=None), "launcher.gpus_per_job=None"),
        (settings("ray", address=5), "launcher.address=5"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(asked: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        open_launcher(asked, tmp_path / "runs", jobs=1)


@pytest.mark.parametrize(("name", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_extra_that_is_missing_is_named(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"launcher={name} needs .*: pip install 'slm\[{name}\]'"):
        open_launcher(settings(name), tmp_path / "runs", jobs=1)


def test_slurm_without_slurm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="finds no SLURM here"):
        open_launcher(settings("slurm"), tmp_path / "runs", jobs=1)


class OtherMachine:
    """A scheduler whose nodes are processes here, and which does to them what clusters do."""

    def __init__(self) -> None:
        self.processes: dict[str, multiprocessing.process.BaseProcess] = {}
        self.told: dict[str, str] = {}
        self.cancelled: list[str] = []

    def submit(self, functions: Sequence[RemoteJob]) -> list[str]:
        numbers = [f"{len(self.processes)}_{n}" for n in range(len(functions))]
        for number, function in zip(numbers, functions, strict=True):
            process = multiprocessing.get_context("fork").Process(target=function)
            process.start()
            self.processes[number] = process
        return numbers

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


QUICK = settings("slurm", silence_minutes=0.02)


def kill_when_started(folder: Path, machine: OtherMachine, number: signal.Signals) -> None:
    """What `show` is given: signals the first job function, once, and its job with it if that is SIGKILL."""
    job = machine.processes.get("0_0")
    running = folder / "runs" / "a" / "metrics.csv"
    if job is not None and job.pid and job.is_alive() and running.exists() and not (folder / "killed").exists():
        (folder / "killed").touch()
        if number == signal.SIGKILL:
            os.kill(int((folder / "runs" / "a" / "job.pid").read_text().split()[0]), number)
        os.kill(job.pid, number)


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_job_that_slurm_loses_is_noticed_by_its_silence(
    forgotten: bool, other_machine: OtherMachine, tmp_path: Path
) -> None:
    """Whether the scheduler forgets the job or says for ever that it runs."""
    if not forgotten:
        other_machine.told["0_0"] = "RUNNING"
    cells = [cell("a", "seconds=0.1", steps=6), cell("b", "do=fail")]
    outcomes = execute(
        cells,
        tmp_path / "runs",
        QUICK,
        script=STUB,
        show=lambda s: kill_when_started(tmp_path, other_machine, signal.SIGKILL),
    )
    assert (outcomes["a"].status, outcomes["b"].status) == ("completed", "failed")
    assert count(tmp_path, "start", "a") == 2
    assert ("0_0" in other_machine.cancelled) != forgotten


def test_a_job_that_is_preempted_saves_and_waits_its_turn_however_long(
    other_machine: OtherMachine, tmp_path: Path
) -> None:
    asked = []

    def show(standings: object) -> None:
        kill_when_started(tmp_path, other_machine, signal.SIGTERM)
        if (tmp_path / "killed").exists() and not other_machine.processes["0_0"].is_alive():
            other_machine.told["0_0"] = "PENDING"
            asked.append(time.monotonic())
            if asked[-1] - asked[0] > 2:  # longer than the silence that would be a loss
                del other_machine.told["0_0"]
                function = RemoteJob(master_job(tmp_path))
                process = multiprocessing.get_context("fork").Process(target=function)
                process.start()
                other_machine.processes["0_0"] = process

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
    engine = open_launcher(QUICK, tmp_path, jobs=1)
    assert engine.adopt([job_in(tmp_path)]) == []
    assert engine.free() > 0
    monkeypatch.setattr(other_machine, "states", lambda: None)
    assert engine.ended() == {}
    assert engine.free() == 0
    with pytest.raises(ValueError, match="no answer from SLURM"):
        engine.adopt([job_in(tmp_path)])


def test_a_second_interrupt_does_not_wait_for_slurm(other_machine: OtherMachine, tmp_path: Path) -> None:
    """Which gives jobs its KillWait, however it is asked."""
    engine = open_launcher(QUICK, tmp_path, jobs=1)
    engine.start([job_in(tmp_path)])
    other_machine.processes["0_0"].join()
    (tmp_path / "a" / remote.EXIT).unlink()
    other_machine.told["0_0"] = "COMPLETING"
    other_machine.cancel = lambda ids: None  # type: ignore[method-assign]
    engine.stop()
    assert engine.ended() == {}
    engine.stop(at_once=True)
    assert engine.ended() == {"a": None}


SBATCH = """#!/bin/sh
# sbatch FILE: runs each task of the array at once, as slurmd would the file; their ids stand in for job ids
cp "$1" {there}/submitted
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for task in $(seq 0 "$tasks"); do
  SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 sh -c \
    "echo 7_$task RUNNING >{there}/task$task; sh $1; rm {there}/task$task" >{there}/log$task 2>&1 &
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
    function = RemoteJob(job)
    with ThreadPoolExecutor(1) as node:
        code = node.submit(function)
        while not (job.folder / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.01)
        again = function.checkpoint()
        assert code.result() == 128 + signal.SIGTERM
    assert remote.exit_code(job.folder) is None  # or the master would take it for failed
    assert again.function() == remote.exit_code(job.folder) == 0
    assert [what for what, _ in history(tmp_path)] == ["start", "interrupted", "start", "completed"]


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
    cells = [cell("a", "do=die_once"), cell("b", "do=fail"), cell("c", after="a")]
    outcomes = execute(cells, tmp_path / "runs", settings("ray", cpus_per_job=3, gpus_per_job=1), script=STUB)
    assert ray.__dict__["resources"] == {"num_cpus": 3, "num_gpus": 1, "max_retries": 0}
    assert [outcome.status for outcome in outcomes.values()] == ["completed", "failed", "completed"]
    assert count(tmp_path, "start", "a") == 2


def test_jobs_that_ray_started_here_end_at_once_when_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = ray_on_threads()
    ray.__dict__["cancel"] = lambda task, force: None  # a worker that is killed leaves what it has started
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(remote, "BEAT_SECONDS", 0.1)
    job = Job(name="a", folder=tmp_path / "a", command=("sleep", "60"))
    engine = open_launcher(settings("ray"), tmp_path, jobs=1)
    engine.start([job])
    while id_and_slot(job.folder) is None:
        time.sleep(0.01)
    engine.stop(at_once=True)
    while not (ended := engine.ended()):
        time.sleep(0.01)
    assert ended == {"a": -signal.SIGKILL}


RAY_MASTER = """
import subprocess
import sys
from pathlib import Path
from slm.sweep.execute import Interrupted, execute
from tests.sweep.celled import STUB, cell
from tests.sweep.test_launchers import settings

cells = [cell("a", "seconds=0.2", steps=20), cell("b", "do=die_once"), cell("c", "do=fail")]
try:
    outcomes = execute(cells, Path(sys.argv[1]) / "runs", settings("ray"), script=STUB)
except Interrupted as error:
    sys.exit(str(error))
print(*(outcome.status for outcome in outcomes.values()))
"""


def test_a_ray_that_does_not_start_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = ray_on_threads()

    def init(**settings: object) -> None:
        raise Exception("The current node timed out\nduring startup.")

    ray.__dict__["init"] = init
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ValueError, match=r"launcher\.address=null: Ray is not there .*timed out during startup"):
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
            assert "Ray is not there" in said, said
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
