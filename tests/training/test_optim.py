import math

import pytest
import torch

from slm.training.optim import GUARD_WINDOW, OPTIMIZERS, StepGuard, full_grad_norm, make_adamw, skip_if
from slm.training.parametrization import STANDARD
from tests.training.small import OPTIM, random_decoder, set_random_gradients


def test_steps_equal_the_adamw_equations_in_float64() -> None:
    """Loshchilov & Hutter 2019, algorithm 2: decay on matrices only."""
    decoder = random_decoder()
    optimizer = make_adamw(decoder, OPTIM)
    reference = {name: p.detach().double() for name, p in decoder.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in reference.items()}
    second = {name: torch.zeros_like(p) for name, p in reference.items()}
    for step in range(1, 6):
        set_random_gradients(decoder, step)
        for name, p in decoder.named_parameters():
            g = p.grad.double()
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            reference[name] *= 1 - 0.01 * (0.1 if p.ndim == 2 else 0.0)
            hat1, hat2 = first[name] / (1 - 0.9**step), second[name] / (1 - 0.95**step)
            reference[name] -= 0.01 * hat1 / (hat2.sqrt() + 1e-8)
        optimizer.step()
    for name, p in decoder.named_parameters():
        torch.testing.assert_close(p.double(), reference[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_leaves_no_trace(name: str) -> None:
    """Steps 1, 2 (skipped, with NaN gradients), 3 give what steps 1 and 3 give, to the last bit."""
    results = []
    for steps in ((1, None, 3), (1, 3)):
        decoder = random_decoder()
        optimizer = OPTIMIZERS[name](decoder, OPTIM, STANDARD)
        for step in steps:
            set_random_gradients(decoder, step or 0)
            if step is None:
                for parameter in decoder.parameters():
                    parameter.grad.fill_(math.nan)
            skip_if(optimizer, torch.tensor(1.0 if step is None else 0.0))
            optimizer.step()
        state = [tensor for values in optimizer.state.values() for tensor in values.values()]
        results.append([p.detach() for p in decoder.parameters()] + state)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_norms_that_are_not_finite_are_bad_from_the_first_step() -> None:
    guard = StepGuard(skip_factor=10)
    verdicts = [guard.check_step(torch.tensor(norm)).item() for norm in (1.0, math.nan, math.inf, 1.0)]
    assert verdicts == [0, 1, 1, 0]
    assert guard.skipped.item() == 2
    assert guard.in_a_row.item() == 0


def test_a_norm_far_above_the_recent_mean_is_bad_and_does_not_move_the_mean() -> None:
    guard = StepGuard(skip_factor=10)
    for _ in range(GUARD_WINDOW):
        assert guard.check_step(torch.tensor(2.0)) == 0
    assert guard.check_step(torch.tensor(19.0)) == 0
    mean = guard.log_mean.item()
    assert [guard.check_step(torch.tensor(30.0)).item() for _ in range(3)] == [1, 1, 1]
    assert guard.log_mean.item() == mean
    assert guard.in_a_row.item() == 3


def test_a_guard_at_its_start_watches_large_norms_without_skipping() -> None:
    guard = StepGuard(skip_factor=10)
    assert [guard.check_step(torch.tensor(norm)).item() for norm in (0.1, 100.0, 0.0, 5.0)] == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_guard_judges_in_the_precision_of_its_module(dtype: torch.dtype) -> None:
    guard = StepGuard(skip_factor=10).to(dtype)
    assert [guard.check_step(torch.tensor(norm)).item() for norm in (1.0, math.nan)] == [0, 1]


def test_the_gradient_norm_is_that_of_all_gradients_together() -> None:
    decoder = random_decoder()
    set_random_gradients(decoder, 1)
    expected = math.sqrt(sum(p.grad.double().square().sum().item() for p in decoder.parameters()))
    assert full_grad_norm(list(decoder.parameters())).item() == pytest.approx(expected, rel=1e-6)
