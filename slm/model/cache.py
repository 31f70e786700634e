"""What a decoder remembers of past tokens: one memory for each *use* of a block.

A shared block sees other inputs each time it is used, so two uses never share a memory. What one holds depends on the
mixer.

Legend: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.mixers import mixers_of


class Memory:
    """What one use of a block remembers; `Mixer.make_memory` makes it, and `Mixer.forward` adds to it."""

    tensors: tuple[Tensor, ...]
    """Everything that is kept."""

    def past(self) -> tuple[Tensor, ...]:
        """What `Mixer.step` must know of the tokens so far, where it lies."""
        raise NotImplementedError

    def append(self, new: Sequence[Tensor]) -> None:
        """Add one token, given what `Mixer.step` returned for it."""
        raise NotImplementedError

    def select(self, source: Any, rows: Tensor) -> None:
        """Begin as `source`, a memory of the same mixer with no more room, in which row r is its row `rows[r]`."""
        raise NotImplementedError


class State(Memory):
    """Tensors (B, ...) of a recurrence, in float32 at least."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], batch_size: int, **like: Any) -> None:
        like["dtype"] = torch.promote_types(like["dtype"], torch.float32)
        self.tensors = tuple(torch.zeros(batch_size, *shape, **like) for shape in shapes)

    def past(self) -> tuple[Tensor, ...]:
        return self.tensors

    def append(self, new: Sequence[Tensor]) -> None:
        for tensor, state in zip(self.tensors, new, strict=True):
            tensor.copy_(state)

    def select(self, source: Any, rows: Tensor) -> None:
        self.append([tensor[rows] for tensor in source.tensors])


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
