"""Measure the speed of several processes on one device: `python -m slm.training.together PROCESSES < config.json`.

Standard input is the resolved config of train.py as JSON. The last line of the output is a JSON object with
`tokens_per_second`, the sum over all processes, and `memory_bytes`, the memory of the largest process. All processes
train on random tokens during the same seconds. From these numbers, sweep.py chooses `launcher.jobs_per_gpu`.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from threading import Barrier
from typing import Any

from slm.runtime.extensions import load_extensions

WARM_UP_STEPS = 3
MEASURED_SECONDS = 3.0
MAX_START_SECONDS = 240.0
"""A process that has compiled waits no longer than this until the others have compiled too."""

_barrier: Barrier


def main() -> None:
    """Run the processes, and print their speed and memory."""
    num_processes, settings = int(sys.argv[1]), json.load(sys.stdin)
    context = multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
    barrier = context.Barrier(num_processes)
    with ProcessPoolExecutor(num_processes, context, initializer=_set_barrier, initargs=(barrier,)) as pool:
        measurements = list(pool.map(_measure, [settings] * num_processes))
    speeds, memory_bytes = zip(*measurements, strict=True)
    print(json.dumps({"tokens_per_second": sum(speeds), "memory_bytes": max(memory_bytes)}))


def _set_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _measure(settings: Mapping[str, Any]) -> tuple[float, int]:
    """Return the tokens per second of this process while all of them run, and its memory in bytes."""
    try:
        # Imported here, because the process that starts the others does not need torch.
        from slm.runtime.machine import limit_gpu_memory, synchronize
        from slm.training.hardware import resolve_hardware
        from slm.training.plan import make_plan
        from slm.training.speed import process_bytes, training_step

        load_extensions(settings)
        limit_gpu_memory()
        plan = make_plan(settings, resolve_hardware(settings["trainer"]))
        take_step = training_step(plan)
        for _ in range(WARM_UP_STEPS):
            take_step()
        synchronize(plan.hardware.accelerator)
        _barrier.wait(MAX_START_SECONDS)
    except BaseException:
        _barrier.abort()  # the others must not wait for this one
        raise
    start, num_steps = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < MEASURED_SECONDS or num_steps == 0:
        take_step()
        synchronize(plan.hardware.accelerator)
        num_steps += 1
    return num_steps * plan.batch_tokens / seconds, process_bytes(plan.hardware.accelerator)


if __name__ == "__main__":
    main()
