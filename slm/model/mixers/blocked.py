"""Softmax attention by matrix products of blocks of queries with the keys that they can see, for CPUs.

Notable: the backward pass is written by hand. It computes the softmax of a block again from a number per query, as
flash attention does (arXiv:2205.14135), so that no scores are kept; that is as fast as keeping them (docs/log.md,
2026-11-29). It computes the transpose: of the same product, the compiler would keep the result of the forward pass.

Legend: B batch, T queries, S keys, H query heads, K key/value heads, G = H/K query heads per key head, C head_dim; in a
block, t queries, s keys, and n = G t rows, because the queries of one key head share a matrix product.
"""

from typing import Any

import torch
from torch import Tensor

from slm.model.layers import float32_or_wider

MIN_QUERY_BLOCK = 128
"""Queries per block, unless that gives over 8 blocks: more blocks save little and take long to compile."""


def softmax(scores: Tensor, *, like: Tensor) -> Tensor:
    """Return the softmax over the last axis, computed in float32 or wider, in the dtype of `like`."""
    return scores.softmax(-1, dtype=float32_or_wider(scores)).type_as(like)


def alibi_bias(slopes: list[float], kv_heads: int, distance: Tensor) -> Tensor:
    """Return the bias of the scores (K, G, ...) for distances (...)."""
    slopes_H = torch.tensor(slopes, device=distance.device, dtype=float32_or_wider(distance))
    return -slopes_H.view(kv_heads, -1, *[1] * distance.ndim) * distance


def visible_keys(T: int, S: int, device: torch.device) -> Tensor:
    """Return (T, S), true where a query sees a key. The last query is at the *last* key, unlike in SDPA's is_causal."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def in_document(starts_BT: Tensor, first: int, stop: int) -> Tensor:
    """Return (B, 1, T, stop - first), true where a key in [first, stop) is not before the query's document."""
    return (torch.arange(first, stop, device=starts_BT.device) >= starts_BT[..., None])[:, None]


def distances_to_keys(T: int, S: int, like: Tensor) -> Tensor:
    """Return (T, S) distances from keys to queries in tokens; the last query is at the last key."""
    keys = torch.arange(S, device=like.device, dtype=float32_or_wider(like))
    return keys[S - T :, None] - keys


class _Attention(torch.autograd.Function):
    """Softmax attention of n rows of queries to s keys, given which keys each row sees, and biases of the scores."""

    @staticmethod
    def forward(
        ctx: Any, q_BKnC: Tensor, k_BKsC: Tensor, v_BKsC: Tensor, is_visible: Tensor, bias: Tensor | None
    ) -> Tensor:
        scores = (q_BKnC @ k_BKsC.mT).to(float32_or_wider(q_BKnC))
        if bias is not None:
            scores = scores + bias
        scores = scores.masked_fill(~is_visible, -torch.inf)
        highest_BKn1 = scores.amax(-1, keepdim=True)
        exps = (scores - highest_BKn1).exp().to(v_BKsC.dtype)
        sums_BKn1 = exps.sum(-1, keepdim=True, dtype=scores.dtype)
        mixed_BKnC = ((exps @ v_BKsC) * sums_BKn1.reciprocal()).to(v_BKsC.dtype)
        log_sums_BKn1 = highest_BKn1 + sums_BKn1.log()  # softmax = exp(scores - log_sums)
        ctx.save_for_backward(q_BKnC, k_BKsC, v_BKsC, is_visible, bias, log_sums_BKn1, mixed_BKnC)
        return mixed_BKnC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, is_visible, bias, log_sums_BKn1, mixed_BKnC = ctx.saved_tensors
        grad_BKnC = grads[0]
        # The gradient of the scores is softmax * (grad_softmax - row sum of softmax * grad_softmax); this sum is
        # also that of grad * mixed, over far fewer numbers.
        row_sums_BKn1 = (grad_BKnC * mixed_BKnC).sum(-1, keepdim=True, dtype=log_sums_BKn1.dtype)
        scores_BKsn = (k @ q.mT).to(log_sums_BKn1.dtype)
        if bias is not None:
            scores_BKsn = scores_BKsn + bias.mT
        softmax_BKsn = (scores_BKsn - log_sums_BKn1.mT).exp().masked_fill(~is_visible.mT, 0).to(v.dtype)
        grad_scores_BKsn = (softmax_BKsn * ((v @ grad_BKnC.mT) - row_sums_BKn1.mT)).to(q.dtype)
        return grad_scores_BKsn.mT @ k, grad_scores_BKsn @ q, softmax_BKsn @ grad_BKnC, None, None


