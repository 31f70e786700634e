"""What a decoder remembers of past tokens, one slot per *use* of a block.

A shared block sees different inputs each time it is used, so two uses never share a slot. What a slot holds is up to
the mixer. Slots of blocks with the same mixer and window lie in one tensor, so that a decoded token is written at once.

Legend: U slots of one memory, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.mixers import mixers_of


class Memory:
    """What the blocks of one mixer and window remember; `Mixer.make_memory` makes it."""

    tensors: tuple[Tensor, ...]
    """Everything that is kept, each (U, ...)."""

    def past(self, slot: int, length: int) -> tuple[Tensor, ...]:
        """What `Mixer.step` must know of the `length` tokens so far."""
        raise NotImplementedError

    def append(self, length: int, new: Sequence[tuple[Tensor, ...]]) -> None:
        """Add one token after `length` others, given what `Mixer.step` returned for each slot in turn."""
        raise NotImplementedError

    def select(self, source: Any, rows: Tensor, length: int) -> None:
        """Take over what `source`, a memory of the same kind with no more room, holds of `length` tokens in `rows`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Slot:
    """Where one use of a block keeps what it remembers."""

    memory: Any
    """The mixer's own kind of `Memory`."""
    index: int
    length: int
    """Tokens in it."""

    def past(self) -> tuple[Tensor, ...]:
        """What `Mixer.step` must know of the past, where it lies."""
        return self.memory.past(self.index, self.length)


class States(Memory):
    """Tensors of a recurrence, in float32 at least."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], slots: int, batch_size: int, **like: Any) -> None:
        like["dtype"] = torch.promote_types(like["dtype"], torch.float32)
        self.tensors = tuple(torch.zeros(slots, batch_size, *shape, **like) for shape in shapes)

    def past(self, slot: int, length: int) -> tuple[Tensor, ...]:
        """The state in a slot."""
        return tuple(tensor[slot] for tensor in self.tensors)

    def append(self, length: int, new: Sequence[tuple[Tensor, ...]]) -> None:
        """Replace the states of all slots in turn."""
        for tensor, states in zip(self.tensors, zip(*new, strict=True), strict=True):
            torch.stack(states, out=tensor) if tensor.dtype == states[0].dtype else tensor.copy_(torch.stack(states))

    def write(self, slot: int, new: Sequence[Tensor]) -> None:
        """Replace the state in a slot."""
        for tensor, state in zip(self.tensors, new, strict=True):
            tensor[slot] = state

    def select(self, source: Any, rows: Tensor, length: int) -> None:
        """Take over the states of `source` in these rows."""
        for tensor, smaller in zip(self.tensors, source.tensors, strict=True):
            tensor.copy_(smaller.index_select(1, rows))


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
        mixers = mixers_of(config)
        kinds = [(config.mixers[block], config.windows[block]) for block in config.block_uses]
        self.memories: dict[tuple[str, int], Memory] = {
            kind: mixers[kind[0]].make_memory(
                config, layer, kinds.count(kind), batch_size, max_length, device=device, dtype=dtype
            )
            for kind, layer in zip(kinds, config.block_uses, strict=True)
        }
        """By letter and window."""
        self._places = [(kind, kinds[:use].count(kind)) for use, kind in enumerate(kinds)]
        self.max_length = max_length
        """Tokens the cache has room for."""
        self.length = 0
        """Tokens cached so far; the decoder advances it once all uses have written theirs."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(tensor.nbytes for memory in self.memories.values() for tensor in memory.tensors)

    def slot(self, use: int) -> Slot:
        """The slot of a use."""
        kind, index = self._places[use]
        return Slot(self.memories[kind], index, self.length)

    def append(self, new: Sequence[tuple[Tensor, ...]]) -> None:
        """Add one token, given what `step` of each use returned for it."""
        for kind, memory in self.memories.items():
            own = [tensors for (at, _), tensors in zip(self._places, new, strict=True) if at == kind]
            memory.append(self.length, own)
        self.length += 1

    def select(self, source: KVCache, rows: Tensor) -> None:
        """Begin as `source`, a cache of the same shape with no more room, in which row r is its row `rows[r]`."""
        for kind, memory in self.memories.items():
            memory.select(source.memories[kind], rows, source.length)
        self.length = source.length
