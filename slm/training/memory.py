"""The memory of a forward and backward pass, and the largest pass that a device has room for.

Notable: the estimate runs the model's own code on tensors without data, on the run's device, and adds up the bytes of
all tensors that are alive at the same time. The code is not compiled. Compiled blocks keep fewer tensors, so for them
the estimate is an upper bound. If a pass turns out not to fit, `speed.py` halves it before the run begins.
"""

import math
import weakref
from collections.abc import Callable
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
from slm.model.empty import empty_decoder
from slm.model.quantised import round_in_training
from slm.training.distillation import Teacher, TeacherPlan
from slm.training.hardware import autocast

DEFAULT_TOKENS = {"cpu": 8192, "cuda": 32768, "mps": 8192}
"""Maximum tokens per forward pass if `trainer.micro_batch_tokens` is null. More do not make matmuls faster."""
USABLE_SHARE = 0.9
"""Share of the available memory that is used. The rest is for the allocator's fragments and for libraries."""
MIN_TOKENS = 4096
"""Activation checkpointing costs a third of a GPU's speed. Passes of fewer tokens than this cost more (estimated from
the number of 128 x 128 tiles of a matmul that an H100 computes at the same time)."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a device takes its share of an optimizer step."""

    size: int
    """Sequences of one forward pass."""
    activation_checkpointing: bool
    """Whether activations are computed again in the backward pass."""
    bytes: int | None = None
    """Estimated memory of activations; None if there is no estimate."""

    def text(self, length: int) -> str:
        """Describe passes of sequences that have `length` tokens."""
        switch = "on" if self.activation_checkpointing else "off"
        return f"{self.size} sequences of {length} per device, activation checkpointing {switch}"


