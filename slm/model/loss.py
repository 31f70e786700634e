"""Head and losses in chunks of tokens, so that the full (tokens x vocabulary) float32 logits never exist.

Notable: gradients are computed in the *forward* pass, while a chunk's logits exist. The backward pass only scales
these gradients and does not recompute the logits. Compilation fuses the elementwise operations between a chunk's
matmuls, so that the logits pass through memory about twice instead of ten times. Sums are in float32 or float64.
`torch.nn.functional.linear_cross_entropy` is not used, because torch 2.13 computes it wrongly for bfloat16 on a CPU.

A loss is the cross-entropy with the text or, in distillation, also that with a teacher's predictions: the teacher gives
the input of its head, so its logits too exist for one chunk at a time only.

Legend: N tokens (batch and sequence flattened), D hidden, E hidden of a teacher, V vocabulary, n tokens of one chunk.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm.model.layers import float32_or_wider, linear

IGNORE = -100  # a target that is not scored, as in `torch.nn.functional.cross_entropy`
CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}
"""Tokens per chunk. On a CPU, smaller chunks spend too long on adding up the head's gradient (V = 32,000), and larger
ones do not fit the processor's cache (docs/log.md, 2026-11-21). A GPU needs larger matmuls; 2,048 was not measured."""


def _chunks(hidden_ND: Tensor) -> Iterator[slice]:
    size = CHUNK_TOKENS.get(hidden_ND.device.type, 1024)
    return (slice(start, start + size) for start in range(0, hidden_ND.shape[0], size))


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of the matmuls: autocast's if it is on, else that of `hidden`."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def chunk_loss(x_nD: Tensor, w_VD: Tensor, targets_n: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss of a chunk, and gradients of (sum / `divisor`) with respect to x (n, D) and w (V, D).

    The gradients lack the logits of the targets, which `_ChunkedLoss` adds for all chunks at once. This is a
    separate function so that it can be compiled and then passed to `cross_entropy`.
    """
    sum_dtype = float32_or_wider(x_nD)
    is_scored_n1 = (targets_n != IGNORE)[:, None].to(sum_dtype)
    logits = (x_nD @ w_VD.T).to(sum_dtype)
    max_n1 = logits.amax(-1, keepdim=True)
    exps = (logits - max_n1).exp()
    sums_n1 = exps.sum(-1, keepdim=True)
    losses_n1 = max_n1 + sums_n1.log() - logits.gather(1, targets_n.clamp(min=0)[:, None])
    # exps / sums is the softmax. To divide x and the product with w is cheaper than to divide the (n, V) exponentials.
    exps, factors_n1 = exps.to(x_nD.dtype), is_scored_n1 / (divisor * sums_n1)
    grad_x = ((exps @ w_VD) * factors_n1).to(x_nD.dtype)
    return (losses_n1 * is_scored_n1).sum(), grad_x, exps.T @ (x_nD * factors_n1).to(x_nD.dtype)


class SoftTargets(NamedTuple):
    """The predictions of a teacher, and how much they count (Hinton et al. 2015, arXiv:1503.02531)."""

    hidden_NE: Tensor
    """The input of the teacher's head, in the dtype of its products."""
    weight_VE: Tensor
    """The teacher's head."""
    temperature: float
    """Divides the logits of teacher and student."""
    weight: float
    """Share of the soft loss in the whole loss."""
    top_k: int | None
    """The soft targets are the teacher's k most probable tokens, and those as probable as the k-th; None for all."""


