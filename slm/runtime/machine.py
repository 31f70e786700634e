"""The processor, precision, compiler and memory of this machine. Imports torch."""

from __future__ import annotations

import resource
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import torch


def native_bfloat16(device: str) -> bool:
    """Whether the device has bfloat16 matmul instructions. Emulation is 20 to 50 times slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def can_compile(device: str) -> bool:
    """Whether torch.compile works: on a CPU it needs a C++ compiler, on a GPU it brings its own."""
    return device == "cuda" or any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def device_name(device: str) -> str:
    """Name of the processor."""
    return torch.cuda.get_device_name() if device == "cuda" else _cpu_name()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'} ({torch.get_num_threads()} threads)"


def reset_peak_memory() -> None:
    """Reset the peak if the system allows it, since one process may train or measure several models."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM = VmRSS


def resident_bytes() -> int:
    """Memory in use by this process: allocated by torch on the GPU if it uses one, else resident in RAM."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.memory_allocated()
    return _status_bytes("VmRSS") or peak_memory_bytes()


def peak_memory_bytes() -> int:
    """Peak memory of this process since the reset: on the GPU if it uses one, else resident in RAM."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(key: str) -> int:
    """A value of Linux's /proc/self/status in bytes; 0 on other systems."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0
