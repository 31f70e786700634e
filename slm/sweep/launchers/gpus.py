"""Find the GPUs of this machine, and choose how many jobs share each GPU.

The kernels of a small model take less time than the host needs to start them, so a single job leaves a large GPU idle
most of the time. The kernels of several processes take turns on a GPU. How much speed that adds depends on model, GPU
and host, so it is measured (`slm.training.together`): 1, 2, 4, ... processes train the largest model of the sweep at
the same time, until memory is used up or more processes add little speed. Nothing here imports torch.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.runtime.files import read_json_object, write_json
from slm.runtime.progress import say
from slm.runtime.system import num_cores
from slm.sweep.job import stop

CHOICE_FILE = "jobs_per_gpu.json"
"""File in the folder of the runs that keeps the choice and its measurements. A sweep that is started again must use the
same number: a job's share of the memory may decide how many sequences it computes at once, which changes rounding."""
MIN_GAIN = 0.1
"""Doubling the number of jobs must raise the total speed by this fraction; a smaller increase, in proportion."""
USABLE_MEMORY = 0.9
"""Fraction of the free memory that jobs may fill; the rest is for fragmentation and for the other runs of the sweep."""
PROCESS_BYTES = 6e8
"""GPU memory that a process holds outside torch's allocator (driver, kernels, cuBLAS); assumed, not measured here."""
PROBE_SECONDS = 300
"""Longest time that one measurement may take."""
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True)
class SharedGpuMeasurement:
    """Speed and memory of `jobs` processes that train the same model on one GPU at the same time."""

    jobs: int
    tokens_per_second: float
    """The sum over all processes."""
    memory_bytes: int
    """GPU memory that torch holds in one process."""


Measure = Callable[[int], SharedGpuMeasurement | None]
"""Measures the given number of jobs on one GPU; None if they do not run, for example for lack of memory."""


def visible_gpus() -> list[str]:
    """Names of the GPUs that a job may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    with suppress(OSError, subprocess.SubprocessError):  # there is no nvidia-smi, or it does not answer
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", timeout=60).stdout
        num_gpus = sum(line.startswith("GPU ") for line in listed.splitlines())
        return [str(number) for number in range(num_gpus)]
    return []


def gpu_memory(name: str) -> tuple[int, int] | None:
    """Total and free bytes of a GPU; None if nvidia-smi does not know it."""
    query = ["nvidia-smi", "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits", "-i", name]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        answer = subprocess.run(query, capture_output=True, encoding="utf-8", timeout=60, check=True).stdout
        total, free = (int(value) * 2**20 for value in answer.split(","))
        return total, free
    return None


def memory_share(num_jobs: int, memory: tuple[int, int] | None) -> float:
    """Fraction of `memory` (total, free) for torch in each of `num_jobs` jobs. Raises `ValueError` if it is too low."""
    if memory is None:
        raise ValueError(f"launcher.jobs_per_gpu={num_jobs} needs nvidia-smi, to read the memory of a GPU: set it to 1")
    total, _ = memory
    max_jobs = _max_jobs(total)
    if num_jobs > max_jobs:
        gpu = f"a GPU with {total / 1e9:.0f} GB"
        raise ValueError(f"launcher.jobs_per_gpu={num_jobs}: {gpu} allows at most {max_jobs} jobs")
    return 1 / num_jobs - PROCESS_BYTES / total


def _max_jobs(total_bytes: int) -> int:
    return int(total_bytes / (2 * PROCESS_BYTES))  # torch must get at least as much as a process holds outside torch


def choose_jobs(measure: Measure, *, max_jobs: int, free_bytes: int) -> tuple[int, list[SharedGpuMeasurement]]:
    """Choose how many jobs, up to `max_jobs`, share `free_bytes` of a GPU; returns the number and the measurements."""
    measurements: list[SharedGpuMeasurement] = []
    num_jobs = 1
    while (current := measure(num_jobs)) is not None:
        measurements.append(current)
        if num_jobs == 1:
            max_jobs = min(max_jobs, int(USABLE_MEMORY * free_bytes / (current.memory_bytes + PROCESS_BYTES)))
        else:
            previous = measurements[-2]
            min_speedup = 1 + MIN_GAIN * (num_jobs / previous.jobs - 1)
            if current.tokens_per_second < min_speedup * previous.tokens_per_second:
                return previous.jobs, measurements
        if num_jobs >= max_jobs:
            break
        num_jobs = min(2 * num_jobs, max_jobs)
    return max((measured.jobs for measured in measurements), default=1), measurements


def with_jobs_per_gpu(
    launcher: Mapping[str, Any], runs: Path, *, name: str, num_jobs: int, measure: Measure
) -> dict[str, Any]:
    """Replace `jobs_per_gpu: auto` of the settings `launcher` by a number that is measured with the run `name`.

    `num_jobs` is the number of runs in the sweep. The choice is stored in the folder `runs` and used again for the same
    run. The settings stay unchanged if the launcher is not local, if there is no GPU, or if each job can have its own.
    """
    if launcher["name"] != "local" or launcher["jobs_per_gpu"] != "auto" or launcher["gpus_per_job"] != 1:
        return dict(launcher)
    gpus = visible_gpus()
    memory = gpu_memory(gpus[0]) if 0 < len(gpus) < num_jobs else None
    if memory is None:
        return dict(launcher)
    stored = read_json_object(runs / CHOICE_FILE)
    if stored.get("cell") != name:
        say(f"measuring how many jobs should share a GPU, with {name}")
        total, free = memory
        num_slots = min(num_jobs, num_cores()) if launcher["slots"] == "auto" else launcher["slots"]
        max_jobs = max(1, min(math.ceil(num_slots / len(gpus)), _max_jobs(total)))
        chosen, measurements = choose_jobs(measure, max_jobs=max_jobs, free_bytes=free)
        stored = {"cell": name, "jobs_per_gpu": chosen, "measured": [asdict(measured) for measured in measurements]}
        write_json(runs / CHOICE_FILE, stored, indent=2)
        for measured in measurements:
            speed, memory_gb = measured.tokens_per_second, measured.memory_bytes / 1e9
            say(f"  {measured.jobs} at a time: {speed:,.0f} tokens/s in all, {memory_gb:.2g} GB each")
        say(f"  launcher.jobs_per_gpu={chosen}" + ("" if measurements else ", since the measurement failed"))
    return {**launcher, "jobs_per_gpu": stored["jobs_per_gpu"]}


def measure_shared_gpu(
    settings: Mapping[str, Any], environment: Mapping[str, str], num_jobs: int
) -> SharedGpuMeasurement | None:
    """Measure `num_jobs` processes that train with the config `settings`, on the GPUs visible in `environment`."""
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "slm.training.together", str(num_jobs)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**environment, "PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, encoding="utf-8", start_new_session=True, **pipes) as process:
        try:
            output, errors = process.communicate(json.dumps(settings), timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"  {num_jobs} at a time: not measured within {PROBE_SECONDS} s")
            return None
        finally:
            if process.returncode != 0:
                stop(process.pid, force=True)  # and the processes that it started, which would keep memory of the GPU
    if process.returncode != 0:
        error = errors.strip().splitlines() or ["no answer"]
        say(f"  {num_jobs} at a time: {error[-1]}")
        return None
    return SharedGpuMeasurement(jobs=num_jobs, **json.loads(output.splitlines()[-1]))
