"""Sizes of the checks, plans of runs, and how times and memory are measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from slm.composition.resolvers import register
from slm.runtime.machine import synchronize
from slm.training.hardware import resolve_hardware
from slm.training.plan import Plan, make_plan

ROOT = Path(__file__).parents[2]
PRESETS = {"125m": "mobilellm_125m", "350m": "mobilellm_350m", "1b": "mobilellm_1b", "ls": "mobilellm_ls_125m"}
SMALL = ("trainer=cpu", "model.num_layers=2", "model.vocab_size=512")
OVERRIDES = {
    "gpu": ("trainer=gpu", "train.sequence_length=2048", "train.batch_tokens=32768"),
    "cpu": (*SMALL, "train.sequence_length=128", "train.batch_tokens=1024"),
    "smallest": (*SMALL, "train.sequence_length=64", "train.batch_tokens=256"),
}
TRAIN_TOKENS = {"gpu": 100_000_000, "cpu": 100_000, "smallest": 20_000}


def overrides(size: str, model: str, *more: str) -> list[str]:
    """Overrides of train.py; off a GPU every model is a tiny one of its kind."""
    tiny = "tiny_ls" if model == "ls" else "tiny"
    chosen = PRESETS[model] if size == "gpu" else tiny
    return [f"model={chosen}", *OVERRIDES[size], f"train.tokens={TRAIN_TOKENS[size]}", "output_dir=none", *more]


def plan_of(size: str, model: str, *more: str) -> Plan:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=overrides(size, model, *more))
    settings: Any = OmegaConf.to_container(config, resolve=True)
    return make_plan(settings, resolve_hardware(settings["trainer"]))


def device_of(size: str) -> str:
    return "cuda" if size == "gpu" else "cpu"


def peak_gb() -> float | None:
    """Most GPU memory that torch has held since `reset`; None on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None


def reset() -> None:
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def milliseconds(work: Callable[[], object], device: str, times: int) -> float:
    """Of one call after a first one, with the device's work."""
    work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return round((time.perf_counter() - start) / times * 1e3, 3)


def host_milliseconds(work: Callable[[], object], device: str) -> float:
    """Until a call returns, which on a GPU is when its kernels are queued (the queue holds about a thousand)."""
    synchronize(device)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    synchronize(device)
    return round(seconds * 1e3, 3)


def kernel_milliseconds(work: Callable[[], object], device: str) -> float | None:
    """Sum of the times of the kernels of a call; None on a CPU."""
    if device == "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        synchronize(device)
    return round(sum(event.self_device_time_total for event in profiled.key_averages()) / 1e3, 3)


def main_kernel(work: Callable[[], object], device: str) -> str:
    """Name of the kernel (on a CPU: of the operation) that takes most of the time of a call."""
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[kind]) as profiled:
        work()
        synchronize(device)
    key = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    return str(max(profiled.key_averages(), key=lambda event: getattr(event, key)).key)[:120]
