"""The matmul peak of a device, measured once and cached: what MFU is a share of."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch

from slm.training.hardware import Hardware

# Dense bfloat16 datasheet figures (FLOP/s), used only where measuring fails. NVIDIA's data sheets of each.
DATASHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}

SECONDS, MOST_SECONDS = 0.5, 1.0
"""How long a size is measured, and how long a single product of the next may take."""


def matmul_peak(hardware: Hardware, cache_dir: Path) -> tuple[float, str]:
    """FLOP/s of large square matmuls in the run's dtype on one device, and where the figure comes from.

    Kept in `cache_dir`/peaks.json under the device, dtype, number of threads and torch version.
    """
    device = hardware.device_name
    key = f"{device} {hardware.matmul_dtype} torch {torch.__version__}"
    path = cache_dir / "peaks.json"
    try:
        peaks = json.loads(path.read_text())
    except (OSError, ValueError):  # not there yet, or not whole
        peaks = {}
    if key not in peaks:
        try:
            peaks[key] = measure_matmul(hardware.accelerator, hardware.matmul_dtype)
        except RuntimeError:
            known = [flops for name, flops in DATASHEET.items() if name in device]
            return (known[0], "datasheet") if known else (float("nan"), "unknown")
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"peaks.json.partial-{os.getpid()}")
        partial.write_text(json.dumps(peaks, indent=2))
        os.replace(partial, path)
    return peaks[key], "measured"


def measure_matmul(device: str, dtype: torch.dtype) -> float:
    """Best FLOP/s over a few square sizes, half a second each or one product, where that takes longer."""
    best = 0.0
    for size in (4096, 8192) if device == "cuda" else (512, 1024, 2048):
        if 2 * size**3 > MOST_SECONDS * best > 0:  # emulated: a larger size would take minutes and say the same
            break
        best = max(best, _rate(size, device, dtype))
    return best


def _rate(size: int, device: str, dtype: torch.dtype) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best, stop = 0.0, time.perf_counter() + SECONDS
    products = 1  # the first, which may have to load libraries, is measured in case that it is the only one
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
