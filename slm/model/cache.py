"""Keys and values of past tokens, one slot per *use* of a block.

A shared block sees different inputs each time it is used, so two uses never share a slot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slm.model.config import ModelConfig


class KVCache:
    """Preallocated cache for `max_length` tokens. B batch, K key/value heads, S cached tokens, C head_dim."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (len(config.block_uses), 2, batch_size, config.kv_heads, max_length, config.head_width)
        self.store = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        """Tokens cached so far; the decoder advances it once all uses have written theirs."""

    @property
    def max_length(self) -> int:
        """Tokens the cache has room for."""
        return self.store.shape[4]

    def extend(self, use: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new tokens into the slot of `use`; return all (B, K, S + T, C) keys and values of that slot."""
        stop = self.length + k_BKTC.shape[2]
        slot = self.store[use]
        slot[0, :, :, self.length : stop] = k_BKTC
        slot[1, :, :, self.length : stop] = v_BKTC
        return slot[0, :, :, :stop], slot[1, :, :, :stop]

    def past(self, use: int) -> tuple[Tensor, Tensor]:
        """The (B, K, S, C) keys and values that the slot of `use` holds, where they lie."""
        slot = self.store[use]
        return slot[0, :, :, : self.length], slot[1, :, :, : self.length]

    def append(self, new: list[tuple[Tensor, Tensor]]) -> None:
        """Add one token, given its (B, K, 1, C) key and value for each use in turn."""
        self.store[:, :, :, :, self.length] = torch.stack([torch.stack(pair) for pair in new]).squeeze(-2)
        self.length += 1
