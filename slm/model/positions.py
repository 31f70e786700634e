"""Positions in attention: rotations of queries and keys, linear biases of the scores, and starts of documents.

Legend: B batch, T tokens, H query heads, C head_dim, N blocks or n chunks of c tokens.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.layers import float32_or_wider

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (T, C/2)


def document_starts(documents_BT: Tensor) -> Tensor:
    """Return (B, T) positions at which each token's document starts. Document numbers must not decrease along T."""
    return torch.searchsorted(documents_BT.contiguous(), documents_BT.contiguous())  # first position of the number


FLEX_BLOCK = 128  # queries, and keys, per block of FlexAttention's mask; the default of torch


def document_block_mask(starts_BT: Tensor) -> "BlockMask":
    """Return FlexAttention's mask: a query sees the keys from its document's start up to the query's own position.

    T must be a multiple of `FLEX_BLOCK`. Torch's `create_block_mask` evaluates all B T T pairs. Because starts do not
    decrease along T, the first and the last start in a block of queries are enough here.
    """
    from torch.nn.attention.flex_attention import BlockMask  # imports the compiler, which takes 1.4 s

    T = starts_BT.shape[1]
    starts_BNc = starts_BT.unflatten(1, (-1, FLEX_BLOCK))
    first_start_BN1, last_start_BN1 = starts_BNc[..., :1], starts_BNc[..., -1:]
    key_begin_N = torch.arange(0, T, FLEX_BLOCK, device=starts_BT.device)
    query_begin_N1 = key_begin_N[:, None]
    # (query block, key block): full if every query sees every key, touched if some query sees some key.
    full_BNN = (key_begin_N < query_begin_N1) & (key_begin_N >= last_start_BN1)
    touched_BNN = (key_begin_N <= query_begin_N1) & (key_begin_N + FLEX_BLOCK > first_start_BN1)

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= starts_BT[b, query])

    partial_counts, partial_order = _counts_and_order(touched_BNN & ~full_BNN)
    full_counts, full_order = _counts_and_order(full_BNN)
    return BlockMask.from_kv_blocks(partial_counts, partial_order, full_counts, full_order, FLEX_BLOCK, sees, (T, T))


def _counts_and_order(blocks_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row the number of true blocks, (B, 1, N), and the indices of blocks, true ones first."""
    order_BNN = blocks_BNN.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_BNN.sum(-1, dtype=torch.int32)[:, None], order_BNN.int()[:, None]


def split_starts(starts_BT: Tensor, N: int, c: int) -> Tensor:
    """Return the starts split into blocks, (B, N, c). Padding of the last block belongs to the last document."""
    indices = torch.arange(N * c, device=starts_BT.device).clamp(max=starts_BT.shape[1] - 1)
    return starts_BT[:, indices].unflatten(1, (N, c))


class ChunkDocuments(NamedTuple):
    """How documents limit the chunkwise form of a recurrence; all tensors are bool."""

    before_Bncc: Tensor
    """(query, key): whether the key is before the query's document."""
    reads_Bnc: Tensor
    """Whether the token's document began before the chunk, so that the state before the chunk is of this document."""
    writes_Bnc: Tensor
    """Whether the token's document is still open at the chunk's end, so that the state there includes the token."""
    carries_Bn: Tensor
    """Whether one document spans the chunk, so that the state before the chunk is part of the state after the chunk."""


def documents_in_chunks(starts_BT: Tensor, n: int, c: int) -> ChunkDocuments:
    """Return the limits for n chunks of c tokens, given the position at which each token's document starts."""
    starts_Bnc = split_starts(starts_BT, n, c)
    positions_nc = torch.arange(n * c, device=starts_BT.device).view(n, c)
    before_Bncc = positions_nc[:, None] < starts_Bnc[..., None]
    reads_Bnc = starts_Bnc < positions_nc[:, :1]
    writes_Bnc = positions_nc >= starts_Bnc[..., -1:]
    return ChunkDocuments(before_Bncc, reads_Bnc, writes_Bnc, carries_Bn=reads_Bnc[..., -1])


def rotary_table(config: ModelConfig, start: int | Tensor, length: int, like: Tensor) -> Rotary:
    """Return the cosines and sines (T, C/2) of T = `length` positions; `start` may be a scalar on the device.

    The table is not a buffer but computed in each forward pass, because `module.to(bfloat16)` would round a buffer.
    """
    dtype = float32_or_wider(like)
    positions = torch.arange(length, device=like.device, dtype=dtype) + start
    channels = torch.arange(0, config.head_width, 2, device=like.device, dtype=dtype)
    angles = positions[:, None] * config.rope_theta ** (-channels / config.head_width)
    return angles.cos(), angles.sin()


def rotate(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor, style: str) -> Tensor:
    """Rotate each pair of channels (x, y) by its angle (arXiv:2104.09864, eq. 34), in the precision of the table.

    `style` "half" pairs channel i with channel i + C/2; any other style pairs neighbours.
    """
    rotated: Tensor = _Rotation.apply(x_BHTC, cos_TC, sin_TC, style)
    return rotated


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation, which torch would compute from slices and copies."""

    @staticmethod
    def forward(ctx: Any, x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor, style: str) -> Tensor:
        ctx.save_for_backward(cos_TC, sin_TC)
        ctx.style = style
        return _rotate(x_BHTC, cos_TC, sin_TC, style)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos_TC, sin_TC = ctx.saved_tensors
        return _rotate(grads[0], cos_TC, -sin_TC, ctx.style), None, None, None


def _rotate(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor, style: str) -> Tensor:
    if style == "half":
        x, y = x_BHTC.chunk(2, dim=-1)
        rotated = torch.cat((x * cos_TC - y * sin_TC, y * cos_TC + x * sin_TC), dim=-1)
    else:
        x, y = x_BHTC[..., 0::2], x_BHTC[..., 1::2]
        rotated = torch.stack((x * cos_TC - y * sin_TC, y * cos_TC + x * sin_TC), dim=-1).flatten(-2)
    return rotated.type_as(x_BHTC)


def alibi_slopes(num_heads: int) -> list[float]:
    """Return for each head how much a score decreases per token of distance (arXiv:2108.12409, section 3).

    The slopes are 2^(-8 i / H) for i = 1 .. H if H is a power of two. Otherwise they are the slopes of the next lower
    power of two, then every other slope of the next higher power, as in the authors' code.
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * i / lower) for i in range(1, lower + 1)]
    return slopes + [2 ** (-8 * i / (2 * lower)) for i in range(1, 2 * (num_heads - lower), 2)]
