"""What a decoder remembers of past tokens, one slot per *use* of a block.

A shared block sees different inputs each time it is used, so two uses never share a slot. How much a slot holds depends
on the mixer: every key and value (F), those of a window in a ring (S), those of one block and of the columns before it
(P), or a recurrent state whose size does not depend on the tokens (L, G). Slots of one kind, which is one mixer's and
with S one window's, lie in one tensor.

Legend: U slots of one kind, B batch, K key/value heads, M room for keys, S keys held, T new tokens, C head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.counts import cached_tokens, ssd_channels


class KeysAndValues:
    """F: all of them, in order."""

    def __init__(self, config: ModelConfig, layer: int, count: int, batch: int, max_length: int, **like: Any) -> None:
        self.config = config
        self.alibi = "alibi" in config.layer_positions
        room = cached_tokens(config, layer, max_length)
        self.store = torch.zeros(count, 2, batch, config.kv_heads, room, config.head_width, **like)

    def past(self, slot: int, length: int) -> tuple[Tensor, ...]:
        """For the token after `length` others: the keys and values that it sees.

        With ALiBi also their (S,) distances from it.
        """
        held = self.store[slot, :, :, :, : self._held(length)]
        return (held[0], held[1], self._distances(length)) if self.alibi else (held[0], held[1])

    def append(self, length: int, new: Sequence[tuple[Tensor, ...]]) -> None:
        """Add one token: its (B, K, 1, C) key and value for each slot in turn."""
        self.store[:, :, :, :, self._place(length)] = torch.stack([torch.stack(pair) for pair in new]).squeeze(-2)

    def extend(self, slot: int, length: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T tokens that come after `length` others; return all keys and values that they may see."""
        stop = length + k_BKTC.shape[2]
        held = self.store[slot]
        held[0, :, :, length:stop] = k_BKTC
        held[1, :, :, length:stop] = v_BKTC
        return held[0, :, :, :stop], held[1, :, :, :stop]

    def select(self, source: Any, rows: Tensor, length: int) -> None:
        """Take over what `source`, a smaller cache of the same kind, holds of `length` tokens in these rows."""
        held = source.store[:, :, :, :, : source._held(length)]
        for slot in range(held.shape[0]):
            self.store[slot, :, :, :, : held.shape[4]] = held[slot].index_select(1, rows)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that is kept."""
        return (self.store,)

    def _held(self, length: int) -> int:
        return length

    def _place(self, length: int) -> int:
        return length

    def _distances(self, length: int) -> Tensor:
        return torch.arange(length, 0, -1, device=self.store.device)


class WindowRing(KeysAndValues):
    """S: the last window - 1 of them; token number n lies at n modulo that."""

    def __init__(self, config: ModelConfig, layer: int, count: int, batch: int, max_length: int, **like: Any) -> None:
        super().__init__(config, layer, count, batch, max_length, **like)
        self._size = config.windows[layer] - 1

    def _held(self, length: int) -> int:
        return min(length, self._size)

    def _place(self, length: int) -> int:
        return length % self._size

    def _distances(self, length: int) -> Tensor:
        return (length - 1 - torch.arange(self._held(length), device=self.store.device)) % self._size + 1

    def extend(self, slot: int, length: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T tokens that come after `length` others; return the held keys and values in order, then the new."""
        held, T = self._held(length), k_BKTC.shape[2]
        places = torch.arange(length - held, length + T, device=k_BKTC.device) % self._size
        all_2BKSC = torch.cat([self.store[slot, :, :, :, places[:held]], torch.stack((k_BKTC, v_BKTC))], dim=3)
        kept = min(T, self._size)
        self.store[slot, :, :, :, places[held + T - kept :]] = all_2BKSC[:, :, :, held + T - kept :].to(
            self.store.dtype
        )
        return all_2BKSC[0], all_2BKSC[1]


