"""Measure the speed of this model on this machine before the run, so that its duration is known at the start."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from slm.model.decoder import Decoder
from slm.training.hardware import Hardware
from slm.training.plan import Plan

# A first pass, which includes compilation, is only taken for a measurement where a second one would try one's patience.
PATIENCE_SECONDS = 120.0


def measure_speed(decoder: Decoder, plan: Plan, hardware: Hardware) -> tuple[float, int]:
    """(tokens/s, bytes of memory held) of forward and backward passes of one device on random tokens.

    Leaves the decoder as it was, gradients and random state included, but for blocks being compiled already.
    """
    device = torch.device(hardware.accelerator)
    decoder.to(device)
    rng = torch.Generator().manual_seed(0)
    shape = (plan.micro_batch_size, plan.sequence_length + 1)
    tokens = torch.randint(plan.model.vocab_size, shape, generator=rng).to(device)
    mixed = hardware.precision.endswith("-mixed")
    context = partial(torch.autocast, device.type, hardware.matmul_dtype, enabled=mixed)
    seconds = _pass(decoder, tokens, context)
    if seconds < PATIENCE_SECONDS:
        seconds = min(_pass(decoder, tokens, context) for _ in range(2))
    decoder.zero_grad(set_to_none=True)
    return plan.micro_batch_size * plan.sequence_length / seconds, peak_memory_bytes()


def _pass(decoder: Decoder, tokens: Tensor, context: Callable[[], AbstractContextManager[None]]) -> float:
    start = time.perf_counter()
    with context():
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    if tokens.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def reset_peak_memory() -> None:
    """Start the peak anew, where the system can: one process may train several runs."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM = VmRSS


def peak_memory_bytes() -> int:
    """Most memory this process has held since the reset: on the GPU if it uses one, else resident in RAM."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
