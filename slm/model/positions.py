"""Positions in attention: rotations of queries and keys, linear biases of the scores, and starts of documents.

Legend: B batch, T tokens, H query heads, C head_dim, N blocks or n chunks of c tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from slm.model.config import ModelConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each (T, C/2)."""


def document_starts(documents_BT: Tensor) -> Tensor:
    """(B, T): the position at which each token's document starts. Document numbers must not decrease along T."""
    return torch.searchsorted(documents_BT.contiguous(), documents_BT.contiguous())


FLEX_BLOCK = 128
"""Queries, and keys, of a block of FlexAttention's mask; the default of torch."""


def document_block_mask(starts_BT: Tensor) -> BlockMask:
    """FlexAttention's mask of a query that sees the keys from its document's start up to its own.

    T must be a multiple of `FLEX_BLOCK`. Torch's `create_block_mask` evaluates all B T T pairs; here each block follows
    from its first and last start, since starts do not decrease.
    """
    from torch.nn.attention.flex_attention import BlockMask  # here, because it imports the compiler: 1.4 s

    T = starts_BT.shape[1]
    starts_BNc = starts_BT.unflatten(1, (-1, FLEX_BLOCK))
    lowest_BN1, highest_BN1 = starts_BNc[..., :1], starts_BNc[..., -1:]
    begin_N = torch.arange(0, T, FLEX_BLOCK, device=starts_BT.device)
    full_BNN = (begin_N < begin_N[:, None]) & (begin_N >= highest_BN1)
    touched_BNN = (begin_N <= begin_N[:, None]) & (begin_N + FLEX_BLOCK > lowest_BN1)

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= starts_BT[b, query])

    partial, full = (_numbered(blocks_BNN[:, None]) for blocks_BNN in (touched_BNN & ~full_BNN, full_BNN))
    return BlockMask.from_kv_blocks(*partial, *full, FLEX_BLOCK, sees, (T, T))


def _numbered(blocks_B1NN: Tensor) -> tuple[Tensor, Tensor]:
    """Number of true blocks in each row, and the blocks in the order in which FlexAttention visits them."""
    order = blocks_B1NN.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_B1NN.sum(-1, dtype=torch.int32), order.int()


def starts_in_blocks(starts_BT: Tensor, N: int, c: int) -> Tensor:
    """(B, N, c): the starts in blocks. Padding of the last block belongs to the last document."""
    places = torch.arange(N * c, device=starts_BT.device).clamp(max=starts_BT.shape[1] - 1)
    return starts_BT[:, places].unflatten(1, (N, c))


class ChunkDocuments(NamedTuple):
    """How documents limit the chunkwise form of a recurrence; all tensors are bool."""

    before_Bncc: Tensor
    """(query, key): whether the key is before the query's document."""
    reads_Bnc: Tensor
    """Whether the token's document began before the chunk: the state before the chunk belongs to it."""
    writes_Bnc: Tensor
    """Whether the token's document is still open at the chunk's end: the state after the chunk includes the token."""
    carries_Bn: Tensor
    """Whether one document spans the chunk: the state before the chunk is part of the state after it."""


def documents_in_chunks(starts_BT: Tensor, n: int, c: int) -> ChunkDocuments:
    """The limits for n chunks of c tokens, given the position at which each token's document starts."""
    starts_Bnc = starts_in_blocks(starts_BT, n, c)
    positions_nc = torch.arange(n * c, device=starts_BT.device).view(n, c)
    before_Bncc, reads_Bnc = positions_nc[:, None] < starts_Bnc[..., None], starts_Bnc < positions_nc[:, :1]
    return ChunkDocuments(before_Bncc, reads_Bnc, positions_nc >= starts_Bnc[..., -1:], reads_Bnc[..., -1])


def rotary_table(config: ModelConfig, start: int | Tensor, length: int, like: Tensor) -> Rotary:
    """Cosines and sines (T, C/2) of positions `start` .. `start + length - 1`; `start` may be a scalar on the device.

    Computed for each forward pass, since `module.to(bfloat16)` would round a buffer of them.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    positions = torch.arange(length, device=like.device, dtype=dtype) + start
    channels = torch.arange(0, config.head_width, 2, device=like.device, dtype=dtype)
    angles = positions[:, None] * config.rope_theta ** (-channels / config.head_width)
    return angles.cos(), angles.sin()


def rotate(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor, style: str) -> Tensor:
    """Rotate each pair of channels by its angle (arXiv:2104.09864, eq. 34), in the precision of the table.

    `style` "half" pairs channel i with channel i + C/2; any other pairs neighbours.
    """
    if style == "half":
        a, b = x_BHTC.chunk(2, dim=-1)
        rotated = torch.cat((a * cos_TC - b * sin_TC, b * cos_TC + a * sin_TC), dim=-1)
    else:
        a, b = x_BHTC[..., 0::2], x_BHTC[..., 1::2]
        rotated = torch.stack((a * cos_TC - b * sin_TC, b * cos_TC + a * sin_TC), dim=-1).flatten(-2)
    return rotated.type_as(x_BHTC)


def alibi_slopes(num_heads: int) -> list[float]:
    """For each head, what a score loses per token of distance (arXiv:2108.12409, section 3).

    2^(-8 i / H) for i = 1 .. H if H is a power of two. Else the slopes of the next lower power of two, then every other
    slope of the next higher one, as in the authors' code.
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * i / lower) for i in range(1, lower + 1)]
    return slopes + [2 ** (-4 * i / lower) for i in range(1, 2 * (num_heads - lower), 2)]
