"""Several processes on CPUs (gloo) train the run that one process trains."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import TWO_PROCESSES, run_script

Command = Callable[..., list[str]]


def losses(folder: Path, column: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def run(command: list[str]) -> None:
    done = run_script(command, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("optim", "strategy"), TWO_PROCESSES)
def test_two_processes_follow_the_loss_curve_of_one(
    optim: list[str], strategy: str, train_command: Command, tmp_path: Path
) -> None:
    same = [
        *optim,
        "trainer.precision=32-true",
        "train.tokens=20480",
        "model.layer_sharing=immediate",
        "model.num_repeats=2",
    ]
    run(train_command(*same, f"output_dir={tmp_path}/one"))
    two = train_command(
        *same, f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", f"output_dir={tmp_path}/two"
    )
    run(two)
    for column in ("train/loss", "val/loss"):
        one, both = losses(tmp_path / "one", column), losses(tmp_path / "two", column)
        assert len(one) == len(both) > 5
        assert one == pytest.approx(both, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert (tmp_path / "two" / "model" / "model.safetensors").exists()
