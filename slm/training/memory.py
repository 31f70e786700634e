"""The memory of a forward and backward pass, and the largest pass that a device has room for.

Notable: the estimate runs the model's own code on tensors without data, on the run's device, and adds up the bytes of
all that are alive at a time. It is taken eagerly. Compiled blocks keep less, so for them it is an upper bound. A pass
that turns out not to fit is halved by `speed.py` before the run begins.
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
"""Most tokens of one forward pass where `trainer.micro_batch_tokens` is null. More do not make matmuls faster."""
USABLE_SHARE = 0.9
"""Of the available memory; the rest is for the allocator's fragments and for libraries."""
MIN_TOKENS = 4096
"""Fewer tokens than this in a pass slow a GPU down by more than the third that computing activations again costs: an
estimate, from the number of 128 x 128 tiles of a matmul that an H100 has processors for."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a device takes its share of an optimizer step."""

    size: int
    """Sequences of one forward pass."""
    activation_checkpointing: bool
    """Whether activations are computed again in the backward pass."""
    bytes: int | None = None
    """Memory of activations by the estimate; None without one."""

    def text(self, length: int) -> str:
        """The passes of sequences of `length` tokens, in words."""
        switch = "on" if self.activation_checkpointing else "off"
        return f"{self.size} sequences of {length} per device, activation checkpointing {switch}"


class LiveBytes(TorchDispatchMode):
    """A context that counts the bytes of the tensors made in it: `now` and at their `peak`."""

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
    """Peak memory of a forward and backward pass of `size` sequences, besides weights and gradients.

    `dtype` is that of the weights; `autocast` that of matmuls, if it is another. Nothing is computed, so the device
    needs no memory; a GPU must be there, though, because its kernels are asked for the shapes of their results.
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
                    weight.grad = torch.empty_like(weight)  # as in all passes of a step but the first
                    module._parameters[name] = weight
        tokens = torch.zeros(size, length, dtype=torch.int64, device=device)
        with LiveBytes() as live:
            with context():
                loss = decoder.loss(tokens, tokens, tokens if document_masking else None)
            loss.backward()
    return live.peak


def optimizer_state_bytes(model: ModelConfig, has_average: bool, *, shards: int = 1) -> int:
    """Memory of a device for weights, gradients, Adam's two moments (Muon has one) and the average, all float32.

    If FSDP shards them, also for the weights and gradients that it gathers: the embedding's, and two blocks'.
    """
    total = (20 if has_average else 16) * num_params(model)
    if shards == 1:
        return total
    blocks = num_params(model, non_embedding=True)
    return total // shards + 8 * (num_params(model) - blocks + 2 * blocks // model.num_layers)


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
    """The passes in which each of `devices` takes its share of the `sequences` of a step, each of `length` tokens.

    They have at most `max_tokens` tokens (`trainer.micro_batch_tokens`). If that is None, at most `default_tokens`, and
    as many as fit into `room` bytes. `estimate` has the bytes of activations by checkpointing and size. `auto`
    checkpointing is on if otherwise not even `max_tokens`, or `MIN_TOKENS`, would fit. If `room` is None, nothing is
    estimated and `auto` is off.
    """
    largest = choose_micro_batch_size(sequences, devices, max(1, (max_tokens or default_tokens) // length))
    if room is None:
        return Passes(size=largest, activation_checkpointing=activation_checkpointing is True)
    sufficient = largest if max_tokens else min(largest, max(1, MIN_TOKENS // length))
    fitting, is_on = 0, False
    for is_on in (False, True) if activation_checkpointing == "auto" else (activation_checkpointing,):
        fitting = _largest_fitting(largest, room, partial(estimate, is_on))
        if fitting >= sufficient:
            break
    size = largest if max_tokens else choose_micro_batch_size(sequences, devices, max(1, fitting))
    return Passes(size=size, activation_checkpointing=is_on, bytes=estimate(is_on, size))


def smaller_passes(
    passes: Passes, sequences: int, length: int, *, is_size_given: bool, may_checkpoint: bool
) -> Passes | None:
    """What one device tries after passes did not fit: half the size, or checkpointing if that is below `MIN_TOKENS`.

    None if neither is allowed.
    """
    size = 0 if is_size_given or passes.size == 1 else choose_micro_batch_size(sequences, 1, passes.size // 2)
    if may_checkpoint and not passes.activation_checkpointing and size * length < MIN_TOKENS:
        return Passes(size=passes.size, activation_checkpointing=True)
    return replace(passes, size=size, bytes=None) if size else None


def choose_micro_batch_size(sequences: int, devices: int, fitting: int) -> int:
    """Sequences of a pass, at most `fitting`, for a step of `sequences` that `devices` share.

    Of the sizes at least half as large as fits, the largest that needs the fewest empty sequences: a share of 43
    sequences, of which 16 fit, is 4 passes of 11 (its only other divisor is 1).
    """
    share = math.ceil(sequences / devices)
    largest = min(share, fitting)
    return min(range(largest, (largest - 1) // 2, -1), key=lambda size: math.ceil(share / size) * size)


def _largest_fitting(largest: int, room: float, estimate: Callable[[int], int]) -> int:
    """The largest size up to `largest` that fits, or 0. Memory is linear in the size, up to the loss's chunks."""
    most = estimate(largest)
    if most <= room:
        return largest
    least = estimate(1)
    return 1 + int((room - least) * (largest - 1) / (most - least)) if least <= room else 0
