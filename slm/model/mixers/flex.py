"""FlexAttention (arXiv:2412.05496) for patterns of softmax attention, where it can be fused: compiled, on a GPU.

Notable: elsewhere it would compute all T x T scores, so the plain path of each mixer is the one that is always there.
It is off: its values are tested on a CPU, but no GPU was to be had to test and time the fused kernels
(`pytest -m gpu tests/model/test_flex.py` does the former).

Legend: B batch, T tokens, H query heads, K key/value heads, C head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_library: Any = None
with suppress(ImportError):  # torch builds without it
    _library = import_module("torch.nn.attention.flex_attention")

Pattern = Callable[[Tensor, Tensor], Tensor]
"""(query, key) -> whether a query sees a key that is not after it, by their positions."""

ENABLED = False
"""Whether mixers use it where it is `usable`."""
MIN_HEAD_DIM = 16
"""Of the fused kernels."""


def usable(q_BHTC: Tensor, k_BKSC: Tensor) -> bool:
    """Whether the fused kernel can be had for this call; decoding from a cache takes the plain path."""
    return (
        ENABLED
        and _library is not None
        and q_BHTC.is_cuda
        and torch.compiler.is_compiling()
        and q_BHTC.shape[2] == k_BKSC.shape[2]
        and q_BHTC.shape[3] >= MIN_HEAD_DIM
        and q_BHTC.dtype != torch.float64
    )


def pattern_attention(
    q_BHTC: Tensor,
    k_BKTC: Tensor,
    v_BKTC: Tensor,
    sees: Pattern,
    scale: float,
    slopes: list[float],
    starts_BT: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T - slope distance) v over the keys that a query sees. Returns (B, H, T, C)."""
    B, T = q_BHTC.shape[0], q_BHTC.shape[2]
    slopes_H = torch.tensor(slopes, device=q_BHTC.device)

    def mask(b: Any, h: Any, t: Tensor, s: Tensor) -> Tensor:
        seen = (s <= t) & sees(t, s)
        return seen if starts_BT is None else seen & (s >= starts_BT[b, t])

    def bias(score: Tensor, b: Any, h: Any, t: Tensor, s: Tensor) -> Tensor:
        return score - slopes_H[h] * (t - s)

    return _library.flex_attention(
        q_BHTC,
        k_BKTC,
        v_BKTC,
        score_mod=bias if slopes else None,
        block_mask=_library.create_block_mask(mask, None if starts_BT is None else B, None, T, T, device=q_BHTC.device),
        scale=scale,
        enable_gqa=q_BHTC.shape[1] != k_BKTC.shape[1],
    )
