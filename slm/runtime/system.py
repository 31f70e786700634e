"""Ask Linux, macOS or Windows for the cores, memory and processor, and git for the commit. Imports no torch."""

import ctypes
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_MAX = -1, -4  # options of mallopt in glibc's malloc.h


def num_cores() -> int:
    """Return the number of cores that this process may use; on macOS and Windows, the number of all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_memory() -> int | None:
    """Return the bytes of RAM of this machine; None if unknown, as on Windows."""
    with suppress(AttributeError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def processor_name() -> str:
    """Return the name of the CPU; on Linux, of the first CPU."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if names := [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]:
            return names[0]
    if sys.platform == "darwin":
        with suppress(OSError):
            brand = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, encoding="utf-8")
            if name := brand.stdout.strip():
                return name
    return platform.processor() or platform.machine() or "CPU"


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next allocations. Does nothing without glibc.

    glibc returns a large block to the system when it is freed, so the system must clear each page of the next block: a
    sixth of the processor time of a training step at 125M parameters (docs/log.md, 2026-11-29).
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MALLOC_MMAP_MAX, 0)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, -1)  # which means never


def reset_peak_rss() -> None:
    """Reset the peak that `peak_rss` returns. Does nothing except on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM = VmRSS


def rss() -> int | None:
    """Return how many bytes of RAM this process uses; on macOS the peak so far, on Windows None."""
    return _status_bytes("VmRSS") or peak_rss()


def peak_rss() -> int | None:
    """Return the peak of `rss` since the last `reset_peak_rss`; None if unknown, as on Windows."""
    if peak := _status_bytes("VmHWM"):
        return peak
    with suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return None


def _status_bytes(key: str) -> int:
    """Return a value of Linux's /proc/self/status in bytes; 0 on other systems."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


def git_commit() -> str | None:
    """Return the commit of the source tree, marked `-dirty` if it has changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
