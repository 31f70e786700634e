"""Mixer P: softmax attention to a local block and to columns before it (Sparse Transformers, arXiv:1904.10509).

Query t sees the keys of its own block of `sparse_block` tokens up to key t, and, in earlier blocks, the last key of
every `sparse_stride` tokens (a column). This is the paper's fixed pattern (section 4.3), with both parts merged in each
head (section 5.1). If the stride equals the block, there is one column per block, at its end, as in the paper with one
summary position. A smaller stride spreads the columns evenly over a block, while the paper puts all of them at its end.
A query sees only keys of its own document, but blocks and columns do not shift with the starts of documents.

Notable: attention takes T (block + T / stride) scores and never T x T, and decoding keeps the columns and one block.
Positions enter as in full attention (`slm.model.mixers.softmax`).

Legend: B batch, T new tokens, H query heads, K key/value heads, G = H/K, C head_dim, N blocks, c tokens per block,
M columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.mixers.base import causal_pairs_in_blocks, num_causal_pairs
from slm.model.mixers.blocked import alibi_bias, softmax
from slm.model.mixers.softmax import KeysAndValues, SoftmaxAttention
from slm.model.positions import split_starts


class ColumnsAndBlock(KeysAndValues):
    """Keeps the columns of finished blocks, then the current block, which is reduced to its columns when it is full."""

    def num_columns_at(self, length: Any) -> Any:
        """Return the number of columns in finished blocks after `length` tokens (an int or a tensor)."""
        return length // self.config.sparse_block * (self.config.sparse_block // self.config.sparse_stride)

    def end_at(self, length: Any) -> Any:
        return self.num_columns_at(length) + length % self.config.sparse_block

    def distances(self) -> Tensor:
        num_in_block = self.length % self.config.sparse_block
        column_numbers = torch.arange(self.num_columns_at(self.length), device=self.store.device)
        column_positions = (column_numbers + 1) * self.config.sparse_stride - 1
        block_positions = torch.arange(self.length - num_in_block, self.length, device=self.store.device)
        return self.length - torch.cat([column_positions, block_positions])

    def append(self, new: Sequence[Tensor]) -> None:
        block, stride = self.config.sparse_block, self.config.sparse_stride
        num_columns = self.num_columns_at(self.length)
        super().append(new)
        if self.length % block == 0:
            full_block = self.store[:, :, :, num_columns : num_columns + block]
            full_block[:, :, :, : block // stride] = full_block[:, :, :, stride - 1 :: stride].clone()

    def append_at(self, new: Sequence[Tensor], length: Tensor) -> None:
        block, stride = self.config.sparse_block, self.config.sparse_stride
        super().append_at(new, length)
        # A graph has no branches: unless the block ends here, the block's first places are copied onto themselves.
        i = torch.arange(block // stride, device=self.store.device)
        first_place = self.num_columns_at(length)
        target = (first_place + i).clamp(max=self.store.shape[3] - 1)
        source = torch.where((length + 1) % block == 0, first_place + (i + 1) * stride - 1, target)
        self.store.index_copy_(3, target, self.store.index_select(3, source))

    def extend(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        # Returns the columns, the current block's earlier tokens and the T new tokens, in this order.
        block, stride = self.config.sparse_block, self.config.sparse_stride
        num_columns = self.num_columns_at(self.length)
        new_2BKTC = torch.stack((k_BKTC, v_BKTC))
        all_2BKSC = torch.cat([self.store[:, :, :, : self.num_kept], new_2BKTC], dim=3)
        block_start = self.length // block * block
        self.length += k_BKTC.shape[2]
        num_finished = self.length // block * block - block_start  # tokens in blocks that are now full
        after_columns = all_2BKSC[:, :, :, num_columns:]
        new_columns = after_columns[:, :, :, stride - 1 : num_finished : stride]
        kept = torch.cat([new_columns, after_columns[:, :, :, num_finished:]], dim=3)
        self.store[:, :, :, num_columns : num_columns + kept.shape[3]] = kept.to(self.store.dtype)
        return all_2BKSC[0], all_2BKSC[1]


class SparseAttention(SoftmaxAttention):
    """Attention within blocks and to columns."""

    memory = ColumnsAndBlock

    def mix(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, past: int, starts_BT: Tensor | None = None) -> Tensor:
        pattern = (self.config.sparse_block, self.config.sparse_stride)
        scale, slopes = self.config.attention_scale, self.slopes
        return sparse_attention(q_BHTC, k_BKSC, v_BKSC, pattern, past, scale, slopes, starts_BT)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        block, stride = self.config.sparse_block, self.config.sparse_stride
        return (key <= query) & ((key // block == query // block) | ((key + 1) % stride == 0))

    @classmethod
    def num_pairs(cls, config: ModelConfig, layer: int, T: int) -> float:
        num_blocks, num_rest = divmod(T, config.sparse_block)
        columns_per_block = config.sparse_block // config.sparse_stride
        # Summed over all queries. A query in block b, counted from 0, has b earlier blocks.
        num_earlier_blocks = config.sparse_block * num_causal_pairs(num_blocks - 1) + num_rest * num_blocks
        return causal_pairs_in_blocks(T, config.sparse_block) + columns_per_block * num_earlier_blocks

    @classmethod
    def num_cached_tokens(cls, config: ModelConfig, layer: int, T: int) -> int:
        # The store is fullest at T, or just before the last full block was reduced to columns.
        num_blocks, num_rest = divmod(T, config.sparse_block)
        columns_per_block = config.sparse_block // config.sparse_stride
        num_at_end = num_blocks * columns_per_block + num_rest
        num_before_reduction = (num_blocks - 1) * columns_per_block + config.sparse_block
        return max(num_at_end, num_before_reduction) if num_blocks > 0 else num_at_end


def sparse_attention(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    pattern: tuple[int, int],
    past: int,
    scale: float,
    slopes: list[float],
    starts_BT: Tensor | None = None,
) -> Tensor:
    """Return attention in the pattern (block, stride), (B, H, T, C), of T queries that follow `past` earlier tokens.

    Keys and values are in this order: the columns of finished blocks, the earlier tokens of the current block, and the
    T queries' own. `starts_BT` is given only if there are no earlier tokens.
    """
    B, H, T, C = q_BHTC.shape
    K = k_BKSC.shape[1]
    c, stride = pattern
    num_columns = past // c * (c // stride)
    num_in_block = past % c
    G, N = H // K, -(-(num_in_block + T) // c)
    padding = N * c - num_in_block - T
    q = F.pad(q_BHTC * scale, (0, 0, num_in_block, padding)).view(B, K, G, N, c, C).transpose(2, 3)
    q_BKNrC = q.reshape(B, K, N, G * c, C)  # r: the queries of a block, one head after the other
    own_k, own_v = (F.pad(x[:, :, num_columns:], (0, 0, 0, padding)).unflatten(2, (N, c)) for x in (k_BKSC, v_BKSC))
    far_k, far_v = (
        torch.cat([x[:, :, :num_columns], own[:, :, :-1, stride - 1 :: stride].flatten(2, 3)], dim=2)
        for x, own in ((k_BKSC, own_k), (v_BKSC, own_v))
    )
    M = far_k.shape[2]
    near_scores = (q_BKNrC @ own_k.transpose(-2, -1)).view(B, K, N, G, c, c)
    far_scores = (q_BKNrC.flatten(2, 3) @ far_k.transpose(-2, -1)).view(B, K, N, G, c, M)
    i_c, j_M, block_N = (torch.arange(n, device=q_BHTC.device) for n in (c, M, N))  # token in a block, column, block
    # Positions of columns, and of a block's queries and own keys, counted from the start of the first block of queries.
    column_at_M = (j_M - num_columns + 1) * stride - 1
    own_at_Nc = block_N[:, None] * c + i_c
    if slopes:
        near_distance, far_distance = i_c[:, None] - i_c, own_at_Nc[..., None] - column_at_M
        near_scores = near_scores + alibi_bias(slopes, K, near_distance.to(near_scores.dtype)).unsqueeze(1)
        far_scores = far_scores + alibi_bias(slopes, K, far_distance.to(far_scores.dtype)).transpose(1, 2)
    near_masked = i_c > i_c[:, None]
    num_earlier_columns_N1 = num_columns + block_N[:, None] * (c // stride)  # of earlier blocks
    far_masked = (j_M >= num_earlier_columns_N1)[:, None, None]
    if starts_BT is not None:
        starts_BNc = split_starts(starts_BT, N, c)
        near_masked = near_masked | (own_at_Nc[:, None] < starts_BNc[..., None])[:, None, :, None]
        far_masked = far_masked | (column_at_M < starts_BNc[..., None])[:, None, :, None]
    scores = [near_scores.masked_fill(near_masked, -torch.inf), far_scores.masked_fill(far_masked, -torch.inf)]
    near_weights, far_weights = softmax(torch.cat(scores, dim=-1), like=own_v).split([c, M], dim=-1)
    mixed = near_weights.reshape(B, K, N, G * c, c) @ own_v
    mixed = mixed + (far_weights.reshape(B, K, N * G * c, M) @ far_v).view_as(mixed)
    return mixed.view(B, K, N, G, c, C).transpose(2, 3).reshape(B, H, N * c, C)[:, :, num_in_block : num_in_block + T]