INFERENCE_QUERY_BLOCK = 64
"""Queries per block without gradients, where nothing is compiled: small blocks stay in the cache."""


def inference_attention(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, scale: float) -> Tensor:
    """Return `causal_attention` for bfloat16 without gradients: scores in float32, products with values in bfloat16.

    On a CPU it is about twice as fast as SDPA's kernel, with an error a tenth larger (docs/log.md, 2026-11-29).
    """
    B, H, T, C = q_BHTC.shape
    K, S = k_BKSC.shape[1:3]
    G, past = H // K, S - T
    is_later_tt = visible_keys(INFERENCE_QUERY_BLOCK, INFERENCE_QUERY_BLOCK, q_BHTC.device).logical_not()
    outputs = []
    with torch.autocast(q_BHTC.device.type, enabled=False):  # it would compute the scores in 16 bits
        q_BKGTC, k_BKCS = (q_BHTC.float() * scale).view(B, K, G, T, C), k_BKSC.float().mT
        for start in range(0, T, INFERENCE_QUERY_BLOCK):
            q_BKGtC = q_BKGTC[:, :, :, start : start + INFERENCE_QUERY_BLOCK]
            t = q_BKGtC.shape[3]
            seen = past + start  # keys that all queries of the block see; of the next t, each sees those up to its own
            scores_BKGts = (q_BKGtC.flatten(2, 3) @ k_BKCS[..., : seen + t]).view(B, K, G, t, seen + t)
            scores_BKGts[..., seen:].masked_fill_(is_later_tt[:t, :t], -torch.inf)
            weights_BKns = scores_BKGts.softmax(-1).type_as(v_BKSC).flatten(2, 3)
            outputs.append((weights_BKns @ v_BKSC[:, :, : seen + t]).view(B, K, G, t, C))
    return torch.cat(outputs, dim=3).view(B, H, T, C)


def blocked_attention(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    scale: float,
    slopes: list[float],
    window: int | None = None,
    starts_BT: Tensor | None = None,
) -> Tensor:
    """Return `causal_attention` to keys at distances below `window`. Blocks of queries skip most masked scores."""
    B, H, T, C = q_BHTC.shape
    K, S = k_BKSC.shape[1:3]
    G = H // K
    q_BKGTC = (q_BHTC * scale).view(B, K, G, T, C)
    block_size = max(MIN_QUERY_BLOCK, T // 8)
    outputs = []
    for start in range(0, T, block_size):
        q_BKGtC = q_BKGTC[:, :, :, start : start + block_size]
        t = q_BKGtC.shape[3]
        stop = S - T + start + t  # one past the last query's own key
        first = max(0, stop - t - window + 1) if window else 0  # the first query's first key
        s = stop - first
        # The same for each of the G query heads. Compiled code computes the mask per score, faster in 32 bits.
        own_key_n1 = s - t + torch.arange(t, dtype=torch.int32, device=q_BHTC.device).repeat(G)[:, None]
        key_s = torch.arange(s, dtype=torch.int32, device=q_BHTC.device)
        is_visible = key_s <= own_key_n1
        if window is not None:
            is_visible = is_visible & (key_s > own_key_n1 - window)
        if starts_BT is not None:
            is_visible = is_visible & in_document(starts_BT[:, start : start + t], first, stop).repeat(1, 1, G, 1)
        bias = alibi_bias(slopes, K, distances_to_keys(t, s, q_BHTC)).flatten(1, 2) if slopes else None
        mixed_BKnC = _Attention.apply(
            q_BKGtC.reshape(B, K, G * t, C), k_BKSC[:, :, first:stop], v_BKSC[:, :, first:stop], is_visible, bias
        )
        outputs.append(mixed_BKnC.view(B, K, G, t, C))
    return torch.cat(outputs, dim=3).view(B, H, T, C)
