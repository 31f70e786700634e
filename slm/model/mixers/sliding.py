"""Mixer S: softmax attention to the last W tokens, including the query's own (Mistral, arXiv:2310.06825).

Notable: each block of queries is multiplied with the blocks of keys that its windows reach, which takes T (W + block)
scores and never T x T. On a CPU, sequences of up to `CPU_BLOCKED_ATTENTION_MAX_TOKENS` tokens use `blocked_attention`,
which copies no keys and is faster there. Positions enter as in full attention (`slm.model.mixers.softmax`).

Legend: B batch, T new tokens, S available keys (the last T are the new tokens' own), H query heads, K key/value heads,
G = H/K, C head_dim, W window, N blocks of queries, c queries per block, s keys with which each block is multiplied.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.mixers.base import num_causal_pairs
from slm.model.mixers.blocked import alibi_bias, blocked_attention, softmax
from slm.model.mixers.softmax import CPU_BLOCKED_ATTENTION_MAX_TOKENS, KeysAndValues, SoftmaxAttention
from slm.model.positions import split_starts

QUERY_BLOCK = 128  # queries per block, unless the window is shorter


class WindowRing(KeysAndValues):
    """Keeps the last window - 1 keys and values; the token at position n is at place n % (window - 1)."""

    def __init__(self, config: ModelConfig, layer: int, *sizes: int, **options: Any) -> None:
        super().__init__(config, layer, *sizes, **options)
        self._size = config.windows[layer] - 1

    @property
    def num_kept(self) -> int:
        return min(self.length, self._size)

    def place_at(self, length: Any) -> Any:
        return length % self._size

    def distances(self) -> Tensor:
        # The distance is 1 at the newest token's place, (length - 1) % size, and grows by 1 per step back in the ring.
        return (self.length - 1 - torch.arange(self.num_kept, device=self.store.device)) % self._size + 1

    def extend(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        # Returns the kept keys and values from old to new, then those of the T tokens.
        num_kept, T = self.num_kept, k_BKTC.shape[2]
        places = torch.arange(self.length - num_kept, self.length + T, device=k_BKTC.device) % self._size
        all_2BKSC = torch.cat([self.store[:, :, :, places[:num_kept]], torch.stack((k_BKTC, v_BKTC))], dim=3)
        first_stored = num_kept + T - min(T, self._size)  # only the last tokens fit into the ring
        self.store[:, :, :, places[first_stored:]] = all_2BKSC[:, :, :, first_stored:].to(self.store.dtype)
        self.length += T
        return all_2BKSC[0], all_2BKSC[1]


class SlidingAttention(SoftmaxAttention):
    """Attention to the tokens of a window."""

    memory = WindowRing

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.window = config.windows[layer]

    def mix(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, past: int, starts_BT: Tensor | None = None) -> Tensor:
        if k_BKSC.shape[2] <= self.window:
            return super().mix(q_BHTC, k_BKSC, v_BKSC, past, starts_BT)
        scale, slopes = self.config.attention_scale, self.slopes
        if q_BHTC.device.type == "cpu" and q_BHTC.shape[2] <= CPU_BLOCKED_ATTENTION_MAX_TOKENS:
            return blocked_attention(q_BHTC, k_BKSC, v_BKSC, scale, slopes, self.window, starts_BT)
        return sliding_attention(q_BHTC, k_BKSC, v_BKSC, self.window, scale, slopes, starts_BT)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < self.window)

    @classmethod
    def num_pairs(cls, config: ModelConfig, layer: int, T: int) -> float:
        return num_causal_pairs(T) - num_causal_pairs(max(T - config.windows[layer], 0))

    @classmethod
    def num_cached_tokens(cls, config: ModelConfig, layer: int, T: int) -> int:
        return min(T, config.windows[layer] - 1)


def sliding_attention(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    window: int,
    scale: float,
    slopes: list[float],
    starts_BT: Tensor | None = None,
) -> Tensor:
    """Return `causal_attention` to the keys at distances below `window`, (B, H, T, C)."""
    B, H, T, C = q_BHTC.shape
    K, S = k_BKSC.shape[1:3]
    c = min(QUERY_BLOCK, window, T)
    num_earlier = -(-(window - 1) // c)  # number of earlier blocks that the windows of one block's queries reach
    N, s = -(-T // c), (num_earlier + 1) * c
    first_key = S - T - num_earlier * c  # first key for the first block of queries; negative in the padding
    padding = N * c - T
    q_BKNGcC = F.pad(q_BHTC * scale, (0, 0, 0, padding)).view(B, K, H // K, N, c, C).transpose(2, 3)
    k, v = (_keys_of_blocks(x, first_key, padding, c, num_earlier) for x in (k_BKSC, v_BKSC))
    scores = (q_BKNGcC.reshape(B, K, N, -1, C) @ k.transpose(-2, -1)).view(B, K, N, -1, c, s)
    offset = torch.arange(s, device=q_BHTC.device)
    distance_cs = offset[s - c :, None] - offset  # the queries are at the last c of the s keys
    key_at_Ns = torch.arange(N, device=q_BHTC.device)[:, None] * c + offset + first_key
    masked = (distance_cs < 0) | (distance_cs >= window) | (key_at_Ns < 0)[:, None, None]
    if starts_BT is not None:
        is_in_earlier_document_BNcs = key_at_Ns[:, None] < split_starts(starts_BT, N, c)[..., None]
        masked = masked | is_in_earlier_document_BNcs[:, None, :, None]
    if slopes:
        scores = scores + alibi_bias(slopes, K, distance_cs.to(scores.dtype)).unsqueeze(1)
    weights = softmax(scores.masked_fill(masked, -torch.inf), like=v)
    mixed = (weights.view(B, K, N, -1, s) @ v).view(B, K, N, -1, c, C).transpose(2, 3)
    return mixed.reshape(B, H, N * c, C)[:, :, :T]


def _keys_of_blocks(x_BKSC: Tensor, first_key: int, padding: int, c: int, num_earlier: int) -> Tensor:
    """Return the keys for each block of queries, (B, K, N, s, C): `num_earlier` earlier blocks, then its own."""
    x = F.pad(x_BKSC, (0, 0, -first_key, padding))  # a negative pad crops
    x = x.unflatten(2, (-1, c))
    N = x.shape[2] - num_earlier
    return torch.cat([x[:, :, i : i + N] for i in range(num_earlier + 1)], dim=3)
