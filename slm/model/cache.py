"""What a decoder remembers of past tokens: one memory for each *use* of a block.

A shared block sees other inputs each time it is used, so two uses never share a memory. What one holds depends on the
mixer.

Legend: B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.counts import mixers_of


class KVCache:
    """Preallocated memory for `max_length` tokens of `batch_size` sequences."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        mixers, letters = mixers_of(config), config.mixers
        self.memories = [
            mixers[letters[block]].make_memory(config, block, batch_size, max_length, device=device, dtype=dtype)
            for block in config.block_uses
        ]
        """One for each use of a block, in the order of the forward pass."""
        self.max_length = max_length
        """Tokens the cache has room for."""
        self.length = 0
        """Tokens in it; advanced once all memories have theirs."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(tensor.nbytes for memory in self.memories for tensor in memory.tensors)

    def select(self, source: KVCache, rows: Tensor) -> None:
        """Begin as `source`, a cache of the same shape with no more room, in which row r is its row `rows[r]`."""
        for memory, smaller in zip(self.memories, source.memories, strict=True):
            memory.select(smaller, rows)
        self.length = source.length
