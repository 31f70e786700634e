import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from slm.model import Decoder, ModelConfig
from slm.model import loss as loss_module
from slm.model.loss import IGNORE, chunk_loss, cross_entropy, token_losses
from tests.seeds import seeded


def problem(tokens: int, vocab: int, ignored: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seeded(tokens * vocab))
    hidden = torch.randn(tokens, 16, generator=rng, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocab, 16, generator=rng, dtype=torch.float64).requires_grad_()
    targets = torch.randint(vocab, (tokens,), generator=rng)
    targets[:ignored] = IGNORE
    return hidden, weight, targets


@given(tokens=st.integers(1, 70), vocab=st.integers(2, 40), ignored=st.integers(0, 5), chunk=st.integers(1, 80))
@settings(max_examples=50, deadline=None)
def test_loss_and_gradients_equal_float64_cross_entropy(tokens: int, vocab: int, ignored: int, chunk: int) -> None:
    hidden, weight, targets = problem(tokens, vocab, min(ignored, tokens - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss_module.CHUNK_TOKENS, "cpu", chunk)
        mine = cross_entropy(hidden, weight, targets)
        (3.0 * mine).backward()
    grads = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    reference = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE)
    (3.0 * reference).backward()
    torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, (hidden.grad, weight.grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_under_autocast_is_within_the_matmuls_precision_of_float64(dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(700, 300)
    reference = F.cross_entropy(hidden @ weight.T, targets)
    reference.backward()
    low_hidden, low_weight = (t.detach().float().requires_grad_() for t in (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        mine = cross_entropy(low_hidden, low_weight, targets)
    mine.backward()
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert mine.dtype == torch.float32
    assert abs(mine.item() - reference.item()) < tolerance
    for low, exact in ((low_hidden.grad, hidden.grad), (low_weight.grad, weight.grad)):
        assert (low.double() - exact).norm() / exact.norm() < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_compiled_loss_equals_the_uncompiled_one(dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(1100, 300, ignored=20)  # two full chunks and the rest of one
    results = []
    for of_chunk in (chunk_loss, torch.compile(chunk_loss, dynamic=False)):
        hidden.grad = weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = cross_entropy(hidden, weight, targets, of_chunk)
        loss.backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-2
    for plain, compiled in zip(*results, strict=True):
        assert (compiled - plain).norm() <= tolerance * plain.norm()


def test_token_losses_equal_cross_entropy_without_reduction() -> None:
    hidden, weight, targets = problem(600, 30, ignored=3)
    reference = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(token_losses(hidden, weight, targets), reference.detach())


def test_a_batch_without_scored_tokens_has_loss_and_gradient_zero() -> None:
    hidden, weight, targets = problem(4, 7, ignored=4)
    loss = cross_entropy(hidden, weight, targets)
    loss.backward()
    assert (loss.item(), hidden.grad.abs().sum(), weight.grad.abs().sum()) == (0, 0, 0)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_full_logits_never_exist() -> None:
    config = ModelConfig(vocab_size=2000, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16)
    decoder = Decoder(config)
    tokens = torch.zeros(64, 33, dtype=torch.long)
    with LargestTensor() as seen:
        decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    assert seen.numel < 64 * 32 * config.vocab_size / 2
