"""The GPUs of this machine, and how many jobs share each.

Notable: a small model computes for less time than its host needs to start the kernels, so one job leaves a large GPU
idle most of the time. The kernels of several processes take turns on it. How much that adds depends on model, GPU and
host, so it is measured (`slm.training.together`): 1, 2, 4, ... processes train the largest model of the sweep at the
same time, until memory is used up or more of them add little. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import os
import shutil
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

FILE = "jobs_per_gpu.json"
"""In the folder of the runs: the choice and its measurements. A sweep that is started again must use the same number,
since a job's share of the memory may decide how many sequences it passes at once, and so its last bits."""
MIN_GAIN = 0.1
"""Twice as many jobs must raise their total speed by this fraction."""
USABLE = 0.9
"""Fraction of the free memory that jobs may fill; the rest is for fragmentation and for sizes of cells that differ."""
PROCESS_BYTES = 6e8
"""GPU memory that a process holds outside torch's allocator (driver, kernels, cuBLAS); assumed, not measured here."""
PROBE_SECONDS = 300
"""Limit of one measurement."""
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True)
class SharedGpuMeasurement:
    """What `jobs` processes that train one model on one GPU at the same time reach."""

    jobs: int
    tokens_per_second: float
    """Of all together."""
    memory_bytes: int
    """GPU memory that torch holds in one of them."""


Measure = Callable[[int], SharedGpuMeasurement | None]
"""Measures that many jobs on one GPU; None if they do not run, for example for lack of memory."""


def visible_gpus() -> list[str]:
    """Names of the GPUs that a job may use, without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", timeout=60).stdout
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def gpu_memory(name: str) -> tuple[int, int] | None:
    """Total and free bytes of a GPU; None if nvidia-smi does not know it."""
    query = ["nvidia-smi", "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits", "-i", name]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        answer = subprocess.run(query, capture_output=True, encoding="utf-8", timeout=60, check=True).stdout
        total, free = (int(value) * 2**20 for value in answer.split(","))
        return total, free
    return None


def memory_share(jobs: int, memory: tuple[int, int] | None) -> float:
    """The fraction of a GPU's memory that torch may allocate in each of `jobs` processes. `memory` is its `gpu_memory`.

    Raises `ValueError` if less is left for a job than its process takes.
    """
    if memory is None:
        raise ValueError(f"launcher.jobs_per_gpu={jobs} needs nvidia-smi, which tells the memory: use 1")
    total, _ = memory
    if jobs > _most_jobs(total):
        raise ValueError(
            f"launcher.jobs_per_gpu={jobs}: the {total / 1e9:.0f} GB of a GPU allow {_most_jobs(total)} at most"
        )
    return 1 / jobs - PROCESS_BYTES / total


def _most_jobs(total_bytes: int) -> int:
    return int(total_bytes / 2 / PROCESS_BYTES)


def choose_jobs(measure: Measure, *, most: int, free_bytes: int) -> tuple[int, list[SharedGpuMeasurement]]:
    """How many jobs share a GPU, at most `most` and as `free_bytes` allow, and the measurements."""
    found: list[SharedGpuMeasurement] = []
    jobs = 1
    while (together := measure(jobs)) is not None:
        found.append(together)
        if jobs == 1:
            most = min(most, int(USABLE * free_bytes / (together.memory_bytes + PROCESS_BYTES)))
        else:
            before = found[-2]
            needed = 1 + MIN_GAIN * (jobs / before.jobs - 1)
            if together.tokens_per_second < needed * before.tokens_per_second:
                return before.jobs, found
        if jobs >= most:
            break
        jobs = min(2 * jobs, most)
    return max((each.jobs for each in found), default=1), found


def with_jobs_per_gpu(
    launcher: Mapping[str, Any], runs: Path, *, name: str, jobs: int, measure: Measure
) -> dict[str, Any]:
    """The launcher group with a number for `jobs_per_gpu: auto`, measured with the cell `name`, for `jobs` runs.

    The choice is kept in the folder `runs` and used again for the same cell. Groups of other engines, and those for a
    machine with no GPU or with as many GPUs as jobs, are returned as they are.
    """
    if launcher["name"] != "local" or launcher["jobs_per_gpu"] != "auto" or launcher["gpus_per_job"] != 1:
        return dict(launcher)
    gpus = visible_gpus()
    if not gpus or jobs <= len(gpus) or (memory := gpu_memory(gpus[0])) is None:
        return dict(launcher)
    kept = read_json_object(runs / FILE)
    if kept.get("cell") != name:
        say(f"measuring how many jobs a GPU trains at a time, with {name}")
        total, free = memory
        slots = launcher["slots"] if launcher["slots"] != "auto" else min(jobs, num_cores())
        most = max(1, min(math.ceil(slots / len(gpus)), _most_jobs(total)))
        chosen, found = choose_jobs(measure, most=most, free_bytes=free)
        kept = {"cell": name, "jobs_per_gpu": chosen, "measured": [asdict(each) for each in found]}
        write_json(runs / FILE, kept, indent=2)
        for each in found:
            rate, size = each.tokens_per_second, each.memory_bytes / 1e9
            say(f"  {each.jobs} at a time: {rate:,.0f} tokens/s in all, {size:.2g} GB each")
        say(f"  launcher.jobs_per_gpu={chosen}" + ("" if found else ", since the measurement failed"))
    return {**launcher, "jobs_per_gpu": kept["jobs_per_gpu"]}


def measure_shared_gpu(
    settings: Mapping[str, Any], environment: Mapping[str, str], jobs: int
) -> SharedGpuMeasurement | None:
    """`jobs` processes that train by the config `settings` in that `environment`, on the GPUs visible in it."""
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "slm.training.together", str(jobs)],
            input=json.dumps(settings),
            env={**environment, "PYTHONPATH": path},
            capture_output=True,
            encoding="utf-8",
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        say(f"  {jobs} at a time: not measured within {PROBE_SECONDS} s")
        return None
    if done.returncode != 0:
        say(f"  {jobs} at a time: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
        return None
    return SharedGpuMeasurement(jobs=jobs, **json.loads(done.stdout.splitlines()[-1]))
