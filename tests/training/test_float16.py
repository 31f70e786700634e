"""Float16 with a loss scale: gradients that float16 rounds to zero are kept, and overflows are skipped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.training import hardware
from slm.training.optim import LOSS_SCALE_PATIENCE, LossScale, StepGuard, full_grad_norm, make_adamw, skip_if
from tests.running import make_command
from tests.training.small import OPTIM, assert_same_run, losses, random_decoder
from tests.training.test_resume import finish, kill_at


def test_the_scale_is_that_of_torchs_scaler() -> None:
    scale, reference = LossScale(), torch.amp.GradScaler("cpu", init_scale=65536.0)
    reference.scale(torch.zeros(()))  # makes its state
    good = [*[False] * 3, *[True] * (LOSS_SCALE_PATIENCE + 5), False, *[True] * LOSS_SCALE_PATIENCE, False]
    for step, is_good in enumerate(good):
        parameter = torch.nn.Parameter(torch.ones(1))
        parameter.grad = torch.tensor([1.0 if is_good else torch.inf])
        reference.unscale_(torch.optim.SGD([parameter]))
        reference.update()
        scale.update(torch.tensor(1.0 if is_good else torch.nan if step % 2 else torch.inf))
        assert scale.factor.item() == reference.get_scale(), step


def gradients(mixer: str, dtype: torch.dtype | None, scale: LossScale | None = None) -> list[torch.Tensor]:
    """Of a loss over 4,096 tokens, whose share of each token is below float16's smallest numbers."""
    decoder = random_decoder(vocab_size=512, mixer_pattern=mixer, sliding_window=16)
    tokens = torch.randint(512, (64, 65), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype or torch.float16, enabled=dtype is not None):
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:], grad_scale=scale.factor if scale else None)
    loss.backward()
    parameters = list(decoder.parameters())
    if scale:
        scale.unscale(parameters)
    assert loss.item() == pytest.approx(6.24, abs=0.1)
    return [p.grad for p in parameters if p.grad is not None]


@pytest.mark.parametrize("mixer", "FSPLG")
def test_scaled_gradients_are_those_of_float32(mixer: str) -> None:
    exact = gradients(mixer, None)
    scale = LossScale()
    scale.factor.fill_(1024.0)
    errors = [
        torch.nn.utils.get_total_norm([a - b for a, b in zip(found, exact, strict=True)])
        for found in (gradients(mixer, torch.float16, scale), gradients(mixer, torch.float16))
    ]
    assert errors[0] < 0.01 * torch.nn.utils.get_total_norm(exact)
    assert errors[0] < 0.5 * errors[1]


def test_an_overflow_changes_no_weight_and_the_next_step_is_clipped_by_the_true_norm() -> None:
    decoder, scale, guard = random_decoder(), LossScale(), StepGuard(20.0)
    optimizer, parameters = make_adamw(decoder, OPTIM), list(decoder.parameters())
    before = [p.detach().clone() for p in parameters]
    for grad in (torch.inf, 2.0):
        for p in parameters:
            p.grad = torch.full_like(p, grad * scale.factor.item())
        scale.unscale(parameters)
        norm = full_grad_norm(parameters)
        scale.update(norm)
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
        skip_if(optimizer, guard.check_step(norm))
        optimizer.step()
        is_same = [torch.equal(p, b) for p, b in zip(parameters, before, strict=True)]
        assert all(is_same) if grad == torch.inf else not any(is_same)
    assert norm.item() == pytest.approx(2.0 * sum(p.numel() for p in parameters) ** 0.5)
    assert full_grad_norm(parameters).item() == pytest.approx(1.0, abs=1e-5)
    assert (scale.factor.item(), guard.skipped.item()) == (32768.0, 1.0)


def test_auto_takes_float16_on_a_gpu_with_tensor_cores_but_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    trainer = {"accelerator": "cuda", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "auto"}
    trainer |= {"compile": False, "micro_batch_tokens": None, "num_workers": 0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, capability in {"P100": (6, 0), "V100": (7, 0), "T4": (7, 5), "A100": (8, 0)}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, c=capability: c)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda c=capability, **_: c >= (8, 0))
        monkeypatch.setattr(hardware, "why_not_compiled", lambda _: None)
        found[name] = hardware.resolve_hardware(trainer).precision
    assert found == {"P100": "32-true", "V100": "16-mixed", "T4": "16-mixed", "A100": "bf16-mixed"}


HALF = ["trainer.precision=16-mixed", "trainer.micro_batch_tokens=128", "train.tokens=5120"]


def test_a_run_in_float16_learns_as_in_float32_and_continues_with_its_scale(
    result_of: Callable[..., dict[str, Any]], text_file: Path, cache_dir: Path, tmp_path: Path
) -> None:
    result_of(*HALF, "trainer.precision=32-true", folder="exact", timeout=240)
    result = result_of(*HALF, folder="half", timeout=240)
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "exact"), abs=0.05)
    assert result["precision"] == "16-mixed"
    kill_at(make_command(text_file, cache_dir, *HALF, f"output_dir={tmp_path}/killed"), tmp_path / "killed", step=10)
    finish(make_command(text_file, cache_dir, *HALF, f"output_dir={tmp_path}/killed"))
    assert_same_run(tmp_path / "killed", tmp_path / "half")
    checkpoint = torch.load(tmp_path / "half" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["loss_scale.good_steps"] > 10
