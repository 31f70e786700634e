"""How fast several processes together train one model: `python -m slm.training.together PROCESSES < config.json`.

Standard input is the resolved config of train.py as JSON. The last line of the output is a JSON object with
`tokens_per_second`, the sum over all processes, and `memory_bytes` of one of them. All measure during the same seconds,
on random tokens. sweep.py thus chooses `launcher.jobs_per_gpu`.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from slm.runtime.extensions import load_extensions
from slm.runtime.machine import limit_gpu_memory, peak_memory_bytes, synchronize
from slm.training.module import LanguageModel
from slm.training.plan import Plan, make_plan, resolve_hardware

WARM_UP_STEPS = 3
SECONDS = 3.0
START_SECONDS = 240.0
"""How long a process waits for the others, which import torch and compile at the same time."""

_barrier: Barrier


def main() -> None:
    """Run the processes and print what they reached."""
    processes, settings = int(sys.argv[1]), json.load(sys.stdin)
    context = multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, initializer=_keep, initargs=(barrier,)) as pool:
        found = list(pool.map(_measure, [settings] * processes))
    rates, memory = zip(*found, strict=True)
    print(json.dumps({"tokens_per_second": sum(rates), "memory_bytes": max(memory)}))


def _keep(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _measure(settings: Mapping[str, Any]) -> tuple[float, int]:
    """Tokens per second of this process while all run, and its memory."""
    try:
        load_extensions(settings)
        limit_gpu_memory()
        plan = make_plan(settings, resolve_hardware(settings["trainer"]))
        take_step = training_step(plan)
        for _ in range(WARM_UP_STEPS):
            take_step()
        synchronize(plan.hardware.accelerator)
        _barrier.wait(START_SECONDS)
    except BaseException:
        _barrier.abort()  # the others must not wait for this one
        raise
    start, steps = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < SECONDS or steps == 0:
        take_step()
        synchronize(plan.hardware.accelerator)
        steps += 1
    return steps * plan.batch_tokens / seconds, process_bytes(plan.hardware.accelerator)


def process_bytes(accelerator: str) -> int:
    """Memory that this process holds: what torch has reserved on a GPU, else what is resident, or 0 if unknown."""
    return torch.cuda.max_memory_reserved() if accelerator == "cuda" else peak_memory_bytes() or 0


def training_step(plan: Plan, module: LanguageModel | None = None) -> Callable[[], Tensor]:
    """A function that takes one optimizer step of the run, on random tokens and without Lightning.

    It returns the loss of the last micro-batch, on the device, and does not wait for the device. `module` is a model of
    the plan's shape, if one exists already; it is then moved to the device.
    """
    hardware, device = plan.hardware, torch.device(plan.hardware.accelerator)
    # Token 0 begins a document, about every thousandth token of a large vocabulary.
    module = (module or LanguageModel(plan, separator=0 if plan.document_masking else None)).to(device)
    module.plan = plan
    optimizer: Any = module.configure_optimizers()["optimizer"]
    shape = (plan.micro_batch_size, plan.sequence_length + 1)
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(min(1000, plan.model.vocab_size), shape, generator=rng).to(device)
    autocast = partial(torch.autocast, device.type, hardware.matmul_dtype, cache_enabled=False)
    precision = autocast if hardware.precision.endswith("-mixed") else nullcontext

    def take_step() -> Tensor:
        for _ in range(plan.accumulation):
            with precision():
                loss = module.training_step(tokens, 0)
            (loss / plan.accumulation).backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        if module.average is not None:
            module.average.update(module.decoder, skipped=module.guard.in_a_row > 0)
        return loss.detach()

    return take_step


if __name__ == "__main__":
    main()
