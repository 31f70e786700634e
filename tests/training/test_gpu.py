"""What only a CUDA device can show."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.small import losses

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("optim", [[], ["optim=muon", "optim.ema_decay=0.9"]], ids=["adamw", "muon"])
def test_a_gpu_follows_the_loss_curve_of_a_cpu_in_float32(optim: list[str], run_train: Run, tmp_path: Path) -> None:
    same = ["trainer.precision=32-true", "train.tokens=10240", *optim]
    for trainer in ("cpu", "gpu"):
        done = run_train(*same, f"trainer={trainer}", f"output_dir={trainer}", timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-2)


def test_compiled_bfloat16_on_a_gpu_learns_and_reports_its_memory(run_train: Run, tmp_path: Path) -> None:
    done = run_train("trainer=gpu", "trainer.compile=true", "output_dir=run", "train.tokens=30720", timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["precision"] == "bf16-mixed"
    assert result["val"]["loss"] < 5.0
    assert result["peak_memory_bytes"] > result["params_total"] * 16
