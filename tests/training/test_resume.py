"""A run that is killed and started again is, to the last bit, the run that was not."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.running import TWO_PROCESSES, Script, make_command, run_script, start_two, start_two_tasks
from tests.seeds import seeded
from tests.training.small import assert_same_run, losses, rows

Command = Callable[..., list[str]]


def finish(command: list[str]) -> str:
    done = run_script(command, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for_row(folder: Path, step: int, process: Script) -> None:
    """Wait until metrics.csv has a row at or after `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"ended before step {step}: {process.printed()}")
        if any(int(row["step"]) >= step for row in rows(folder)):
            return
        time.sleep(0.005)
    pytest.fail(f"no step {step} in time")


def kill_at(command: list[str], folder: Path, step: int) -> None:
    """Start a run and kill it once it has written a row at or after `step`."""
    process = Script(command)
    wait_for_row(folder, step, process)
    process.kill()
    process.wait()


# Long enough to be hit in the middle; accumulation, so that a kill can fall between the passes of one step.
LONG = ["train.tokens=23040", "trainer.micro_batch_tokens=128"]


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, text_file: Path, cache_dir: Path, long_command: Command
) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(long_command(f"output_dir={folder}"))
    return folder


@pytest.fixture(scope="module")
def long_command(text_file: Path, cache_dir: Path) -> Command:
    return lambda *changes: make_command(text_file, cache_dir, *LONG, *changes)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_run_killed_twice_at_random_steps_matches_uninterrupted_run_bit_for_bit(
    workers: int, uninterrupted: Path, long_command: Command, tmp_path: Path
) -> None:
    command = long_command(f"output_dir={tmp_path}/run", f"trainer.num_workers={workers}")
    rng = random.Random(seeded(workers))
    for after in sorted(rng.sample(range(10, 60, 5), 2)):
        kill_at(command, tmp_path / "run", after)
        assert not (tmp_path / "run" / "result.json").exists()
    assert "continuing" in finish(command)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_muon_and_averaged_weights_continue_bit_for_bit(long_command: Command, tmp_path: Path) -> None:
    command = partial(long_command, "optim=muon", "optim.ema_decay=0.99", "train.tokens=7680")
    finish(command(f"output_dir={tmp_path}/whole"))
    kill_at(command(f"output_dir={tmp_path}/run"), tmp_path / "run", 10)
    assert "continuing" in finish(command(f"output_dir={tmp_path}/run"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_run_ended_by_a_signal_saves_says_how_to_continue_and_matches_afterwards(
    number: signal.Signals, uninterrupted: Path, long_command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = Script(long_command(f"output_dir={folder}", "checkpoint.every_steps=null"))
    wait_for_row(folder, 30, process)
    process.send_signal(number)
    code, output = process.wait(60), "".join(process.printed())
    assert code == 128 + number, output
    assert f"output_dir={folder}" in output
    assert "Traceback" not in output
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert (folder / "checkpoints" / "last.ckpt").exists()
    finish(long_command(f"output_dir={folder}"))
    assert_same_run(folder, uninterrupted)


SLOW_PASSES = """
import time
from pathlib import Path
from slm.training.module import LanguageModel

def slow(module, tokens, number, step=LanguageModel.training_step):
    done = module.trainer.global_step
    if number % module.plan.accumulation:  # not the first pass of a step
        if done >= {signalled_after}:
            Path(module.trainer.default_root_dir, "slow").touch()
        if done >= {slow_after}:
            time.sleep({seconds})
    return step(module, tokens, number)

LanguageModel.training_step = slow
"""
"""An extension after which passes take `seconds`; the file `slow` says when to send a signal."""


def signal_in_slow_step(processes: list[Script], folder: Path, number: int) -> float:
    """Send the signal to the last process when passes are slow; the seconds until all have ended."""
    deadline = time.monotonic() + 120
    while not (folder / "slow").exists():
        assert time.monotonic() < deadline, processes[0].printed()
        assert processes[0].poll() is None, processes[0].printed()
        time.sleep(0.01)
    time.sleep(0.2)  # until it sleeps
    sent = time.monotonic()
    processes[-1].send_signal(number)
    for process in processes:
        process.wait(100)
    return time.monotonic() - sent


def test_a_signal_is_answered_in_the_middle_of_a_pass_and_the_step_is_repeated(
    uninterrupted: Path, long_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_PASSES.format(seconds=90, slow_after=5, signalled_after=5))
    command = long_command(f"output_dir={tmp_path}/run", "checkpoint.every_steps=null")
    process = Script([*command, f"extensions=[{tmp_path}/slow.py]"])
    assert signal_in_slow_step([process], tmp_path / "run", signal.SIGUSR1) < 45
    assert process.poll() == 128 + signal.SIGTERM, process.printed()
    assert "SIGUSR1: saving" in process.printed()[0]
    assert "from step 5 of" in finish(command)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_slurms_warning_to_one_of_two_processes_ends_both_in_the_middle_of_a_step(
    strategy: str, train_command: Command, tmp_path: Path
) -> None:
    """A row takes 100 steps. After the first slow step, of 4.5 seconds, the processes vote after each pass."""
    (tmp_path / "slow.py").write_text(SLOW_PASSES.format(seconds=1.5, slow_after=1, signalled_after=2))
    same = ["train.tokens=3072", "trainer.precision=32-true", "trainer.micro_batch_tokens=32"]
    two = [*same, f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", f"output_dir={tmp_path}/run"]
    slow = ["train.log_every=100", "train.eval_every=100", f"extensions=[{tmp_path}/slow.py]"]
    finish(train_command(*same, f"output_dir={tmp_path}/one"))
    started = start_two_tasks(train_command(*two, *slow))
    assert signal_in_slow_step(started, tmp_path / "run", signal.SIGUSR1) < 30
    assert [process.poll() for process in started] == [128 + signal.SIGTERM, 0], started[0].printed()
    assert not list(tmp_path.rglob("hpc_ckpt_*"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["signal"]) == ("interrupted", signal.SIGTERM)
    again = start_two_tasks(train_command(*two, *slow[:2]))
    assert [process.wait(240) for process in again] == [0, 0], again[0].printed()
    assert "from step 2 of 12 " in again[0].printed()[0]  # the third was given up
    assert losses(tmp_path / "run", "val/loss")[-1] == pytest.approx(losses(tmp_path / "one", "val/loss")[-1], abs=1e-5)


def test_a_run_killed_before_its_result_only_writes_the_result(
    uninterrupted: Path, long_command: Command, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    command = long_command(f"output_dir={tmp_path}/run")
    before, expected = rows(tmp_path / "run"), json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").unlink()
    finish(command)
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert rows(tmp_path / "run") == before
    assert (again["status"], again["val"], again["steps"]) == ("completed", expected["val"], expected["steps"])


def test_a_truncated_newest_checkpoint_is_noticed_and_the_one_before_it_used(
    uninterrupted: Path, long_command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    kill_at(long_command(f"output_dir={folder}"), folder, 40)
    last = folder / "checkpoints" / "last.ckpt"
    os.truncate(last, last.stat().st_size // 2)
    assert "is damaged" in finish(long_command(f"output_dir={folder}"))
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize(
    "change",
    [["trainer.micro_batch_tokens=64"], pytest.param(["trainer=ddp", "trainer.devices=2"], marks=pytest.mark.slow)],
)
def test_a_run_continued_with_other_passes_a_step_sees_the_same_batches(
    change: list[str], train_command: Command, tmp_path: Path
) -> None:
    """The kill falls after an odd number of steps, so that Lightning's counts of passes cannot agree by accident."""
    common = ["train.tokens=8960", "trainer.accelerator=cpu", "trainer.precision=32-true", "checkpoint.every_steps=1"]
    finish(train_command(*common, f"output_dir={tmp_path}/whole"))
    kill_at(train_command(*common, f"output_dir={tmp_path}/run"), tmp_path / "run", 15)
    finish(train_command(*common, *change, f"output_dir={tmp_path}/run"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=1e-3)


@pytest.mark.parametrize(("optim", "strategy"), TWO_PROCESSES)
def test_a_run_of_two_processes_continues_as_if_it_had_not_stopped(
    optim: list[str], strategy: str, train_command: Command, tmp_path: Path
) -> None:
    common = ["train.tokens=4096", f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2"]
    common += ["checkpoint.every_steps=3", "train.val_tokens=512", "train.sample_tokens=0", *optim]

    def start(name: str) -> list[Script]:
        return start_two(train_command(*common, f"output_dir={tmp_path / name}"))

    assert [process.wait(240) for process in start("whole")] == [0, 0]
    killed = start("run")
    wait_for_row(tmp_path / "run", 5, killed[0])
    for process in killed:
        process.kill()
    assert [process.wait() for process in killed] == [-signal.SIGKILL] * 2
    assert [process.wait(240) for process in start("run")] == [0, 0]
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_a_completed_run_is_left_alone(uninterrupted: Path, long_command: Command, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    command = long_command(f"output_dir={tmp_path}/run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert "completed already" in finish(command)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
