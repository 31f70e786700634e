"""Measure the speed of this model on this machine before the run, so that its duration is known at the start."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from slm.model.decoder import Decoder
from slm.runtime.machine import peak_memory_bytes
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
    # Without its cache, as Lightning trains: with it, blocks would be compiled anew for the first step.
    autocast = partial(torch.autocast, device.type, hardware.matmul_dtype, cache_enabled=False)
    context: Callable[[], AbstractContextManager[None]] = autocast if mixed else nullcontext
    # Masked as in training, so that blocks are compiled once; where documents begin takes no time.
    documents = torch.zeros_like(tokens[:, :-1]) if plan.document_masking else None
    seconds = _pass(decoder, tokens, documents, context)
    if seconds < PATIENCE_SECONDS:
        seconds = min(_pass(decoder, tokens, documents, context) for _ in range(2))
    decoder.zero_grad(set_to_none=True)
    return plan.micro_batch_size * plan.sequence_length / seconds, peak_memory_bytes()


def _pass(
    decoder: Decoder, tokens: Tensor, documents: Tensor | None, context: Callable[[], AbstractContextManager[None]]
) -> float:
    start = time.perf_counter()
    with context():
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:], documents)
    loss.backward()
    if tokens.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
