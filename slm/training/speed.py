"""The speed of this model here, measured before the run, and the matmul peak that MFU is a share of."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from slm.model.decoder import Decoder
from slm.runtime.files import write_json
from slm.runtime.machine import peak_memory_bytes
from slm.runtime.words import duration
from slm.training.plan import Hardware, Plan
from slm.training.process import is_first_process, say

MIN_PASSES = 300
"""Passes from which an uncompiled run is measured, which takes three. A compiled run always is, so that its clock
starts after compilation."""
MAX_FIRST_PASS_SECONDS = 120.0
"""A longer first pass counts as the measurement, although it includes compilation: two more would take too long."""
LONG_RUN_SECONDS = 3600
PEAK_SECONDS, MAX_PRODUCT_SECONDS = 0.5, 1.0
"""How long each size of matmul is measured, and how long a single product of the next size may take."""
# Dense bfloat16 FLOP/s of NVIDIA's data sheets, used only if measuring fails.
DATASHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}


def measure_run(plan: Plan, decoder: Decoder, start_step: int) -> float:
    """Print speed and duration of the run from `start_step` on; returns the matmul peak of a device in FLOP/s."""
    hardware = plan.hardware
    peak, source = matmul_peak(hardware, plan.cache_dir)
    passes = (plan.steps - start_step) * plan.accumulation
    is_wanted = plan.settings["dry_run"] or hardware.compile or passes >= MIN_PASSES
    if not (is_wanted and is_first_process()):
        return peak
    say("speed        measuring ...")
    speed, memory = measure_speed(decoder, plan)
    # GPUs add up; processes on one CPU share its cores.
    devices = hardware.world_size if hardware.accelerator == "cuda" else 1
    seconds = (plan.steps - start_step) * plan.batch_tokens / (speed * devices)
    say(
        f"speed        {speed * devices:,.0f} tokens/s measured here, MFU {speed * plan.token_flops / peak:.0%} of "
        f"{peak * devices / 1e9:,.0f} GFLOP/s ({source}), {memory / 1e9:.2f} GB of memory held",
        f"duration     about {duration(seconds)} of training",
    )
    if seconds > LONG_RUN_SECONDS:
        say(
            "             that is over an hour: Ctrl-C saves a checkpoint, and the same command with output_dir "
            f"continues; train.tokens={plan.batch_tokens * 20} would be a short try"
        )
    return peak


def measure_speed(decoder: Decoder, plan: Plan) -> tuple[float, int]:
    """(tokens/s, bytes of memory held) of forward and backward passes on one device, on random tokens.

    Leaves weights, gradients and random state as they were; blocks may be compiled afterwards.
    """
    hardware = plan.hardware
    device = torch.device(hardware.accelerator)
    decoder.to(device)
    rng = torch.Generator().manual_seed(0)
    shape = (plan.micro_batch_size, plan.sequence_length + 1)
    tokens = torch.randint(plan.model.vocab_size, shape, generator=rng).to(device)
    # Without autocast's cache, as Lightning trains: with it, blocks would be compiled again for the first step.
    autocast = partial(torch.autocast, device.type, hardware.matmul_dtype, cache_enabled=False)
    precision: Callable[[], AbstractContextManager[None]] = (
        autocast if hardware.precision.endswith("-mixed") else nullcontext
    )
    # Masked as in training, so that blocks are compiled once; where documents begin does not change the time.
    documents = torch.zeros_like(tokens[:, :-1]) if plan.document_masking else None
    seconds = _time_pass(decoder, tokens, documents, precision)
    if seconds < MAX_FIRST_PASS_SECONDS:
        seconds = min(_time_pass(decoder, tokens, documents, precision) for _ in range(2))
    decoder.zero_grad(set_to_none=True)
    return plan.micro_batch_size * plan.sequence_length / seconds, peak_memory_bytes()


def _time_pass(
    decoder: Decoder, tokens: Tensor, documents: Tensor | None, precision: Callable[[], AbstractContextManager[None]]
) -> float:
    start = time.perf_counter()
    with precision():
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:], documents)
    loss.backward()
    _synchronize(tokens.device.type)
    return time.perf_counter() - start


def matmul_peak(hardware: Hardware, cache_dir: Path) -> tuple[float, str]:
    """FLOP/s of large square matmuls in the run's dtype on one device, and the source of the figure.

    Kept in `cache_dir`/peaks.json under the device, dtype, number of threads and torch version.
    """
    device = hardware.device_name
    key = f"{device} {hardware.matmul_dtype} torch {torch.__version__}"
    path = cache_dir / "peaks.json"
    try:
        peaks = json.loads(path.read_text())
    except (OSError, ValueError):  # missing or damaged
        peaks = {}
    if key not in peaks:
        try:
            peaks[key] = measure_matmul(hardware.accelerator, hardware.matmul_dtype)
        except RuntimeError:
            listed = [flops for name, flops in DATASHEET.items() if name in device]
            return (listed[0], "datasheet") if listed else (float("nan"), "unknown")
        write_json(path, peaks, indent=2)
    return peaks[key], "measured"


def measure_matmul(device: str, dtype: torch.dtype) -> float:
    """Best FLOP/s over a few square sizes, each measured for half a second, or for one product if that takes longer."""
    best = 0.0
    for size in (4096, 8192) if device == "cuda" else (512, 1024, 2048):
        # Where the dtype is emulated, a larger size would take minutes and give the same figure.
        if 2 * size**3 > MAX_PRODUCT_SECONDS * best > 0:
            break
        best = max(best, _matmul_rate(size, device, dtype))
    return best


def _matmul_rate(size: int, device: str, dtype: torch.dtype) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best, stop = 0.0, time.perf_counter() + PEAK_SECONDS
    products = 1  # the first product may load libraries, but on a slow machine it is the only one
    while best == 0.0 or time.perf_counter() < stop:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=out)
        _synchronize(device)
        best = max(best, products * 2 * size**3 / (time.perf_counter() - start))
        products = 4
    return best


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
