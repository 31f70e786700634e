"""Muon against an SVD, the equations in float64, torch's own Muon and torch's own AdamW."""

import math

import pytest
import torch
from torch import Tensor, nn

from slm.training.muon import QUINTIC, Muon, orthogonalize
from slm.training.optim import make_adamw, make_muon
from tests.seeds import seeded
from tests.training.small import OPTIM, random_decoder, set_random_gradients


def quintic(singular_values: Tensor, iterations: int) -> Tensor:
    a, b, c = QUINTIC
    for _ in range(iterations):
        singular_values = a * singular_values + b * singular_values**3 + c * singular_values**5
    return singular_values


def by_svd(matrix: Tensor, iterations: int) -> Tensor:
    """What Newton-Schulz computes, by the polynomial on singular values of the normalised matrix."""
    u, s, vh = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    return u @ torch.diag(quintic(s, iterations)) @ vh


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_the_iterations_are_the_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seeded(1)), dtype=torch.float64)
    result = orthogonalize(x, 5)
    for matrix, orthogonal in zip(x, result, strict=True):
        torch.testing.assert_close(orthogonal, by_svd(matrix, 5), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_values_come_out_near_one_whatever_the_scale_of_the_input(dtype: torch.dtype) -> None:
    """What five rounds of the scalar polynomial make of [0.002, 1], which the values below are in: [0.68, 1.21]."""
    torch.manual_seed(seeded(2))
    u, v = (torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0] for _ in range(2))
    values = torch.logspace(-1.5, 0, 32, dtype=torch.float64)
    for scale in (1e-6, 1.0, 1e6):
        x = (scale * u @ torch.diag(values) @ v).to(dtype)
        result = orthogonalize(x[None], 5)[0].double()
        found = torch.linalg.svdvals(result)
        assert found.min() > 0.66  # bfloat16 rounds
        assert found.max() < 1.22
        cosine = (result * (u @ v)).sum() / result.norm() / 32**0.5
        assert cosine > 0.98  # the orthogonal factor's direction


def test_a_matrix_without_gradient_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 6), 5), torch.zeros(1, 4, 6))


@pytest.mark.parametrize("batch_numbers", [1, 2**26])
def test_steps_equal_the_equations_in_float64(batch_numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon on the matrices of blocks, AdamW on embedding (tied head) and gains; a block is used twice."""
    monkeypatch.setattr("slm.training.muon.MAX_BATCH_NUMBERS", batch_numbers)  # matrices one by one, or together
    decoder = random_decoder(num_layers=3, num_kv_heads=2, layer_sharing="immediate", num_repeats=2).double()
    optimizer = make_muon(decoder, OPTIM)
    reference = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    buffers = [{name: torch.zeros_like(p) for name, p in reference.items()} for _ in range(2)]
    for step in range(1, 5):
        set_random_gradients(decoder, step)
        for name, p in decoder.named_parameters():
            w, first, second = reference[name], buffers[0][name], buffers[1][name]
            if p.ndim == 2:
                w *= 1 - 0.01 * 0.1
            if name.startswith("layers") and p.ndim == 2:
                first.copy_(0.95 * first + 0.05 * p.grad)
                w -= 0.01 * 0.2 * math.sqrt(max(p.shape)) * by_svd(0.05 * p.grad + 0.95 * first, 5)
            else:
                first.copy_(0.9 * first + 0.1 * p.grad)
                second.copy_(0.95 * second + 0.05 * p.grad**2)
                w -= 0.01 * (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        optimizer.step()
    for name, p in decoder.named_parameters():
        torch.testing.assert_close(p, reference[name], rtol=1e-9, atol=1e-11)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 and later have it")
def test_matrices_follow_torchs_muon_within_bfloat16() -> None:
    ours = torch.randn(24, 16, generator=torch.Generator().manual_seed(seeded(3))).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    group = {"params": [ours], "lr": 0.01, "weight_decay": 0.1, "eps": 1e-8, "orthogonal": True}
    optimizers = (
        Muon([group], betas=(0.9, 0.95), momentum=0.95, iterations=5),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    before = ours.detach().clone()
    for step in range(5):
        gradient = torch.randn(24, 16, generator=torch.Generator().manual_seed(seeded(10 + step)))
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    assert (ours - theirs).norm() < 0.03 * (ours - before).norm()


def test_what_is_no_hidden_matrix_follows_torchs_adamw_bit_for_bit() -> None:
    results = []
    for make in (make_adamw, make_muon):
        decoder = random_decoder(num_layers=3, num_kv_heads=2, tie_embeddings=False, attention_bias=True)
        optimizer = make(decoder, OPTIM)
        for step in range(4):
            set_random_gradients(decoder, step)
            optimizer.step()
        results.append({n: p for n, p in decoder.named_parameters() if p.ndim < 2 or not n.startswith("layers")})
    assert results[0].keys() == results[1].keys()
    assert {"embed_tokens.weight", "lm_head.weight", "norm.weight"} < results[0].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_an_update_has_the_root_mean_square_of_adamws() -> None:
    """arXiv:2502.16982, eq. 4: 0.2 for a square matrix of noise, whatever its size."""
    for size in (16, 128):
        p = nn.Parameter(torch.zeros(size, size))
        p.grad = torch.randn(size, size, generator=torch.Generator().manual_seed(seeded()))
        group = {"params": [p], "lr": 1.0, "weight_decay": 0.0, "eps": 1e-8, "orthogonal": True}
        Muon([group], betas=(0.9, 0.95), momentum=0.95, iterations=5).step()
        assert p.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)


def test_a_device_that_the_host_does_not_wait_for_takes_or_skips_the_step_as_a_cpu_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There the step is not left early: a share of 0 or 1, a tensor, decides on the device."""
    results = []
    for has_share in (False, True):
        rng = torch.Generator().manual_seed(0)
        matrix = torch.nn.Parameter(torch.randn(8, 12, generator=rng))
        group = {"params": [matrix], "lr": 0.01, "weight_decay": 0.1, "eps": 1e-8, "orthogonal": True}
        optimizer = Muon([group], betas=(0.9, 0.95), momentum=0.95, iterations=5)
        for is_bad in (False, True, False):
            matrix.grad = torch.randn(8, 12, generator=rng) * (math.nan if is_bad else 1)
            if has_share:
                share = torch.tensor(0.0 if is_bad else 1.0)
                monkeypatch.setattr(optimizer, "_share_of_step", lambda device, share=share: share)
            else:
                optimizer.found_inf = torch.tensor(float(is_bad))
            optimizer.step()
        results.append((matrix.detach(), optimizer.state[matrix]["momentum_buffer"]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][0].isfinite().all()
