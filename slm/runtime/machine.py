"""What this machine can do: precision, compiler, GPU and memory. Imports torch."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from slm.runtime.command_line import GPU_MEMORY_SHARE
from slm.runtime.system import peak_rss, processor_name, reset_peak_rss, rss

DEVICES = Path("/dev")


def native_bfloat16(device: str) -> bool:
    """Whether the device has bfloat16 matmul instructions. Emulation is 20 to 50 times slower than float32.

    Always false for `mps`, because the oldest chips emulate bfloat16 and no chip was measured.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # absent in a torch without oneDNN
    return device == "cpu" and is_supported is not None and bool(is_supported())


def fast_float16(device: str) -> bool:
    """Whether the device has tensor cores (V100 and later): fast float16 matmul, accumulated in float32."""
    return device == "cuda" and torch.cuda.get_device_capability() >= (7, 0)


def can_compile(device: str) -> bool:
    """Whether torch.compile works on this machine."""
    return why_not_compiled(device) is None


@cache
def why_not_compiled(device: str) -> str | None:
    """Return a clause that says what torch.compile lacks on this machine; None if it works.

    CPU kernels need a C++ compiler. GPU kernels need Triton, which compiles a module in C to load them. Both need
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
        language, variable, compilers = "C", "CC", ["gcc", "clang"]  # the names that Triton and torch look for
    else:
        language, variable = "C++", "CXX"
        compilers = [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    if chosen_compiler := os.environ.get(variable):
        compilers = [chosen_compiler]
    if not any(map(shutil.which, compilers)):
        return f"there is no {language} compiler ({' or '.join(compilers)}) on PATH"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists() and sys.platform != "darwin":
        return "Python.h is missing (the package python3-dev of Debian has it)"
    return None


@contextmanager
def explain_compiler_error(setting: str) -> Iterator[None]:
    """If torch's compiler fails in this context, raise a `ValueError`; with `setting` false nothing is compiled."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed  # imported here, because it imports the compiler
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        if not isinstance(error, BackendCompilerFailed):
            raise
        cause = f"{type(error.inner_exception).__name__}: {error.inner_exception}".splitlines()[0]
        raise ValueError(
            f"torch's compiler failed ({cause}): {setting}=false runs without it. If a process was killed while it "
            f"compiled, delete the compiler's cache, {cache_dir()}"
        ) from error


def why_no_gpu() -> str | None:
    """Return a clause that says why torch cannot use an NVIDIA GPU of this machine.

    Returns None if torch can use it, if there is no GPU, or if CUDA_VISIBLE_DEVICES hides it.
    """
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.cuda.is_available() or is_hidden or not (any(DEVICES.glob("nvidia[0-9]*")) or _nvidia_smi_lists_gpus()):
        return None
    why = "torch.cuda.is_available() is false"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip()  # torch says that the driver is old or missing, or that it was built without CUDA
    return f"this machine has an NVIDIA GPU that torch cannot use: {why}"


def _nvidia_smi_lists_gpus() -> bool:
    """Whether nvidia-smi finds a GPU; in WSL a GPU has no device file. The program may be present without a GPU."""
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", timeout=10, check=False)
        return listed.stdout.startswith("GPU ")
    return False


def has_mps() -> bool:
    """Whether torch can use the GPU of a Mac. Lightning uses it only on Apple's own chips."""
    return torch.backends.mps.is_available() and platform.processor() in ("arm", "arm64")


def float64_device(device: torch.device) -> torch.device:
    """Return the device, or the CPU in place of Apple's GPU, which lacks float64."""
    return torch.device("cpu") if device.type == "mps" else device


def device_name(device: str) -> str:
    """Return the name of the processor; for a CPU, with the number of threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    kind = "GPU" if device == "mps" else f"{torch.get_num_threads()} threads"
    return f"{processor_name()} ({kind})"


def synchronize(device: str) -> None:
    """Wait until the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def limit_gpu_memory() -> None:
    """Limit this process to its share of the GPU's memory if a sweep runs several jobs on the GPU."""
    if (share := os.environ.get(GPU_MEMORY_SHARE)) and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(float(share))


def available_bytes(device: str, *, alone: bool) -> int | None:
    """Return the memory of a CUDA device that a run may use; None for other devices.

    A run of one process (`alone`) may use the memory that is free now. The processes of a larger run count the whole
    memory, so that all divide a step in the same way. Neither may use more than the job's share (GPU_MEMORY_SHARE).
    """
    if device != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # from an earlier model in this process
    share = int(total * float(os.environ.get(GPU_MEMORY_SHARE) or 1))
    return min(free + cached, share) if alone else share


def reset_peak_memory() -> None:
    """Reset `peak_memory_bytes` if the system allows it. One process may train or measure several models."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    reset_peak_rss()


def resident_bytes() -> int | None:
    """Return the memory that torch uses on the GPU; without a GPU in use, the memory of this process (`rss`)."""
    return torch.cuda.memory_allocated() if _uses_cuda() else _mps_bytes() or rss()


def peak_memory_bytes() -> int | None:
    """Return the peak of `resident_bytes` since the last reset; None if unknown, as on Windows and for `mps`."""
    if _uses_cuda():
        return torch.cuda.max_memory_allocated()
    return None if _mps_bytes() else peak_rss()


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0


def _mps_bytes() -> int:
    return torch.mps.current_allocated_memory() if has_mps() else 0
