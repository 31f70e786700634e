"""What only a GPU can show, by one command: `python benchmarks/device_check.py`. docs/gpu.md explains every line.

    python benchmarks/device_check.py                              # on a GPU: at most 8 minutes
    python benchmarks/device_check.py --only attention step_125m   # some of the checks
    python benchmarks/device_check.py --size cpu                   # all of it at small sizes on the CPU
    python benchmarks/device_check.py --smallest                   # ... and smaller, as CI runs it

Each check is a process of its own with a time limit, so that one that fails, hangs or runs out of memory costs no
other. Each prints one JSON line, the most telling first, and writes it into --out ($OUT/device_check.jsonl if OUT is
set). Figures of `--size cpu` and `--smallest` are figures of a CPU and say nothing about a GPU; they show that the
checks themselves run. The exit code is 1 if a check had an error. Needs the [test] extra.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# check -> (module of device_checks, limit in seconds on a GPU), in the order of their weight
CHECKS = {
    "machine": ("training", 40),
    "attention": ("kernels", 60),
    "step_125m": ("training", 70),
    "step_350m": ("training", 80),
    "loss_by_chunk": ("kernels", 40),
    "host_syncs": ("programs", 70),
    "masking": ("training", 70),
    "transformers_125m": ("training", 80),
    "micro_batch_1b": ("training", 100),
    "decoding": ("kernels", 70),
    "resume": ("programs", 90),
    "sweep": ("programs", 150),
    "mixers": ("kernels", 80),
    "repeatable": ("training", 60),
    "gpu_tests": ("programs", 120),
}
SECONDS = {"gpu": 480, "cpu": 3600, "smallest": 1800}
"""Limit of the whole by size."""
CPU_PATIENCE = 5
"""Limits of single checks are this many times as long on a CPU."""
LEAST_SECONDS = 15
"""A check does not start with less time left."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SECONDS, default="gpu")
    parser.add_argument("--smallest", action="store_const", const="smallest", dest="size")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--seconds", type=float, help="limit of the whole (default: 480 on a GPU)")
    out = Path(os.environ["OUT"]) / "device_check.jsonl" if "OUT" in os.environ else None
    parser.add_argument("--out", type=Path, default=out, help="a file for the lines")
    parser.add_argument("--here", action="store_true", help="run the one check of --only in this process")
    args = parser.parse_args()
    if args.here:
        (name,) = args.only
        module = importlib.import_module(f"device_checks.{CHECKS[name][0]}")
        print(json.dumps(getattr(module, name)(args.size)), flush=True)
        return
    if args.size == "gpu" and not has_gpu():
        parser.error("torch sees no GPU here; --size cpu runs all checks at small sizes on the CPU")
    start = time.monotonic()
    failed, skipped = [], []
    end = start + (args.seconds or SECONDS[args.size])
    if args.out:
        args.out.write_text("")
    for name in args.only:
        line = run_check(name, args.size, end - time.monotonic())
        failed += [name] * ("error" in line)
        skipped += [name] * ("skipped" in line)
        report(line, args.out)
    ends = {"failed": failed, "skipped": skipped, "seconds": round(time.monotonic() - start, 1)}
    report({"check": "all", "size": args.size, **ends}, args.out)
    sys.exit(1 if failed else 0)


def has_gpu() -> bool:
    # In a process of its own, since a CUDA context in this one would hold memory of the GPU.
    asked = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return subprocess.run(asked).returncode == 0


def report(line: dict[str, Any], path: Path | None) -> None:
    text = json.dumps(line)
    print(text, flush=True)
    if path:
        with path.open("a") as file:
            file.write(text + "\n")


def run_check(name: str, size: str, seconds_left: float) -> dict[str, Any]:
    """The line of one check, run in a process of its own that ends with all its children."""
    if seconds_left < LEAST_SECONDS:
        return {"check": name, "size": size, "skipped": "no time left"}
    limit = min(CHECKS[name][1] * (1 if size == "gpu" else CPU_PATIENCE), seconds_left)
    start = time.monotonic()
    environment = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", **os.environ, "DEVICE_CHECK_SECONDS": f"{limit:.0f}"}
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, __file__, "--here", "--size", size, "--only", name]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
    try:
        output, errors = process.communicate(timeout=limit)
        found = json.loads(output.splitlines()[-1]) if process.returncode == 0 else {"error": last_lines(errors)}
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        found = {"error": f"not done after {limit:.0f} s; {last_lines(errors)}"}
    return {"check": name, "size": size, **found, "seconds": round(time.monotonic() - start, 1)}


def last_lines(text: str) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-4:])[-600:]


if __name__ == "__main__":
    main()