def chunk_distillation(
    x_nD: Tensor, w_VD: Tensor, targets_n: Tensor, divisor: Tensor, soft: SoftTargets
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two summed losses of a chunk, (2,), and gradients of the whole loss as `chunk_loss` does.

    The losses are the cross-entropy with the targets, and temperature^2 KL(teacher || student) of the predictions at
    the temperature. The factor keeps its gradient as large as at temperature 1 (Hinton et al., section 2). The gradient
    with respect to the logits is (1 - weight) student + weight temperature (student - teacher).
    """
    sum_dtype = float32_or_wider(x_nD)
    is_scored_n1 = (targets_n != IGNORE)[:, None].to(sum_dtype)
    teacher_logits = (soft.hidden_NE @ soft.weight_VE.T).to(sum_dtype) / soft.temperature
    if soft.top_k is not None:
        least_n1 = teacher_logits.topk(soft.top_k).values[:, -1:]
        teacher_logits = teacher_logits.masked_fill(teacher_logits < least_n1, -torch.inf)
    teacher = teacher_logits.softmax(-1)
    logits = (x_nD @ w_VD.T).to(sum_dtype)
    log_student = logits.log_softmax(-1)
    log_soft_student = (logits / soft.temperature).log_softmax(-1)
    losses_n1 = -log_student.gather(1, targets_n.clamp(min=0)[:, None])
    divergences_n1 = -(torch.special.entr(teacher) + teacher * log_soft_student).sum(-1, keepdim=True)
    grad = soft.weight * soft.temperature * (log_soft_student.exp() - teacher) + (1 - soft.weight) * log_student.exp()
    grad = (grad * (is_scored_n1 / divisor)).to(x_nD.dtype)
    sums_2 = (torch.cat([losses_n1, soft.temperature**2 * divergences_n1], dim=1) * is_scored_n1).sum(0)
    return sums_2, grad @ w_VD, grad.T @ x_nD


ChunkLoss = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""`chunk_loss`, or with a last argument `soft` `chunk_distillation`; compiled or not."""


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        dtype: torch.dtype,
        chunk_function: ChunkLoss,
        grad_scale: Tensor | None,
        soft: SoftTargets | None,
    ) -> Tensor:
        x, w = hidden_ND.to(dtype), weight_VD.to(dtype)
        sum_dtype = float32_or_wider(x)
        totals = x.new_zeros(() if soft is None else (2,), dtype=sum_dtype)
        num_scored = (targets_N != IGNORE).sum().clamp(min=1)
        divisor = num_scored if grad_scale is None else num_scored / grad_scale  # divides all gradients
        grad_x = torch.empty_like(x)
        grad_w = torch.zeros_like(w, dtype=sum_dtype)
        for chunk in _chunks(x):
            soft_chunk = () if soft is None else (soft._replace(hidden_NE=soft.hidden_NE[chunk]),)
            sums, grad_x[chunk], grad_w_chunk = chunk_function(x[chunk], w, targets_N[chunk], divisor, *soft_chunk)
            totals += sums
            grad_w += grad_w_chunk
        ids_N, factors_N1 = targets_N.clamp(min=0), (targets_N != IGNORE)[:, None].to(sum_dtype) / divisor
        if soft is not None:
            factors_N1 = (1 - soft.weight) * factors_N1
        grad_x -= w[ids_N] * factors_N1
        # The sum of rows with equal ids, in a fixed order, which `index_add_` does not promise.
        grad_w -= torch.ops.aten.embedding_dense_backward((x * factors_N1).to(sum_dtype), ids_N, len(w), -1, False)
        ctx.save_for_backward(grad_x, grad_w)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        losses = totals / num_scored
        return losses if soft is None else torch.stack([torch.lerp(losses[0], losses[1], soft.weight), *losses])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_w = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        grad = grads[0].flatten()[0]  # of the whole loss, which comes before its parts
        return grad_x.to(hidden_dtype) * grad, (grad_w * grad).to(weight_dtype), *[None] * 5


def cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk_function: ChunkLoss = chunk_loss,
    grad_scale: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy of `hidden @ weight.T` in nats per scored token; a scalar, float32 or better.

    Targets equal to `IGNORE` are not scored. Under autocast the matmuls run in its dtype. `chunk_function` is
    `chunk_loss`, compiled or not. `grad_scale`, a scalar, multiplies all gradients but not the loss. A factor on the
    loss would come too late, because gradients are already computed here, and float16 may have rounded them to zero.
    """
    dtype = compute_dtype(hidden_ND)
    return _ChunkedLoss.apply(hidden_ND, weight_VD, targets_N, dtype, chunk_function, grad_scale, None)


def distillation_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    soft: SoftTargets,
    chunk_function: ChunkLoss = chunk_distillation,
    grad_scale: Tensor | None = None,
) -> Tensor:
    """Return three losses in nats per scored token, (3,), the first of which is to be minimised.

    They are (1 - weight) cross-entropy + weight soft loss, and these two, which have no gradient. The soft loss is
    temperature^2 KL(teacher || student). The teacher's products run in its own dtype, the others as in `cross_entropy`,
    which also explains the other arguments. `chunk_function` is `chunk_distillation`, compiled or not.
    """
    dtype = compute_dtype(hidden_ND)
    with torch.autocast(hidden_ND.device.type, enabled=False):  # it would convert the teacher's products too
        return _ChunkedLoss.apply(hidden_ND, weight_VD, targets_N, dtype, chunk_function, grad_scale, soft)


@torch.no_grad()
def token_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the cross-entropy in nats of each token, (N,), float32 or better, without gradient; 0 for `IGNORE`."""
    dtype = compute_dtype(hidden_ND)
    weight_VD = weight_VD.to(dtype)  # once, not for each chunk
    return losses_by_chunk(hidden_ND.to(dtype), lambda x_nD: linear(x_nD, weight_VD), targets_N)


@torch.no_grad()
def losses_by_chunk(hidden_ND: Tensor, head: Callable[[Tensor], Tensor], targets_N: Tensor) -> Tensor:
    """Return `token_losses` for any `head`, which computes the logits (n, V) of a chunk (n, D)."""
    losses = []
    for chunk in _chunks(hidden_ND):
        logits = head(hidden_ND[chunk])
        logits = logits.to(float32_or_wider(logits))
        target_logits = logits.gather(1, targets_N[chunk].clamp(min=0)[:, None])
        chunk_losses = (logits.logsumexp(-1, keepdim=True) - target_logits).squeeze(1)
        losses.append(chunk_losses * (targets_N[chunk] != IGNORE))
    return torch.cat(losses)