class ColumnsAndBlock(KeysAndValues):
    """P: the columns of the blocks gone by, and right behind them the current block, which shrinks to its columns."""

    def _columns(self, length: int) -> int:
        return length // self.config.sparse_block * (self.config.sparse_block // self.config.sparse_stride)

    def _held(self, length: int) -> int:
        return self._columns(length) + length % self.config.sparse_block

    _place = _held

    def _distances(self, length: int) -> Tensor:
        stride, begun = self.config.sparse_stride, length % self.config.sparse_block
        columns = (torch.arange(self._columns(length), device=self.store.device) + 1) * stride - 1
        return length - torch.cat([columns, torch.arange(length - begun, length, device=self.store.device)])

    def append(self, length: int, new: Sequence[tuple[Tensor, ...]]) -> None:
        """Add one token: its (B, K, 1, C) key and value for each slot in turn."""
        super().append(length, new)
        block, stride = self.config.sparse_block, self.config.sparse_stride
        if (length + 1) % block == 0:
            columns = self._columns(length)
            ended = self.store[:, :, :, :, columns : columns + block]
            ended[:, :, :, :, : block // stride] = ended[:, :, :, :, stride - 1 :: stride].clone()

    def extend(self, slot: int, length: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T tokens that come after `length` others; return columns, current block and new ones, in that order."""
        block, stride = self.config.sparse_block, self.config.sparse_stride
        columns, stop = self._columns(length), length + k_BKTC.shape[2]
        held = self.store[slot, :, :, :, : self._held(length)]
        all_2BKSC = torch.cat([held, torch.stack((k_BKTC, v_BKTC))], dim=3)
        own = all_2BKSC[:, :, :, columns:]
        ended = stop // block * block - length // block * block
        kept = torch.cat([own[:, :, :, stride - 1 : ended : stride], own[:, :, :, ended:]], dim=3)
        self.store[slot, :, :, :, columns : columns + kept.shape[3]] = kept.to(self.store.dtype)
        return all_2BKSC[0], all_2BKSC[1]


class States:
    """L, G: tensors of a recurrence, all of them read and written as a whole."""

    def __init__(self, config: ModelConfig, layer: int, count: int, batch: int, max_length: int, **like: Any) -> None:
        like["dtype"] = torch.promote_types(like["dtype"], torch.float32)
        shapes = _STATE_SHAPES[config.mixers[layer]](config)
        self.tensors = tuple(torch.zeros(count, batch, *shape, **like) for shape in shapes)

    def past(self, slot: int, length: int) -> tuple[Tensor, ...]:
        """The state of a slot."""
        return tuple(tensor[slot] for tensor in self.tensors)

    def append(self, length: int, new: Sequence[tuple[Tensor, ...]]) -> None:
        """Replace the states of all slots in turn."""
        for tensor, own in zip(self.tensors, zip(*new, strict=True), strict=True):
            torch.stack(own, out=tensor) if tensor.dtype == own[0].dtype else tensor.copy_(torch.stack(own))

    def write(self, slot: int, new: Sequence[Tensor]) -> None:
        """Replace the state of a slot."""
        for tensor, own in zip(self.tensors, new, strict=True):
            tensor[slot] = own

    def select(self, source: Any, rows: Tensor, length: int) -> None:
        """Take over the states of `source` in these rows."""
        for tensor, smaller in zip(self.tensors, source.tensors, strict=True):
            tensor.copy_(smaller.index_select(1, rows))


_STATE_SHAPES: dict[str, Any] = {
    "L": lambda c: ((c.kv_heads, c.head_width, c.head_width), (c.kv_heads, c.head_width)),
    "G": lambda c: (
        (c.conv_kernel - 1, ssd_channels(c)),
        (c.kv_heads, c.num_heads // c.kv_heads, c.state_size, c.head_width),
    ),
}
_KINDS: dict[str, type[Any]] = {
    "F": KeysAndValues,
    "S": WindowRing,
    "P": ColumnsAndBlock,
    "L": States,
    "G": States,
}


def _name_of_kind(config: ModelConfig, layer: int) -> str:
    """Such as "F" or "S256": slots of equal names can lie in one tensor."""
    letter = config.mixers[layer]
    return f"{letter}{config.windows[layer]}" if letter == "S" else letter


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
        names = [_name_of_kind(config, block) for block in config.block_uses]
        layers = dict(zip(names, config.block_uses, strict=True))  # of each kind one that is typical
        self.kinds = {
            name: _KINDS[config.mixers[layer]](
                config, layer, names.count(name), batch_size, max_length, device=device, dtype=dtype
            )
            for name, layer in layers.items()
        }
        self._where = [(name, names[:use].count(name)) for use, name in enumerate(names)]
        self.max_length = max_length
        """Tokens the cache has room for."""
        self.length = 0
        """Tokens cached so far; the decoder advances it once all uses have written theirs."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(tensor.nbytes for kind in self.kinds.values() for tensor in kind.tensors)

    def extend(self, use: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new tokens into the slot of `use`; return all keys and values that they may see, theirs last."""
        name, slot = self._where[use]
        return self.kinds[name].extend(slot, self.length, k_BKTC, v_BKTC)

    def read(self, use: int) -> tuple[Tensor, ...]:
        """The recurrent state in the slot of `use`."""
        return self.past(use)

    def write(self, use: int, state: Sequence[Tensor]) -> None:
        """Replace the recurrent state in the slot of `use`."""
        name, slot = self._where[use]
        self.kinds[name].write(slot, state)

    def past(self, use: int) -> tuple[Tensor, ...]:
        """What `step` of the mixer of `use` wants to know of the past, where it lies."""
        name, slot = self._where[use]
        return self.kinds[name].past(slot, self.length)

    def append(self, new: Sequence[tuple[Tensor, ...]]) -> None:
        """Add one token, given what `step` of each use returned for it."""
        for name, kind in self.kinds.items():
            own = [tensors for (at, _), tensors in zip(self._where, new, strict=True) if at == name]
            kind.append(self.length, own)
        self.length += 1

    def select(self, source: KVCache, rows: Tensor) -> None:
        """Begin as `source`, a cache of the same shape with no more room, in which row r is its row `rows[r]`."""
        for name, kind in self.kinds.items():
            kind.select(source.kinds[name], rows, source.length)
        self.length = source.length
