"""What Linux, macOS and Windows tell about a machine in different ways: cores, memory, processor. Imports no torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def num_cores() -> int:
    """Cores that this process may use; macOS and Windows tell only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int | None:
    """Bytes of RAM of this machine; None if the system does not tell, as Windows does not."""
    with suppress(AttributeError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def processor_name() -> str:
    """Name of the CPU; on Linux of the first one."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if names := [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]:
            return names[0]
    if sys.platform == "darwin":
        with suppress(OSError):
            asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, encoding="utf-8")
            if asked.stdout.strip():
                return asked.stdout.strip()
    return platform.processor() or platform.machine() or "CPU"


def reset_peak_rss() -> None:
    """Reset the peak of `peak_rss`, which only Linux can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM = VmRSS


def rss() -> int | None:
    """Bytes of this process that are resident in RAM: on macOS the peak so far; None if unknown, as on Windows."""
    return _status_bytes("VmRSS") or peak_rss()


def peak_rss() -> int | None:
    """Peak of `rss` since the reset; None if the system does not tell, as Windows does not."""
    if peak := _status_bytes("VmHWM"):
        return peak
    with suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return None


def _status_bytes(key: str) -> int:
    """A value of Linux's /proc/self/status in bytes; 0 on other systems."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0
