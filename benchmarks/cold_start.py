"""How long the programs take to start: wall seconds, the median of --repetitions. Needs two idle cores.

    python benchmarks/cold_start.py                  all rows, each measured three times
    python benchmarks/cold_start.py --only help job  the rows whose name contains one of these words

A row of train.py is the time from the start of the process to the row of metrics.csv that the first optimizer step
writes (train.log_every=1); then the run is killed. Its corpus is in the cache. An empty cache of torch's compiler does
not include the header that torch compiles once per machine. A job is one of a sweep with one slot: the time between the
starts of two jobs, minus `wall_seconds` of result.json, which has the steps, the validation and the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from slm.composition.resolvers import register
from slm.sweep.design import check_design
from slm.sweep.execute import execute
from slm.sweep.grid import make_plan
from slm.sweep.job import PID

ROOT = Path(__file__).parents[1]
REFUSALS = {"train": "model.hidden_size=abc", "sweep": "sweep.families=[nope]", "evaluate": "checkpoint=nope"}
JOBS = ["sweep.families=[mobilellm]", "sweep.grid.sizes=[2e5]", "sweep.seeds=[1,2,3]", "sweep.budget.tokens=40960"]
ONE_SLOT = ["launcher.slots=1", "launcher.threads=1", "launcher.gpus_per_job=0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of rows")
    parser.add_argument("--overrides", nargs="*", default=[], help="settings for train.py, such as those of a corpus")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        first_step = partial(seconds_to_first_step, work, args.overrides)
        rows: dict[str, Callable[[], float]] = {
            "train.py uncompiled": partial(first_step, compiled=False),
            "train.py compiled, empty cache": lambda: first_step(cache=new_folder(work)),
            "train.py compiled, warm cache": partial(first_step, cache=work / "compiler"),
            **{f"{name}.py --help": partial(seconds_of, name, "--help", code=0) for name in REFUSALS},
            **{f"{name}.py {word}": partial(seconds_of, name, word, code=1) for name, word in REFUSALS.items()},
            "job of a sweep outside training": partial(seconds_outside_training, work, args.overrides),
        }
        for name, measure in rows.items():
            if any(part in name for part in args.only):
                if "compiled" in name and "empty" not in name:
                    measure()  # fills the caches
                seconds = [measure() for _ in range(args.repetitions)]
                print(f"{name:34} {median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)


def new_folder(work: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=work))


def seconds_of(script: str, argument: str, *, code: int) -> float:
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, str(ROOT / f"{script}.py"), argument], capture_output=True)
    seconds = time.perf_counter() - start
    if ended.returncode != code:
        sys.exit(f"{script}.py {argument} ended with exit code {ended.returncode}: {ended.stderr.decode()}")
    return seconds


def seconds_to_first_step(
    work: Path, overrides: list[str], *, compiled: bool = True, cache: Path | None = None
) -> float:
    run = new_folder(work)
    metrics, log = run / "run" / "metrics.csv", run / "log"
    settings = [*overrides, "train.log_every=1", f"trainer.compile={compiled}", f"output_dir={run}/run"]
    environment = os.environ | ({"TORCHINDUCTOR_CACHE_DIR": str(cache)} if cache else {})
    start = time.perf_counter()
    with log.open("wb") as output:
        command = [sys.executable, str(ROOT / "train.py"), *settings]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:  # the first line has the columns
            if process.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
    return seconds


def seconds_outside_training(work: Path, overrides: list[str]) -> float:
    register()
    also = [f"sweep.also={json.dumps(overrides)}"] if overrides else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = OmegaConf.to_object(compose("sweep", overrides=["sweep=quick", *JOBS, *ONE_SLOT, *also]))
    assert isinstance(settings, dict)
    cells, runs = make_plan(check_design(settings["sweep"])).cells, new_folder(work)
    outcomes = execute(cells, runs, settings["launcher"])
    if wrong := [f"{name}: {outcome.why}" for name, outcome in outcomes.items() if outcome.status != "completed"]:
        sys.exit("\n".join(wrong))
    folders = sorted((runs / cell.name for cell in cells), key=start_of_job)
    walls = [json.loads((folder / "result.json").read_text())["wall_seconds"] for folder in folders]
    return (start_of_job(folders[-1]) - start_of_job(folders[0])) / (len(cells) - 1) - mean(walls[:-1])


def start_of_job(folder: Path) -> float:
    return (folder / PID).stat().st_mtime


if __name__ == "__main__":
    main()
