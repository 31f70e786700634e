"""The memory of a forward and backward pass, and the largest pass that a device has room for.

Notable: the estimate runs the model's own code on tensors without data, on the run's device, and adds up the bytes of
all tensors that are alive at the same time. The code is not compiled. Compiled blocks keep less, so for them the
estimate is an upper bound. If a pass turns out not to fit, `speed.py` halves it before the run begins.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slm.model.config import ModelConfig
from slm.model.counts import num_params
from slm.model.decoder import Decoder

DEFAULT_TOKENS = {"cpu": 8192, "cuda": 32768, "mps": 8192}
"""Most tokens per forward pass if `trainer.micro_batch_tokens` is null. More tokens do not make matmuls faster."""
USABLE_SHARE = 0.9
"""Share of the available memory that is used. The rest is for the allocator's fragments and for libraries."""
MIN_TOKENS = 4096
"""A pass of fewer tokens slows a GPU down by more than the third that computing activations again costs. This is an
estimate from the number of 128 x 128 tiles of a matmul that an H100 computes at the same time."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a device takes its share of an optimizer step."""

    size: int
    """Sequences of one forward pass."""
    activation_checkpointing: bool
    """Whether activations are computed again in the backward pass."""
    bytes: int | None = None
    """Estimated memory of activations; None if it was not estimated."""

    def text(self, length: int) -> str:
        """Describe passes of sequences that have `length` tokens."""
        switch = "on" if self.activation_checkpointing else "off"
        return f"{self.size} sequences of {length} per device, activation checkpointing {switch}"


class LiveBytes(TorchDispatchMode):
    """A context that counts the bytes of the tensors made in it: those alive `now`, and the `peak` so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages that it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive and self._alive[key]() is storage:
            return

        def forget(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


def activation_bytes(
    model: ModelConfig,
    activation_checkpointing: bool,
    size: int,
    *,
    length: int,
    device: str,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    document_masking: bool,
) -> int:
    """Return the peak memory of a forward and backward pass of `size` sequences, without weights and gradients.

    The weights have `dtype`, and matmuls run in `autocast` if it is given. Nothing is computed, so the device needs no
    memory, but a GPU must be present, because its kernels are asked for the shapes of their results.
    """
    context = partial(torch.autocast, device, autocast, cache_enabled=False) if autocast else nullcontext
    with torch.device("meta"):
        decoder = Decoder(model)
    decoder.activation_checkpointing = activation_checkpointing
    with FakeTensorMode():
        for module in decoder.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    weight = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device))
                    weight.grad = torch.empty_like(weight)  # as in all passes of a step except the first
                    module._parameters[name] = weight
        tokens = torch.zeros(size, length, dtype=torch.int64, device=device)
        with LiveBytes() as live:
            with context():
                loss = decoder.loss(tokens, tokens, tokens if document_masking else None)
            loss.backward()
    return live.peak


def optimizer_state_bytes(model: ModelConfig, has_average: bool, *, shards: int = 1) -> int:
    """Return the bytes per device of weights, gradients, Adam's two moments (Muon has one) and average, all float32.

    With more than one FSDP shard, this includes the gathered weights and gradients of the embedding and of two blocks.
    """
    total = (20 if has_average else 16) * num_params(model)
    if shards == 1:
        return total
    block_params = num_params(model, non_embedding=True)
    embedding_params = num_params(model) - block_params
    return total // shards + 8 * (embedding_params + 2 * block_params // model.num_layers)


def choose_passes(
    sequences: int,
    devices: int,
    length: int,
    *,
    max_tokens: int | None,
    default_tokens: int,
    activation_checkpointing: bool | Literal["auto"],
    room: float | None,
    estimate: Callable[[bool, int], int],
) -> Passes:
    """Choose passes for a step of `sequences`, each of `length` tokens, that `devices` share.

    A pass has at most `max_tokens` tokens (`trainer.micro_batch_tokens`) or, if that is None, at most `default_tokens`
    and no more than fit into `room` bytes. `estimate` returns the bytes of activations for a choice of checkpointing
    and a size. "auto" turns checkpointing on if without it `max_tokens` (or, if that is None, `MIN_TOKENS`) would not
    fit. If `room` is None, nothing is estimated and "auto" means off.
    """
    largest = choose_micro_batch_size(sequences, devices, max(1, (max_tokens or default_tokens) // length))
    if room is None:
        return Passes(size=largest, activation_checkpointing=activation_checkpointing is True)
    sufficient = largest if max_tokens else min(largest, max(1, MIN_TOKENS // length))
    choices = (False, True) if activation_checkpointing == "auto" else (activation_checkpointing,)
    for is_on in choices:
        fitting = _largest_fitting(largest, room, partial(estimate, is_on))
        if fitting >= sufficient:
            break
    size = largest if max_tokens else choose_micro_batch_size(sequences, devices, max(1, fitting))
    return Passes(size=size, activation_checkpointing=is_on, bytes=estimate(is_on, size))


def smaller_passes(
    passes: Passes, sequences: int, length: int, *, is_size_given: bool, may_checkpoint: bool
) -> Passes | None:
    """Return half the size or, if that is below `MIN_TOKENS`, checkpointing; None if neither is allowed."""
    may_halve = not is_size_given and passes.size > 1
    size = choose_micro_batch_size(sequences, 1, passes.size // 2) if may_halve else 0
    if may_checkpoint and not passes.activation_checkpointing and size * length < MIN_TOKENS:
        return Passes(size=passes.size, activation_checkpointing=True)
    return replace(passes, size=size, bytes=None) if may_halve else None


def choose_micro_batch_size(sequences: int, devices: int, fitting: int) -> int:
    """Return how many sequences a pass has, at most `fitting`, if `devices` share a step of `sequences`.

    This is the size, between half the largest and the largest, that needs the fewest empty sequences. For example, if a
    device's share is 43 sequences and 16 fit, it takes 4 passes of 11, because 43 is prime.
    """
    share = math.ceil(sequences / devices)
    largest = min(share, fitting)
    sizes = range(largest, (largest - 1) // 2, -1)
    return min(sizes, key=lambda size: math.ceil(share / size) * size)


def _largest_fitting(largest: int, room: float, estimate: Callable[[int], int]) -> int:
    """Return the largest size up to `largest` that fits, or 0. Memory is linear in the size (but for loss chunks)."""
    bytes_of_largest = estimate(largest)
    if bytes_of_largest <= room:
        return largest
    bytes_of_one = estimate(1)
    if bytes_of_one > room:
        return 0
    return 1 + int((room - bytes_of_one) * (largest - 1) / (bytes_of_largest - bytes_of_one))
