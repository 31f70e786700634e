"""The processor, precision, compiler and memory of this machine. Imports torch."""

from __future__ import annotations

import os
import shutil

import torch

from slm.runtime.command_line import GPU_MEMORY_SHARE
from slm.runtime.system import peak_rss, processor_name, reset_peak_rss, rss


def native_bfloat16(device: str) -> bool:
    """Whether the device has bfloat16 matmul instructions. Emulation is 20 to 50 times slower than float32.

    False for `mps`: the oldest chips emulate it, and none was measured.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # absent where torch is built without oneDNN
    return device == "cpu" and asked is not None and bool(asked())


def can_compile(device: str) -> bool:
    """Whether torch.compile works: on a CPU it needs a C++ compiler, on a CUDA GPU it brings its own.

    False for `mps`, for which torch's compiler is a prototype.
    """
    names = ("g++", "clang++", "c++", "cl")  # cl: on Windows
    return device == "cuda" or (device == "cpu" and any(shutil.which(name) for name in names))


def device_name(device: str) -> str:
    """Name of the processor; of a CPU with the number of threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor_name()} ({'GPU' if device == 'mps' else f'{torch.get_num_threads()} threads'})"


def synchronize(device: str) -> None:
    """Return when the device has done all work that was given to it."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def limit_gpu_memory() -> None:
    """Keep to the share of the GPU's memory that the environment states, if other jobs of a sweep use the same GPU."""
    if (share := os.environ.get(GPU_MEMORY_SHARE)) and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(float(share))


def reset_peak_memory() -> None:
    """Reset the peak if the system allows it, since one process may train or measure several models."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    reset_peak_rss()


def resident_bytes() -> int | None:
    """Memory in use by this process: allocated by torch on the GPU if it uses one, else resident in RAM.

    None if the system does not tell.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.memory_allocated()
    return _mps_bytes() or rss()


def peak_memory_bytes() -> int | None:
    """Peak memory of this process since the reset: on the GPU if it uses one, else resident in RAM.

    None if it is not known, as on Windows and for `mps`, of which torch tells only the memory in use.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return None if _mps_bytes() else peak_rss()


def _mps_bytes() -> int:
    """Bytes allocated by torch on Apple's GPU."""
    return torch.mps.current_allocated_memory() if torch.backends.mps.is_available() else 0
