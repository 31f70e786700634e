"""Head and cross-entropy in chunks of tokens, so that the full (tokens x vocabulary) float32 logits never exist.

Notable: gradients are computed in the *forward* pass, while a chunk's logits exist, so the head's matmul is not done
twice, as with recomputation; the backward pass only scales them. Sums are in float32 at least, whatever the dtype of
the matmuls. `torch.nn.functional.linear_cross_entropy` is not used: in torch 2.13 its CPU bfloat16 is wrong.

Legend: N tokens (batch and sequence flattened), D hidden, V vocabulary, n tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype) -> Tensor:
        x, w = hidden_ND.to(dtype), weight_VD.to(dtype)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        total = x.new_zeros((), dtype=exact)
        scored = (targets_N != IGNORE).sum().clamp(min=1)
        grad_x = torch.empty_like(x)
        grad_w = torch.zeros_like(w, dtype=exact)
        for chunk in _chunks(x):
            keep = (targets_N[chunk] != IGNORE)[:, None]
            target = targets_N[chunk].clamp(min=0)[:, None]
            logits = (x[chunk] @ w.T).to(exact)
            log_z = logits.logsumexp(-1, keepdim=True)
            total += ((log_z - logits.gather(1, target)) * keep).sum()
            grad = logits.sub_(log_z).exp_()  # softmax, in place of the logits
            grad.scatter_add_(1, target, -torch.ones_like(log_z))
            grad = grad.mul_(keep.to(exact) / scored).to(dtype)
            torch.mm(grad, w, out=grad_x[chunk])
            grad_w += grad.T @ x[chunk]
        ctx.save_for_backward(grad_x, grad_w)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        return total / scored

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad_x, grad_w), (hidden_dtype, weight_dtype) = ctx.saved_tensors, ctx.dtypes
        grad_hidden = (grad_x.to(hidden_dtype) * grads[0]).to(hidden_dtype)
        return grad_hidden, (grad_w * grads[0]).to(weight_dtype), None, None


def cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats a scored token of `hidden @ weight.T` against `targets`; a scalar, float32 or better.

    Targets equal to `IGNORE` are not scored. Under autocast the matmuls run in its dtype.
    """
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, _compute_dtype(hidden_ND))


@torch.no_grad()
def token_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy in nats of each token, (N,), float32 or better; zero where the target is `IGNORE`. No gradient."""
    dtype = _compute_dtype(hidden_ND)
    x, w = hidden_ND.to(dtype), weight_VD.to(dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    losses = []
    for chunk in _chunks(x):
        logits = (x[chunk] @ w.T).to(exact)
        picked = logits.gather(1, targets_N[chunk].clamp(min=0)[:, None])
        losses.append((logits.logsumexp(-1, keepdim=True) - picked).squeeze(1) * (targets_N[chunk] != IGNORE))
    return torch.cat(losses)
