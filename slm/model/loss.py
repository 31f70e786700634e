"""Head and cross-entropy in chunks of tokens, so that the full (tokens x vocabulary) float32 logits never exist.

Notable: gradients are computed in the *forward* pass, while a chunk's logits exist, so the head's matmul is not done
twice, as with recomputation; the backward pass only scales them. Compiled, what lies between the matmuls of a chunk
reads and writes the logits about twice instead of ten times. Sums are in float32 at least, whatever the dtype of the
matmuls. `torch.nn.functional.linear_cross_entropy` is not used: in torch 2.13 its CPU bfloat16 is wrong.

Legend: N tokens (batch and sequence flattened), D hidden, V vocabulary, n tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""A target that is not scored, as in `torch.nn.functional.cross_entropy`."""

CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}
"""Tokens whose logits exist at once. On a CPU, adding up the head's gradient costs too much with fewer (V = 32000), and
more do not fit the processor's cache (docs/log.md, 2026-11-21). A GPU, not measured yet, needs larger matmuls."""


def _chunks(hidden_ND: Tensor) -> Iterator[slice]:
    size = CHUNK_TOKENS.get(hidden_ND.device.type, 1024)
    return (slice(start, start + size) for start in range(0, hidden_ND.shape[0], size))


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of matmuls of `hidden`, which under autocast is not its own."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def chunk_loss(x_nD: Tensor, w_VD: Tensor, targets_n: Tensor, scored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the losses of a chunk, and the gradients of that sum / `scored` by x (n, D) and by w (V, D).

    It is one function so that it can be compiled, and then passed to `cross_entropy`.
    """
    exact = torch.float64 if x_nD.dtype == torch.float64 else torch.float32
    keep = (targets_n != IGNORE)[:, None]
    target = targets_n.clamp(min=0)[:, None]
    logits = (x_nD @ w_VD.T).to(exact)
    log_z = logits.logsumexp(-1, keepdim=True)
    loss = ((log_z - logits.gather(1, target)) * keep).sum()
    if torch.compiler.is_compiling():
        is_target = torch.arange(w_VD.shape[0], device=x_nD.device) == target  # fuses; a scatter does not
        grad = (logits - log_z).exp() - is_target.to(exact)
    else:
        grad = logits.sub_(log_z).exp_()  # softmax, in place of the logits
        grad.scatter_add_(1, target, -torch.ones_like(log_z))
    grad = grad.mul_(keep.to(exact) / scored).to(x_nD.dtype)
    return loss, grad @ w_VD, grad.T @ x_nD


ChunkLoss = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        dtype: torch.dtype,
        of_chunk: ChunkLoss,
        grad_scale: Tensor | None,
    ) -> Tensor:
        x, w = hidden_ND.to(dtype), weight_VD.to(dtype)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        total = x.new_zeros((), dtype=exact)
        scored = (targets_N != IGNORE).sum().clamp(min=1)
        divisor = scored if grad_scale is None else scored / grad_scale  # of the gradients
        grad_x = torch.empty_like(x)
        grad_w = torch.zeros_like(w, dtype=exact)
        for chunk in _chunks(x):
            loss, grad_x[chunk], grad_w_chunk = of_chunk(x[chunk], w, targets_N[chunk], divisor)
            total += loss
            grad_w += grad_w_chunk
        ctx.save_for_backward(grad_x, grad_w)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        return total / scored

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        (grad_x, grad_w), (hidden_dtype, weight_dtype) = ctx.saved_tensors, ctx.dtypes
        grad_hidden = (grad_x.to(hidden_dtype) * grads[0]).to(hidden_dtype)
        return grad_hidden, (grad_w * grads[0]).to(weight_dtype), None, None, None, None


def cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    of_chunk: ChunkLoss = chunk_loss,
    grad_scale: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy in nats a scored token of `hidden @ weight.T` against `targets`; a scalar, float32 or better.

    Targets equal to `IGNORE` are not scored. Under autocast the matmuls run in its dtype. `of_chunk` is `chunk_loss`,
    compiled or not. `grad_scale`, a scalar, multiplies all gradients but not the loss: gradients are computed here in
    the dtype of the matmuls, so a factor on the loss would come too late for what float16 has rounded to zero.
    """
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, compute_dtype(hidden_ND), of_chunk, grad_scale)


@torch.no_grad()
def token_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy in nats of each token, (N,), float32 or better; zero where the target is `IGNORE`. No gradient."""
    dtype = compute_dtype(hidden_ND)
    x, w = hidden_ND.to(dtype), weight_VD.to(dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    losses = []
    for chunk in _chunks(x):
        logits = (x[chunk] @ w.T).to(exact)
        picked = logits.gather(1, targets_N[chunk].clamp(min=0)[:, None])
        losses.append((logits.logsumexp(-1, keepdim=True) - picked).squeeze(1) * (targets_N[chunk] != IGNORE))
    return torch.cat(losses)
