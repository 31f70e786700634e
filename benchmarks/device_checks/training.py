"""Checks of a training step: speed, memory, document masking, the largest micro-batch, transformers, repeatability."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from device_checks.common import (
    device_of,
    host_milliseconds,
    kernel_milliseconds,
    milliseconds,
    peak_gb,
    plan_of,
    reset,
)
from slm.runtime.machine import can_compile, device_name, native_bfloat16, synchronize
from slm.training.module import LanguageModel
from slm.training.plan import Plan
from slm.training.speed import measure_matmul, training_step

Found = dict[str, Any]
STEPS = {"gpu": 8, "cpu": 3, "smallest": 2}


def machine(size: str) -> Found:
    """The device, its memory, what torch can do on it, and the measured peak of matmuls."""
    device = device_of(size)
    plan = plan_of(size, "125m")
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if device == "cuda" else None
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "memory_gb": memory and round(memory, 1),
        "bfloat16": native_bfloat16(device),
        "compiler": can_compile(device),
        "precision": plan.hardware.precision,
        "matmul_tflops": round(measure_matmul(device, plan.hardware.matmul_dtype) / 1e12, 2),
    }


def step_125m(size: str) -> Found:
    """A training step of MobileLLM-125M, 2,048 tokens a sequence."""
    return _step(size, "125m", goal=0.45)


def step_350m(size: str) -> Found:
    """A training step of MobileLLM-350M."""
    return _step(size, "350m", goal=0.50)


def _step(size: str, model: str, *, goal: float) -> Found:
    plan = plan_of(size, model)
    found = _timed(plan, training_step(plan), STEPS[size])
    peak = measure_matmul(plan.hardware.accelerator, plan.hardware.matmul_dtype)
    mfu = found["tokens_per_second"] * plan.token_flops / peak
    found |= {"mfu_of_measured_peak": round(mfu, 3), "peak_tflops": round(peak / 1e12, 1), "mfu_goal": goal}
    return found | {"met": mfu >= goal} if size == "gpu" else found


def _timed(plan: Plan, take_step: Callable[[], object], steps: int) -> Found:
    device = plan.hardware.accelerator
    start = time.perf_counter()
    take_step()
    synchronize(device)
    first = time.perf_counter() - start
    take_step()
    ms = milliseconds(take_step, device, steps)
    return {
        "batch": f"{plan.accumulation} x {plan.micro_batch_size} x {plan.sequence_length}",
        "compiled": plan.hardware.compile,
        "precision": plan.hardware.precision,
        "first_step_s": round(first, 1),
        "ms": ms,
        "host_ms": host_milliseconds(take_step, device),
        "kernel_ms": kernel_milliseconds(take_step, device),
        "tokens_per_second": round(plan.batch_tokens / ms * 1e3),
        "tflops": round(plan.batch_tokens * plan.token_flops / ms / 1e9, 3),
        "peak_gb": peak_gb(),
    }


def masking(size: str) -> Found:
    """The step of 125M with documents masked from each other, about two a sequence of 2,048, and without."""
    found: Found = {"goal": "at most 1.3 times the time"}
    for name, switch in (("plain", "false"), ("masked", "true")):
        reset()
        plan = plan_of(size, "125m", f"train.document_masking={switch}")
        timed = _timed(plan, training_step(plan), STEPS[size])
        found[name] = {key: timed[key] for key in ("ms", "kernel_ms", "tokens_per_second", "peak_gb")}
    ratio = found["masked"]["ms"] / found["plain"]["ms"]
    found["ratio"] = round(ratio, 3)
    return found | {"met": ratio <= 1.3} if size == "gpu" else found


def transformers_125m(size: str) -> Found:
    """The same step by transformers' Llama, compiled as a whole: shape, batch, precision and optimizer are the same."""
    import train_throughput as bench

    plan = plan_of(size, "125m")
    shape = (plan.micro_batch_size, plan.sequence_length + 1)
    tokens = torch.randint(plan.model.vocab_size, shape).to(plan.hardware.accelerator)

    def llama() -> Any:
        model, loss = bench.transformers_llama(plan.model, plan.hardware)
        if plan.hardware.compile:
            model.compile(dynamic=False)
        return model, loss

    found: Found = {"goal": "at least 1.3 times transformers compiled"}
    for name, make in (("ours", lambda: bench.ours(plan.model, plan.hardware)), ("transformers", llama)):
        reset()
        take_step = bench.step_of(make(), tokens, plan.hardware)
        take_step()
        take_step()
        seconds = statistics.median(take_step() for _ in range(STEPS[size]))
        rate = shape[0] * plan.sequence_length / seconds
        found[name] = {"ms": round(seconds * 1e3, 2), "tokens_per_second": round(rate), "peak_gb": peak_gb()}
        del take_step
    ratio = found["transformers"]["ms"] / found["ours"]["ms"]
    found["ratio"] = round(ratio, 2)
    return found | {"met": ratio >= 1.3} if size == "gpu" else found


def micro_batch_1b(size: str) -> Found:
    """The largest micro-batch at which a step of MobileLLM-1B runs, by doubling, and that which a run would choose.

    First without, then with activation checkpointing. It ends by itself before its time limit does.
    """
    chosen, start = plan_of(size, "1b"), time.perf_counter()
    checkpointing = chosen.passes.activation_checkpointing
    found: Found = {"sequence_length": chosen.sequence_length}
    found["chosen"] = {"sequences": chosen.micro_batch_size, "activation_checkpointing": checkpointing}
    module = LanguageModel(chosen)
    for name, is_on in (("plain", False), ("checkpointing", True)):
        found[name] = {}
        for rows in (4, 8, 16, 32) if size == "gpu" else (1, 2):
            if time.perf_counter() - start > MICRO_BATCH_SECONDS[size]:
                return found
            reset()
            entry = _one_pass(size, rows, module, activation_checkpointing=is_on)
            found[name][f"{rows} sequences"] = entry
            if entry == OUT_OF_MEMORY:
                break
            found[name]["largest"] = rows
    return found


OUT_OF_MEMORY = "out of memory"
MICRO_BATCH_SECONDS = {"gpu": 45, "cpu": 300, "smallest": 300}


def _one_pass(size: str, rows: int, module: LanguageModel, *, activation_checkpointing: bool) -> Found | str:
    length = module.plan.sequence_length
    asked = [f"{key}={rows * length}" for key in ("train.batch_tokens", "trainer.micro_batch_tokens")]
    plan = plan_of(size, "1b", *asked, f"trainer.activation_checkpointing={str(activation_checkpointing).lower()}")
    module.decoder.activation_checkpointing = activation_checkpointing
    module.zero_grad(set_to_none=True)
    try:
        ms = milliseconds(training_step(plan, module), plan.hardware.accelerator, 1)
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    return {"tokens_per_second": round(plan.batch_tokens / ms * 1e3), "peak_gb": peak_gb()}


def repeatable(size: str) -> Found:
    """Whether the same five steps give the same weights twice, to the last bit."""
    ends = []
    for _ in range(2):
        reset()
        plan = plan_of(size, "125m", "model.num_layers=4", "train.batch_tokens=8192" if size == "gpu" else "seed=1")
        module = LanguageModel(plan)
        take_step = training_step(plan, module)
        losses = [take_step() for _ in range(5)]
        ends.append([*losses, *(p.detach().clone() for p in module.parameters())])
    equal = [torch.equal(a, b) for a, b in zip(*ends, strict=True)]
    return {"losses_equal": all(equal[:5]), "weights_equal": all(equal[5:]), "threads": torch.get_num_threads()}
