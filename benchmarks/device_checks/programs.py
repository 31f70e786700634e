"""Checks of whole programs: host syncs of the training loop, a signal and what follows, a sweep on one card, tests."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from device_checks.common import OVERRIDES, PRESETS, ROOT, device_of, plan_of
from slm.training.module import LanguageModel
from slm.training.run import train

Found = dict[str, Any]
LIMIT = "DEVICE_CHECK_SECONDS"
"""Environment variable with the time limit of the check."""
WATCHED = (5, 10)
"""Steps, from 0, between whose beginnings host syncs are counted."""
BATCH = {"gpu": 32768, "cpu": 1024, "smallest": 256}


def host_syncs(size: str) -> Found:
    """Times that the host waits for the GPU in a step of the real loop, and where; in the steady state none."""
    found: Found = {"counted": size == "gpu", "goal": 0}
    for optimizer in ("adamw", "muon"):
        counter = _SyncCounter(passes_a_step=2)
        with tempfile.TemporaryDirectory() as place, counter:
            train(plan_of(size, "125m", *_text(Path(place)), *_quiet(Path(place), size), f"optim={optimizer}"))
        steps = WATCHED[1] - WATCHED[0]
        found[optimizer] = {"a_step": len(counter.places) / steps, "at": sorted(set(counter.places))}
    counts = [found[name]["a_step"] for name in ("adamw", "muon")]
    return found | {"met": not any(counts)} if size == "gpu" else found


class _SyncCounter:
    """While entered, counts torch's warnings of host syncs between the beginnings of two training steps."""

    def __init__(self, *, passes_a_step: int) -> None:
        self.first, self.last = (step * passes_a_step for step in WATCHED)
        self.places: list[str] = []
        self.passes = 0
        self.recording = warnings.catch_warnings(record=True)

    def __enter__(self) -> None:
        training_step, counter = LanguageModel.training_step, self

        def counted(module: LanguageModel, tokens: torch.Tensor, index: int) -> torch.Tensor:
            counter._begin_pass()
            return training_step(module, tokens, index)

        self.patch = patch.object(LanguageModel, "training_step", counted)
        self.patch.__enter__()

    def __exit__(self, *error: object) -> None:
        self.patch.__exit__(None, None, None)

    def _begin_pass(self) -> None:
        if self.passes == self.first:
            self.caught = self.recording.__enter__()
            warnings.simplefilter("always")
            _set_sync_debug_mode("warn")
        if self.passes == self.last:
            _set_sync_debug_mode("default")
            self.recording.__exit__(None, None, None)
            # Torch also warns, when the mode is set for the first time, that the mode is a prototype.
            syncs = [each for each in self.caught or [] if "called a synchronizing" in str(each.message)]
            self.places = ["/".join(Path(each.filename).parts[-2:]) + f":{each.lineno}" for each in syncs]
        self.passes += 1


def _set_sync_debug_mode(mode: str) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode(mode)


