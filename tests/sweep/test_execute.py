"""Every cell gets an outcome, whatever becomes of its jobs and of the master."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig

from slm.composition.resolvers import register
from slm.sweep import execute as master
from slm.sweep import ledger
from slm.sweep.cells import Cell
from slm.sweep.execute import Interrupted, execute
from slm.sweep.job import PID, Job, begin, has_job, id_and_slot
from slm.sweep.ledger import Outcome
from slm.sweep.recipe import Recipe
from tests.running import ROOT, make_command
from tests.seeds import seeded
from tests.sweep.celled import LOCAL, STUB, WRONG, cell, count, history, processes, start_master, wait_until


def run(folder: Path, cells: list[Cell], **changes: object) -> dict[str, Outcome]:
    return execute(cells, folder / "runs", LOCAL, script=STUB, **changes)


def statuses(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {name: outcome.status for name, outcome in outcomes.items()}


def all_starts(folder: Path) -> list[str]:
    return [name for what, name in history(folder) if what == "start"]


def has_started_or_ended(process: subprocess.Popen[str], folder: Path, starts: int) -> bool:
    """Whether there has been a start more than `starts`, or there will be none."""
    return process.poll() is not None or len(all_starts(folder)) > starts


def live_jobs(folder: Path) -> list[int]:
    """Ids of the stand-ins that run under `folder`."""
    return [number for number, line, _ in processes() if f"{folder}/runs" in line]


def test_a_cell_that_goes_wrong_stops_none_but_branches_whose_step_it_has_not_kept(tmp_path: Path) -> None:
    cells = [
        cell("good"),
        *(cell(name, f"do={what}") for name, what in WRONG.items()),
        cell("impossible", impossible="width=3 must be even"),
        cell("branch", trunk="failing"),
        cell("twig", trunk="good"),
        cell("early", trunk="diverging", branch_step=1),
        cell("late", trunk="diverging", branch_step=2),
    ]
    kept = tmp_path / "runs" / "diverging" / "checkpoints" / "step-000001.ckpt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    outcomes = run(tmp_path, cells)
    expected = dict.fromkeys(["good", "twig", "early"], "completed")
    expected |= dict.fromkeys(["failing", "dying", "silent"], "failed")
    expected |= {"diverging": "diverged", "impossible": "impossible", "branch": "not_started", "late": "not_started"}
    assert statuses(outcomes) == expected
    assert outcomes["impossible"].why == "width=3 must be even"
    assert outcomes["failing"].why == "exit code 1: nonsense=1 must be sense"
    assert outcomes["dying"].why == "killed by SIGKILL 2 times with no new checkpoint"
    assert outcomes["branch"].why == "it needs a checkpoint of failing, whose status is failed"
    assert outcomes["late"].why == "it needs a checkpoint of diverging, whose status is diverged"
    assert [count(tmp_path, "start", name) for name in ("failing", "dying", "silent")] == [1, 2, 1]
    failure = json.loads((tmp_path / "runs" / "dying" / "failure.json").read_text())
    assert (failure["exit_code"], failure["signal"], failure["starts"]) == (-9, 9, 2)
    assert not (tmp_path / "runs" / "impossible").exists()

    before = history(tmp_path)
    assert run(tmp_path, cells) == outcomes
    assert history(tmp_path) == before


def test_retry_runs_failed_and_diverged_cells_again_and_keeps_what_was_there(tmp_path: Path) -> None:
    run(tmp_path, [cell("a", "do=fail"), cell("b", "do=diverge"), cell("c")])
    outcomes = run(tmp_path, [cell("a"), cell("b"), cell("c")], retry="failed")
    assert statuses(outcomes) == dict.fromkeys("abc", "completed")
    assert count(tmp_path, "start", "c") == 1
    assert "nonsense" in json.loads((tmp_path / "runs" / "a" / "failure-1.json").read_text())["why"]
    assert json.loads((tmp_path / "runs" / "b-1.retried" / "diverged.json").read_text())["status"] == "diverged"
    assert not list((tmp_path / "runs").glob("*.retried/result.json"))


def test_a_killed_job_continues_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [cell("a", "do=die_once")])["a"].status == "completed"
    assert (tmp_path / "history").read_text().splitlines() == ["start a 0", "start a 2", "completed a 3"]
    assert capsys.readouterr().err == "a: killed by SIGKILL; it will be started again\n"


def test_deaths_that_each_leave_a_new_checkpoint_are_not_counted_against_a_job(tmp_path: Path) -> None:
    """A job that is preempted at every turn gets done, however small `tries` is."""

    checkpoint, killed = tmp_path / "runs" / "a" / "checkpoints" / "last.ckpt", []

    def kill(standings: object) -> None:
        starts = (tmp_path / "history").read_text().splitlines() if history(tmp_path) else []
        if len(killed) < min(len(starts), 4) and checkpoint.exists() and checkpoint.read_text() > starts[-1].split()[2]:
            for job in live_jobs(tmp_path):
                os.kill(job, signal.SIGKILL)
                killed.append(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(master, "SHOW_SECONDS", 0.0)
        assert run(tmp_path, [cell("a", "seconds=0.1", steps=30)], show=kill)["a"].status == "completed"
    assert count(tmp_path, "start", "a") == 5 > LOCAL["tries"]


def test_the_longest_goes_first_and_a_trunk_counts_its_longest_branch(tmp_path: Path) -> None:
    cells = [cell("small", flops=1.0), cell("large", flops=5.0)]
    cells += [cell("branch", flops=4.0, trunk="trunk"), cell("trunk", flops=2.0)]
    execute(cells, tmp_path / "runs", LOCAL | {"slots": 1}, script=STUB)
    assert all_starts(tmp_path) == ["trunk", "large", "branch", "small"]


def test_two_deaths_for_want_of_memory_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter(range(100))
    monkeypatch.setattr(ledger, "count_kernel_kills", lambda: next(kills))
    outcome = execute([cell("a", "do=die")], tmp_path / "runs", LOCAL | {"tries": 9}, script=STUB)["a"]
    assert outcome.why == "out of memory: killed by the kernel 2 times with no new checkpoint"
    assert count(tmp_path, "start", "a") == 2


@pytest.mark.parametrize("warm_start", [False, True])
def test_a_master_and_jobs_that_are_killed_at_random_train_every_cell_once(warm_start: bool, tmp_path: Path) -> None:
    rng = random.Random(seeded())
    for kill in range(4):
        process, starts = start_master(tmp_path, warm_start=warm_start), len(all_starts(tmp_path))
        wait_until(partial(has_started_or_ended, process, tmp_path, starts))
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.communicate()
        if kill % 2 and (jobs := live_jobs(tmp_path)):
            os.kill(rng.choice(jobs), signal.SIGKILL)
    process = start_master(tmp_path, warm_start=warm_start)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    events = history(tmp_path)
    assert not [event for event in events if event[0] == "twice"]
    for number in range(5):
        own = [what for what, name in events if name == f"c{number}"]
        assert own.count("completed") == 1
        assert own[-1] == "completed"
    wait_until(lambda: not [line for _, line, _ in processes() if "forkserver" in line and str(tmp_path) in line])


def test_sigterm_lets_jobs_save_and_the_next_master_goes_on(tmp_path: Path) -> None:
    process = start_master(tmp_path)
    wait_until(lambda: len(list((tmp_path / "runs").glob("*/checkpoints/last.ckpt"))) == 2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted with 0 of 5 cells completed" in said
    assert f"to continue, run the same command with output_dir={tmp_path}" in said
    assert not live_jobs(tmp_path)
    assert [what for what, _ in history(tmp_path)] == ["start"] * 2 + ["interrupted"] * 2
    process = start_master(tmp_path)
    assert process.communicate(timeout=60)[1] == ""
    assert "start c4 0" not in (tmp_path / "history").read_text().splitlines()[4:]


def test_a_signal_in_the_same_process_lets_the_running_job_save(tmp_path: Path) -> None:
    def interrupt(standings: object) -> None:
        if count(tmp_path, "start", "long"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="interrupted with 0 of 2 cells completed"):
        run(tmp_path, [cell("long", "seconds=0.1", steps=600, flops=9.0), cell("b", trunk="long")], show=interrupt)
    outcomes = [ledger.read_outcome(tmp_path / "runs" / name).status for name in ("long", "b")]
    assert outcomes == ["interrupted", "not_started"]


def start_by_hand(folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """The run of cell a, once it has started."""
    command = [sys.executable, str(STUB), f"output_dir={folder}/runs/a", "seconds=0.2", f"steps={steps}"]
    process = subprocess.Popen(command)
    wait_until(lambda: bool(history(folder)))
    return process


def test_a_run_that_somebody_trains_by_hand_is_waited_for(tmp_path: Path) -> None:
    by_hand = start_by_hand(tmp_path, steps=4)
    assert run(tmp_path, [cell("a")])["a"].status == "completed"
    assert by_hand.wait() == 0
    assert count(tmp_path, "start", "a") == 1


def test_a_sweep_that_is_interrupted_leaves_a_run_by_hand_alone_and_does_not_wait_for_it(tmp_path: Path) -> None:
    by_hand = start_by_hand(tmp_path, steps=100)
    with pytest.raises(Interrupted):
        run(tmp_path, [cell("a")], show=lambda standings: signal.raise_signal(signal.SIGINT))
    assert by_hand.poll() is None
    by_hand.kill()
    assert by_hand.wait() == -signal.SIGKILL


def test_cells_are_trained_by_train_py_itself(text_file: Path, cache_dir: Path, tmp_path: Path) -> None:
    overrides = tuple(make_command(text_file, cache_dir, "train.tokens=2560")[2:])
    hopeless = ("optim.lr=1e38", "schedule=constant", "train.tokens=10240")
    cells = [replace(cell("it's, a=name", tokens=2560), overrides=overrides)]
    cells += [replace(cell("hopeless", tokens=2560), overrides=(*overrides, *hopeless))]
    launcher = LOCAL | {"warm_start": True}
    outcomes = execute(cells, tmp_path / "runs", launcher, common=("logger.group=sweep",))
    assert statuses(outcomes) == {"it's, a=name": "completed", "hopeless": "diverged"}
    assert "group: sweep" in (tmp_path / "runs" / "it's, a=name" / "config.yaml").read_text()


def test_the_id_of_a_job_on_another_machine_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    job = Job(name="a", folder=tmp_path / "a", command=("sleep", "60"))
    process = begin(job, {"PATH": os.environ["PATH"]}, slot=1)
    assert process is not None
    try:
        wait_until(lambda: id_and_slot(job.folder) == (process.pid, 1))
        (job.folder / PID).write_text(f"{process.pid} 1 another-machine\n")
        assert has_job(job.folder)
        assert id_and_slot(job.folder) is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("provider", ["command-line", "hydra.searchpath in command-line"])
def test_a_family_outside_of_conf_is_found_by_the_jobs_too(provider: str, tmp_path: Path) -> None:
    """Given to sweep.py by `--config-dir`, or by `hydra.searchpath`."""
    own = tmp_path / "it's mine"
    (own / "family").mkdir(parents=True)
    text = (ROOT / "conf" / "family" / "ssd.yaml").read_text()
    (own / "family" / "mine.yaml").write_text(text.replace("state_size: 64", "state_size: 48"))
    script = tmp_path / "script.py"
    given = tmp_path / "given"
    script.write_text(f"import json, sys; json.dump(sys.argv[1:], open({str(given)!r}, 'w')); sys.exit(1)")
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        hydra = compose("sweep", return_hydra_config=True)
        hydra.hydra.runtime.config_sources = [
            ConfigSourceInfo(path=str(ROOT / "conf"), schema="file", provider="main"),
            ConfigSourceInfo(path=str(own), schema="file", provider=provider),
        ]
        HydraConfig.instance().set_config(hydra)
        try:
            assert Recipe("mine", []).config.model.state_size == 48
            execute([cell("a", "family=mine")], tmp_path / "runs", LOCAL, script=script)
        finally:
            HydraConfig.instance().cfg = None
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):  # as a job begins
        searched = [item for item in json.loads(given.read_text()) if item.startswith(("hydra.", "family="))]
        assert compose("train", overrides=searched).model.state_size == 48