class LiveBytes(TorchDispatchMode):
    """A context that counts the bytes of the tensors made in it: those alive `now`, and the `peak` so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
    autocast_dtype: torch.dtype | None,
    document_masking: bool,
    quantize: str | None = None,
    teacher: TeacherPlan | None = None,
) -> int:
    """Return the peak memory of a forward and backward pass of `size` sequences, without weights and gradients.

    The weights have `dtype`, and matmuls run in `autocast_dtype` if it is given. `quantize` adds the rounded weights
    and inputs, and a `teacher` its activations. Nothing is computed, so the device needs no memory. It must be present,
    because its kernels are asked for the shapes of their results.
    """
    decoder = empty_decoder(model)
    decoder.activation_checkpointing = activation_checkpointing
    with FakeTensorMode():
        _give_fake_weights(decoder, dtype, device)
        if quantize:
            round_in_training(decoder, quantize)
        for weight in decoder.parameters():
            weight.grad = torch.empty_like(weight)  # as in all passes of a step except the first
        fake_teacher = None
        if teacher is not None:
            fake_teacher = Teacher(decoder=empty_decoder(teacher.model), settings=teacher.settings)
            _give_fake_weights(fake_teacher.decoder, teacher.dtype, device)
        tokens = torch.zeros(size, length, dtype=torch.int64, device=device)
        documents = tokens if document_masking else None
        with LiveBytes() as live:
            with autocast(device, autocast_dtype):
                soft = fake_teacher.soft_targets(tokens, documents) if fake_teacher else None
                loss = decoder.loss(tokens, tokens, documents, None, soft)
            loss.flatten()[0].backward()
    return live.peak


def _give_fake_weights(decoder: Decoder, dtype: torch.dtype, device: str) -> None:
    """Give a decoder without storage weights without data; must be called in a `FakeTensorMode`."""
    for module in decoder.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device))


def optimizer_state_bytes(model: ModelConfig, has_average: bool, *, num_shards: int = 1) -> int:
    """Return the bytes per device of weights, gradients, Adam's two moments (Muon has one) and the average, in float32.

    With more than one FSDP shard, this includes the gathered weights and gradients of the embedding and of two blocks.
    """
    bytes_per_param = 20 if has_average else 16  # 4 for each of the items above
    total = bytes_per_param * num_params(model)
    if num_shards == 1:
        return total
    block_params = num_params(model, non_embedding=True)
    embedding_params = num_params(model) - block_params
    return total // num_shards + 8 * (embedding_params + 2 * block_params // model.num_layers)  # 8: weight and gradient


def choose_passes(
    num_sequences: int,
    num_devices: int,
    length: int,
    *,
    max_tokens: int | None,
    default_tokens: int,
    activation_checkpointing: bool | Literal["auto"],
    room: float | None,
    estimate: Callable[[bool, int], int],
) -> Passes:
    """Choose the passes in which `num_devices` devices take a step of `num_sequences` sequences of `length` tokens.

    If `max_tokens` (`trainer.micro_batch_tokens`) is given, it alone limits the tokens of a pass, even if they do not
    fit. Otherwise a pass has at most `default_tokens`, and no more than fit into `room` bytes.
    "auto" turns checkpointing on if a pass without it fits only fewer tokens than `max_tokens` (if that is None, than
    `MIN_TOKENS`). `estimate(is_on, size)` returns the bytes of activations with checkpointing on or off. If `room` is
    None, nothing is estimated and "auto" means off.
    """
    largest_size = choose_micro_batch_size(num_sequences, num_devices, max(1, (max_tokens or default_tokens) // length))
    if room is None:
        return Passes(size=largest_size, activation_checkpointing=activation_checkpointing is True)
    sufficient_size = largest_size if max_tokens else min(largest_size, max(1, MIN_TOKENS // length))
    choices = (False, True) if activation_checkpointing == "auto" else (activation_checkpointing,)
    for is_on in choices:  # ends at the first that suffices, or at the last
        fitting_size = _largest_fitting(largest_size, room, partial(estimate, is_on))
        if fitting_size >= sufficient_size:
            break
    size = largest_size if max_tokens else choose_micro_batch_size(num_sequences, num_devices, max(1, fitting_size))
    return Passes(size=size, activation_checkpointing=is_on, bytes=estimate(is_on, size))


def smaller_passes(
    passes: Passes, num_sequences: int, length: int, *, is_size_given: bool, may_checkpoint: bool
) -> Passes | None:
    """Return passes of half the size, or with checkpointing if half is too small; None if neither is allowed."""
    may_halve = not is_size_given and passes.size > 1
    half_size = choose_micro_batch_size(num_sequences, 1, passes.size // 2) if may_halve else 0
    if may_checkpoint and not passes.activation_checkpointing and half_size * length < MIN_TOKENS:
        return Passes(size=passes.size, activation_checkpointing=True)
    return replace(passes, size=half_size, bytes=None) if may_halve else None


def choose_micro_batch_size(num_sequences: int, num_devices: int, max_size: int) -> int:
    """Return the size of a pass, at most `max_size`, if `num_devices` devices share a step of `num_sequences`.

    Of the sizes from half the largest to the largest, this is the one that needs the fewest empty sequences. For
    example, a share of 43 sequences with a largest size of 16 takes 4 passes of 11, one sequence of which is empty.
    """
    share = math.ceil(num_sequences / num_devices)
    largest_size = min(share, max_size)
    sizes = range(largest_size, (largest_size - 1) // 2, -1)  # of equally good sizes, `min` takes the largest
    return min(sizes, key=lambda size: math.ceil(share / size) * size)


def _largest_fitting(largest_size: int, room: float, estimate: Callable[[int], int]) -> int:
    """Return the largest size that fits, or 0. Interpolates: memory is linear in the size, except for loss chunks."""
    bytes_of_largest = estimate(largest_size)
    if bytes_of_largest <= room:
        return largest_size
    bytes_of_one = estimate(1)
    if bytes_of_one > room:
        return 0
    return 1 + int((room - bytes_of_one) * (largest_size - 1) / (bytes_of_largest - bytes_of_one))