def _text(folder: Path) -> list[str]:
    """Overrides with a text of random words, about 3 MB."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(3000)]
    path = folder / "text.txt"
    path.write_text("\n\n".join(" ".join(rng.choices(words, k=400)) for _ in range(1200)))
    return ["data=local", f"data.paths={path}", "tokenizer=bytes", f"cache_dir={folder / 'cache'}"]


def _quiet(folder: Path, size: str, steps: int = WATCHED[1] + 2) -> list[str]:
    """Overrides of a short run of two passes a step, which logs, validates and saves nothing in between."""
    return [
        *("logger=csv", f"output_dir={folder / 'run'}", "train.log_every=1000", "train.eval_every=1000"),
        *(f"train.batch_tokens={BATCH[size]}", f"trainer.micro_batch_tokens={BATCH[size] // 2}"),
        *(f"train.tokens={steps * BATCH[size]}", "train.val_tokens=2048", "train.sample_tokens=0"),
        *("checkpoint.every_steps=null", "checkpoint.every_minutes=null"),
    ]


def resume(size: str) -> Found:
    """train.py ends at SIGTERM with 143 and a checkpoint; the same command completes the run with every row once."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = PRESETS["125m"] if size == "gpu" else "tiny"
        steps = 60
        options = [item for item in _quiet(folder, size, steps) if not item.startswith("train.log_every")]
        command = [sys.executable, "train.py", f"model={model}", *OVERRIDES[size], *_text(folder), *options]
        command.append("train.log_every=2")
        metrics = folder / "run" / "metrics.csv"
        log = (folder / "log").open("w+")
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None and len(_rows(metrics)) < 3:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        start = time.perf_counter()
        first = process.wait()
        seconds = time.perf_counter() - start
        saved = len(_rows(metrics))
        second = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
        logged = [int(row["step"]) for row in _rows(metrics) if row["train/loss"]]
        try:
            result = json.loads((folder / "run" / "result.json").read_text())
        except OSError:
            log.seek(0)
            return {"error": f"no result.json, exit codes {first} and {second}: {log.read()[-400:]}"}
        keys = ("status", "steps", "tokens_per_second", "mfu", "peak_memory_bytes", "precision")
        found = {key: result.get(key) for key in keys}
        is_complete = logged == list(range(2, steps + 1, 2))
        met = first == 143 and second == 0 and result["status"] == "completed" and is_complete
        codes = {
            "exit_code": first,
            "seconds_to_end": round(seconds, 1),
            "rows_then": saved,
            "second_exit_code": second,
        }
        return codes | found | {"every_row_once": is_complete, "met": met}


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def sweep(size: str) -> Found:
    """sweep.py with eight small cells on one card: jobs at a time, what was measured, and seconds."""
    shapes = {"gpu": "128x4,192x6,256x8,320x8", "cpu": "32x2,48x2,64x2,80x2", "smallest": "32x1,48x1,64x1,80x1"}[size]
    tokens = {"gpu": 4_000_000, "cpu": 20_480, "smallest": 2560}[size]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = [*_text(folder), "model.vocab_size=260", "model.head_dim=16", "train.sample_tokens=0"]
        given += [
            "train.eval_every=1000",
            "train.val_tokens=2048",
            "checkpoint.every_steps=null",
            "trainer.compile=false",
        ]
        given += ["train.sequence_length=256", "train.batch_tokens=16384"] if size == "gpu" else []
        given += ["train.sequence_length=32", "train.batch_tokens=256", "trainer=cpu"] if size != "gpu" else []
        command = [sys.executable, "sweep.py", "sweep.families=[llama_wide,mobilellm]", "sweep.grid.sizes=null"]
        command += [f"sweep.grid.shapes=[{shapes}]", f"sweep.budget.tokens={tokens}", "logger=csv", "analysis=quick"]
        command += ["analysis.laws=[power]", "analysis.calibration=0", f"output_dir={folder / 'sweep'}"]
        command.append("sweep.overrides=[" + ",".join(f"'{item}'" for item in given) + "]")
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        results = [json.loads(path.read_text()) for path in sorted(folder.glob("sweep/runs/*/result.json"))]
        shared = folder / "sweep" / "runs" / "jobs_per_gpu.json"
        found: Found = {"exit_code": done.returncode, "seconds_of_sweep": round(seconds, 1), "cells": len(results)}
        if done.returncode:  # of the analysis too, for example for lack of a package
            found["error"] = (done.stderr + done.stdout)[-400:]
        training = sum(result["train_tokens"] / result["tokens_per_second"] for result in results)
        found |= {"sharing": json.loads(shared.read_text()) if shared.exists() else None}
        return found | {"seconds_of_training_in_all": round(training, 1), "met": len(results) == 8}


def gpu_tests(size: str) -> Found:
    """The tests that need a GPU (`pytest -m gpu`), as many as there is time for."""
    if size != "gpu":
        return {"skipped": "needs a GPU"}
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    # Other files take time to import, and want packages that these do not need; pytest would end without them.
    files = [str(path) for path in sorted(ROOT.glob("tests/*/test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    # After this time no further test begins. The last one still has 40% of the limit.
    seconds = 0.6 * float(os.environ.get(LIMIT, 3600))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n0", "-p", "no:cacheprovider", *files]
    command.append(f"--session-timeout={seconds:.0f}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "exit_code": done.returncode,
        "tests": lines[-1] if lines else "",
        "failed": failed,
        "device": device_of(size),
    }
