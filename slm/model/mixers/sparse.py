"""P: softmax attention to a local block and to columns before it (Sparse Transformers, arXiv:1904.10509).

Query t sees the keys of its own block of `sparse_block` tokens up to itself, and of the blocks before it the last key
of every `sparse_stride` tokens: the paper's fixed pattern (section 4.3), both parts merged in each head (section 5.1).
With stride = block it is that pattern with c = 1; a smaller stride spreads the block / stride summary columns evenly
over a block, where the paper puts them at its end. Of the keys in the pattern a query sees those of its own document.
Blocks and columns have fixed places in the sequence, wherever documents start.

Notable: T (block + T / stride) scores and never T x T; decoding keeps the columns and one block. Positions are as in F.

Legend: B batch, T new tokens, H query heads, K key/value heads, G = H/K, C head_dim, N blocks, c tokens of a block,
M columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.mixers.base import block_pairs, triangle
from slm.model.mixers.softmax import KeysAndValues, SoftmaxAttention, alibi_bias, softmax
from slm.model.positions import starts_in_blocks


class ColumnsAndBlock(KeysAndValues):
    """The columns of the blocks gone by, and right behind them the current block, which shrinks to its columns."""

    def columns_at(self, length: Any) -> Any:
        """Columns of the blocks gone by after `length` tokens, an int or a tensor."""
        return length // self.config.sparse_block * (self.config.sparse_block // self.config.sparse_stride)

    def end_at(self, length: Any) -> Any:
        return self.columns_at(length) + length % self.config.sparse_block

    def distances(self) -> Tensor:
        stride, begun = self.config.sparse_stride, self.length % self.config.sparse_block
        columns = (torch.arange(self.columns_at(self.length), device=self.store.device) + 1) * stride - 1
        block = torch.arange(self.length - begun, self.length, device=self.store.device)
        return self.length - torch.cat([columns, block])

    def append(self, new: Sequence[Tensor]) -> None:
        block, stride, columns = self.config.sparse_block, self.config.sparse_stride, self.columns_at(self.length)
        super().append(new)
        if self.length % block == 0:
            ended = self.store[:, :, :, columns : columns + block]
            ended[:, :, :, : block // stride] = ended[:, :, :, stride - 1 :: stride].clone()

    def append_at(self, new: Sequence[Tensor], length: Tensor) -> None:
        block, stride = self.config.sparse_block, self.config.sparse_stride
        super().append_at(new, length)
        # A graph has no branches: unless the block ends here, its first places are copied onto themselves.
        i = torch.arange(block // stride, device=self.store.device)
        first = self.columns_at(length)
        to = (first + i).clamp(max=self.store.shape[3] - 1)
        source = torch.where((length + 1) % block == 0, first + (i + 1) * stride - 1, to)
        self.store.index_copy_(3, to, self.store.index_select(3, source))

    def extend(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        # Columns, current block and the new ones, in that order.
        block, stride, columns = self.config.sparse_block, self.config.sparse_stride, self.columns_at(self.length)
        new_2BKTC = torch.stack((k_BKTC, v_BKTC))
        all_2BKSC = torch.cat([self.store[:, :, :, : self.num_kept], new_2BKTC], dim=3)
        start, self.length = self.length, self.length + k_BKTC.shape[2]
        ended = self.length // block * block - start // block * block
        own = all_2BKSC[:, :, :, columns:]
        kept = torch.cat([own[:, :, :, stride - 1 : ended : stride], own[:, :, :, ended:]], dim=3)
        self.store[:, :, :, columns : columns + kept.shape[3]] = kept.to(self.store.dtype)
        return all_2BKSC[0], all_2BKSC[1]


class SparseAttention(SoftmaxAttention):
    """Attention within blocks and to summary columns."""

    memory = ColumnsAndBlock

    def mix(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, past: int, starts_BT: Tensor | None = None) -> Tensor:
        block, stride = self.config.sparse_block, self.config.sparse_stride
        columns, begun = past // block * (block // stride), past % block
        scale, slopes = self.config.attention_scale, self.slopes
        return sparse_attention(q_BHTC, k_BKSC, v_BKSC, (block, stride), columns, begun, scale, slopes, starts_BT)

    @classmethod
    def pairs(cls, config: ModelConfig, layer: int, T: int) -> float:
        blocks, rest = divmod(T, config.sparse_block)
        far = config.sparse_block * triangle(blocks - 1) + rest * blocks  # were there one column a block
        return block_pairs(T, config.sparse_block) + config.sparse_block // config.sparse_stride * far

    @classmethod
    def num_cached_tokens(cls, config: ModelConfig, layer: int, T: int) -> int:
        # The most kept at once on the way to T tokens: columns of the blocks gone by, and the current block.
        blocks, rest = divmod(T, config.sparse_block)
        columns = config.sparse_block // config.sparse_stride
        return max(blocks * columns + rest, (blocks - 1) * columns + config.sparse_block if blocks else 0)


def sparse_attention(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    pattern: tuple[int, int],
    columns: int,
    begun: int,
    scale: float,
    slopes: list[float],
    starts_BT: Tensor | None = None,
) -> Tensor:
    """Attention in the pattern (block, stride), (B, H, T, C).

    The S = columns + begun + T keys and values are those of earlier blocks' columns, of the `begun` tokens of the
    current block before the queries, and of the queries themselves; with `starts_BT`, of the queries alone.
    """
    (B, H, T, C), K, (c, stride) = q_BHTC.shape, k_BKSC.shape[1], pattern
    G, N = H // K, -(-(begun + T) // c)
    missing = N * c - begun - T
    q = F.pad(q_BHTC * scale, (0, 0, begun, missing)).view(B, K, G, N, c, C).transpose(2, 3)
    q_BKNrC = q.reshape(B, K, N, G * c, C)  # r: a block's queries, head after head
    own_k, own_v = (F.pad(x[:, :, columns:], (0, 0, 0, missing)).unflatten(2, (N, c)) for x in (k_BKSC, v_BKSC))
    far_k, far_v = (
        torch.cat([x[:, :, :columns], own[:, :, :-1, stride - 1 :: stride].flatten(2, 3)], dim=2)
        for x, own in ((k_BKSC, own_k), (v_BKSC, own_v))
    )
    M = far_k.shape[2]
    near = (q_BKNrC @ own_k.transpose(-2, -1)).view(B, K, N, G, c, c)
    far = (q_BKNrC.flatten(2, 3) @ far_k.transpose(-2, -1)).view(B, K, N, G, c, M)
    i, j, b = (torch.arange(n, device=q_BHTC.device) for n in (c, M, N))
    column_at = (j - columns + 1) * stride - 1  # counted from the first block here
    own_at = b[:, None] * c + i  # of a block's queries and its own keys
    if slopes:
        near = near + alibi_bias(slopes, K, (i[:, None] - i).to(near.dtype)).unsqueeze(1)
        far = far + alibi_bias(slopes, K, (own_at[..., None] - column_at).to(far.dtype)).transpose(1, 2)
    near_hidden, far_hidden = i > i[:, None], (j >= columns + b[:, None] * (c // stride))[:, None, None]
    if starts_BT is not None:
        starts_BNc = starts_in_blocks(starts_BT, N, c)
        near_hidden = near_hidden | (own_at[:, None] < starts_BNc[..., None])[:, None, :, None]
        far_hidden = far_hidden | (column_at < starts_BNc[..., None])[:, None, :, None]
    near, far = near.masked_fill(near_hidden, -torch.inf), far.masked_fill(far_hidden, -torch.inf)
    near, far = softmax(torch.cat([near, far], dim=-1), own_v).split([c, M], dim=-1)
    mixed = near.reshape(B, K, N, G * c, c) @ own_v
    mixed = mixed + (far.reshape(B, K, N * G * c, M) @ far_v).view_as(mixed)
    return mixed.view(B, K, N, G, c, C).transpose(2, 3).reshape(B, H, N * c, C)[:, :, begun : begun + T]
