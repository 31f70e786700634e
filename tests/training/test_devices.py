"""Two processes on CPUs (gloo), and one GPU, train the run that one process on a CPU trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.running import MUON, TWO_PROCESSES
from tests.training.small import losses

Result = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(("optim", "strategy"), TWO_PROCESSES)
def test_two_processes_train_as_one_does(optim: list[str], strategy: str, result_of: Result, tmp_path: Path) -> None:
    same = ["trainer.precision=32-true", "train.tokens=20480", "model.layer_sharing=immediate", "model.num_repeats=2"]
    two = [f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2"]
    result_of(*optim, *same, folder="one", timeout=240)
    result_of(*optim, *same, *two, folder="two", timeout=240)
    for column in ("train/loss", "val/loss"):
        one, both = losses(tmp_path / "one", column), losses(tmp_path / "two", column)
        assert len(one) == len(both) > 5
        assert one == pytest.approx(both, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert (tmp_path / "two" / "model" / "model.safetensors").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("optim", [[], MUON], ids=["adamw", "muon"])
def test_a_gpu_follows_the_loss_curve_of_a_cpu_in_float32(optim: list[str], result_of: Result, tmp_path: Path) -> None:
    for trainer in ("cpu", "gpu"):
        same = ["trainer.precision=32-true", "train.tokens=10240", *optim]
        result_of(*same, f"trainer={trainer}", folder=trainer, timeout=280)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-2)


@pytest.mark.gpu
def test_compiled_bfloat16_on_a_gpu_learns_and_reports_its_memory(result_of: Result) -> None:
    result = result_of("trainer=gpu", "trainer.compile=true", "train.tokens=30720", timeout=280)
    assert result["precision"] == "bf16-mixed"
    assert result["val"]["loss"] < 5.0
    assert result["peak_memory_bytes"] > result["params_total"] * 16
