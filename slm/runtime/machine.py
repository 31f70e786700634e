"""The processor, precision, compiler and memory of this machine. Imports torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from slm.runtime.command_line import GPU_MEMORY_SHARE
from slm.runtime.system import peak_rss, processor_name, reset_peak_rss, rss

DEVICES = Path("/dev")


def native_bfloat16(device: str) -> bool:
    """Whether the device has bfloat16 matmul instructions. Emulation is 20 to 50 times slower than float32.

    False for `mps`: the oldest chips emulate it, and none was measured.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # absent where torch is built without oneDNN
    return device == "cpu" and asked is not None and bool(asked())


def fast_float16(device: str) -> bool:
    """Whether the device multiplies float16 faster than float32 and accumulates in float32: tensor cores, from V100."""
    return device == "cuda" and torch.cuda.get_device_capability() >= (7, 0)


def can_compile(device: str) -> bool:
    """Whether torch.compile works on this machine."""
    return why_not_compiled(device) is None


@cache
def why_not_compiled(device: str) -> str | None:
    """What torch.compile lacks on this machine, as a clause; None if it works.

    Kernels of a CPU need a C++ compiler. Those of a GPU need Triton, which loads them by a module in C. Both include
    Python's headers.
    """
    if device == "mps":
        return "torch's compiler is a prototype on MPS"
    if device == "cuda":
        if find_spec("triton") is None:
            return "Triton is not installed"
        gpu = torch.cuda.get_device_properties(0)
        if torch.version.hip is None and gpu.major < 7:
            return f"Triton needs a GPU of compute capability 7.0, and this one has {gpu.major}.{gpu.minor}"
        language, variable, names = "C", "CC", ["gcc", "clang"]  # the names that Triton and torch look for
    else:
        language, variable = "C++", "CXX"
        names = [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    if given := os.environ.get(variable):
        names = [given]
    if not any(map(shutil.which, names)):
        return f"there is no {language} compiler ({' or '.join(names)}) on PATH"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists() and sys.platform != "darwin":
        return "Python.h is missing (the package python3-dev of Debian has it)"
    return None


def unusable_gpu() -> str | None:
    """That this machine has an NVIDIA GPU which torch cannot use, and why, as a clause; None if that is not so.

    A GPU that CUDA_VISIBLE_DEVICES hides does not count.
    """
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.cuda.is_available() or is_hidden or not (any(DEVICES.glob("nvidia[0-9]*")) or _nvidia_smi_lists_gpus()):
        return None
    why = "torch.cuda.is_available() is false"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip()  # torch's own words about an old driver, none, or a build without CUDA
    return f"this machine has an NVIDIA GPU that torch cannot use: {why}"


def _nvidia_smi_lists_gpus() -> bool:
    """As in WSL, where a GPU has no file of its own. The program alone proves nothing: images of clusters have it."""
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", timeout=10, check=False)
        return listed.stdout.startswith("GPU ")
    return False


def has_mps() -> bool:
    """Whether torch can use the GPU of a Mac, which Lightning does on chips of Apple only."""
    return torch.backends.mps.is_available() and platform.processor() in ("arm", "arm64")


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU if it is Apple's GPU, which lacks float64."""
    return torch.device("cpu") if device.type == "mps" else device


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


def available_bytes(device: str, *, alone: bool) -> int | None:
    """Memory of a CUDA device that a run may use; None for other devices.

    A run that is `alone` may use what is free now. Processes of one run must agree on how they divide a step, so they
    count what such a GPU has in all. Jobs that share a GPU have shares of it.
    """
    if device != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # of an earlier model in this process
    share = int(total * float(os.environ.get(GPU_MEMORY_SHARE) or 1))
    return min(free + cached, share) if alone else share


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
    return torch.mps.current_allocated_memory() if has_mps() else 0
