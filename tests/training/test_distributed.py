"""Several processes on CPUs (gloo) train the run that one process trains."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import TWO_PROCESSES, run_script
from tests.training.small import losses

Command = Callable[..., list[str]]


def run(command: list[str]) -> None:
    done = run_script(command, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("optim", "strategy"), TWO_PROCESSES)
def test_two_processes_train_as_one_does(
    optim: list[str], strategy: str, train_command: Command, tmp_path: Path
) -> None:
    same = ["trainer.precision=32-true", "train.tokens=20480", "model.layer_sharing=immediate", "model.num_repeats=2"]
    two = [f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2"]
    run(train_command(*optim, *same, f"output_dir={tmp_path}/one"))
    run(train_command(*optim, *same, *two, f"output_dir={tmp_path}/two"))
    for column in ("train/loss", "val/loss"):
        one, both = losses(tmp_path / "one", column), losses(tmp_path / "two", column)
        assert len(one) == len(both) > 5
        assert one == pytest.approx(both, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert (tmp_path / "two" / "model" / "model.safetensors").exists()
