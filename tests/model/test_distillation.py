"""The loss of distillation, computed in chunks, is the formula of Hinton et al. (2015) in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slm.model import Decoder, ModelConfig
from slm.model import loss as loss_module
from slm.model.loss import IGNORE, SoftTargets, chunk_distillation, distillation_loss
from tests.model.test_loss import LargestTensor, problem
from tests.seeds import seeded


def teacher_of(tokens: int, vocab: int, **how: object) -> SoftTargets:
    rng = torch.Generator().manual_seed(seeded(7 * tokens + vocab))
    hidden = torch.randn(tokens, 24, generator=rng, dtype=torch.float64)
    weight = torch.randn(vocab, 24, generator=rng, dtype=torch.float64)
    return SoftTargets(hidden_NE=hidden, weight_VE=weight, **how)  # type: ignore[arg-type]


def reference_losses(hidden: Tensor, weight: Tensor, targets: Tensor, soft: SoftTargets) -> tuple[Tensor, ...]:
    """The losses as the paper has them, by torch's own functions on all logits at once."""
    logits, scored = hidden @ weight.T, targets != IGNORE
    teacher_logits = soft.hidden_NE @ soft.weight_VE.T
    if soft.top_k is not None:
        kept = torch.zeros_like(teacher_logits, dtype=torch.bool)
        kept.scatter_(1, teacher_logits.argsort(1, descending=True)[:, : soft.top_k], True)
        teacher_logits = torch.where(kept, teacher_logits, -torch.inf)
    hard = F.cross_entropy(logits, targets, ignore_index=IGNORE)
    log_student = F.log_softmax(logits / soft.temperature, 1)[scored]
    teacher = F.softmax(teacher_logits / soft.temperature, 1)[scored]
    softened = soft.temperature**2 * F.kl_div(log_student, teacher, reduction="batchmean")
    return (1 - soft.weight) * hard + soft.weight * softened, hard, softened


def gradients(loss_of: Callable[..., Tensor], hidden: Tensor, weight: Tensor, *rest: object) -> tuple[Tensor, ...]:
    """The losses and the gradients of 3 times the first one."""
    hidden.grad = weight.grad = None
    losses = loss_of(hidden, weight, *rest)
    (3.0 * losses[0]).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return *(loss.detach() for loss in losses), hidden.grad, weight.grad


@given(
    tokens=st.integers(1, 60),
    vocab=st.integers(2, 40),
    ignored=st.integers(0, 5),
    chunk=st.integers(1, 70),
    temperature=st.floats(0.5, 8),
    weight=st.floats(0.01, 1),
    top_k=st.none() | st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_losses_and_gradients_equal_the_formula_in_float64(
    tokens: int, vocab: int, ignored: int, chunk: int, temperature: float, weight: float, top_k: int | None
) -> None:
    hidden, head, targets = problem(tokens, vocab, min(ignored, tokens - 1))
    how = {"temperature": temperature, "weight": weight, "top_k": top_k and min(top_k, vocab)}
    soft = teacher_of(tokens, vocab, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss_module.CHUNK_TOKENS, "cpu", chunk)
        mine = gradients(distillation_loss, hidden, head, targets, soft)
    expected = gradients(reference_losses, hidden, head, targets, soft)
    torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_under_autocast_are_within_the_matmuls_precision_of_float64(dtype: torch.dtype) -> None:
    hidden, head, targets = problem(700, 300)
    soft = teacher_of(700, 300, temperature=2.0, weight=0.5, top_k=None)
    expected = gradients(reference_losses, hidden, head, targets, soft)
    low_hidden, low_head = (t.detach().float().requires_grad_() for t in (hidden, head))
    low_soft = soft._replace(hidden_NE=soft.hidden_NE.float(), weight_VE=soft.weight_VE.float())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        mine = gradients(distillation_loss, low_hidden, low_head, targets, low_soft)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for low, exact in zip(mine, expected, strict=True):
        assert (low.double() - exact).norm() <= tolerance * exact.norm()


def test_the_teacher_keeps_its_precision_under_the_students_autocast() -> None:
    """A student whose logits are all 0 in any precision: its soft loss depends on the teacher alone."""
    _, head, targets = problem(100, 300)
    soft = teacher_of(100, 300, temperature=2.0, weight=1.0, top_k=None)
    student = torch.zeros(100, 16).requires_grad_(), head.detach().float().requires_grad_()
    expected = reference_losses(student[0].double(), head, targets, soft)[2].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for teacher_dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 1e-2)):
            own = soft._replace(hidden_NE=soft.hidden_NE.to(teacher_dtype), weight_VE=soft.weight_VE.to(teacher_dtype))
            found = distillation_loss(*student, targets, own)[2].item()
            assert abs(found - expected) <= tolerance * expected
            assert (abs(found - expected) <= 2e-6 * expected) == (teacher_dtype == torch.float32)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it() -> None:
    hidden, head, targets = problem(60, 30)
    soft = SoftTargets(hidden.detach(), head.detach(), temperature=2.0, weight=1.0, top_k=None)
    _, _, divergence, *grads = gradients(distillation_loss, hidden, head, targets, soft)
    assert abs(divergence) < 1e-12
    assert max(grad.abs().max() for grad in grads) < 1e-12


@pytest.mark.slow
def test_the_compiled_loss_of_distillation_equals_the_uncompiled_one() -> None:
    hidden, head, targets = problem(1100, 300, ignored=20)  # two full chunks and the rest of one
    soft = teacher_of(1100, 300, temperature=3.0, weight=0.7, top_k=20)
    plain = gradients(distillation_loss, hidden, head, targets, soft)
    compiled = gradients(
        distillation_loss, hidden, head, targets, soft, torch.compile(chunk_distillation, dynamic=False)
    )
    torch.testing.assert_close(compiled, plain, rtol=1e-10, atol=1e-12)


def test_full_logits_of_student_and_teacher_never_exist() -> None:
    decoder, teacher = (
        Decoder(ModelConfig(vocab_size=2000, hidden_size=width, num_layers=1, num_heads=2, intermediate_size=16))
        for width in (16, 32)
    )
    tokens = torch.zeros(64, 33, dtype=torch.long)
    with LargestTensor() as seen:
        with torch.no_grad():
            hidden_ND = teacher.hidden(tokens[:, :-1]).flatten(0, 1)
        soft = SoftTargets(hidden_ND, teacher.head_weight.detach(), temperature=2.0, weight=0.5, top_k=None)
        decoder.loss(tokens[:, :-1], tokens[:, 1:], soft=soft)[0].backward()
    assert seen.numel < 64 * 32 * 2000 / 2
