"""Every figure of docs/performance.md, by one command. Needs two idle cores and the [test] extra.

    python benchmarks/all.py                       all rows, in under 40 minutes on two cores
    python benchmarks/all.py --only decode memory  rows with one of these words in their names; the others stay
    python benchmarks/all.py --list                names, minutes and commands
    python benchmarks/all.py --quick               each command at its smallest setting, which shows only that it runs

Each row is a command, run as a process with a time limit, so that one that fails or hangs costs no other. The matmul
peak of the machine is measured before and after each row, in this process; a row during which it moved by over 15% is
marked, because the machine did other work. After each row the document is written again, so Ctrl-C keeps what was
measured. The exit code is 1 if a command failed. --quick writes only into --out, if given.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from slm.runtime.files import read_json_object, write_atomically, write_json

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
TOTAL_MINUTES = 40
MAX_PEAK_CHANGE = 0.15
SIGINT_SECONDS = 20
"""How long a command may take to end its own processes, such as jobs of a sweep, which have sessions of their own."""
LEAST_SECONDS = 15
"""A row does not start with less of `TOTAL_MINUTES` left."""
ERROR_LINES = 15
PRODUCTS = "half of a step is matrix products, at the peak ([log](log.md), 2026-11-30)"
BANDWIDTH = "bound by memory bandwidth ([log](log.md), 2026-11-30)"
Record = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A number in a command's output, and its goal."""

    work: str
    pattern: str | None
    """A regular expression with one group; of several matches the worst counts. None: the seconds of the command."""
    goal: float
    unit: str = "x"
    at_least: bool = True
    bound: str = ""
    """What keeps the figure from its goal; shown if it misses the goal."""

    def value(self, record: Record) -> float | None:
        if self.pattern is None:
            return None if record["failure"] else record["seconds"]
        found = re.findall(self.pattern, record["output"], re.MULTILINE)
        return (min if self.at_least else max)((float(text.replace(",", "")) for text in found), default=None)

    def cells(self, record: Record | None) -> list[str]:
        value = self.value(record) if record else None
        goal = f"{'≥' if self.at_least else '≤'} {self.goal:g}{self.unit}"
        if value is None:
            return [self.work, "no figure" if record else "not measured", goal, "–"]
        is_reached = value >= self.goal if self.at_least else value <= self.goal
        return [self.work, f"{value:g}{self.unit}", goal, "yes" if is_reached else "no"]


def seconds(work: str, pattern: str | None, goal: float) -> Figure:
    return Figure(work, pattern, goal, " s", at_least=False)


def decode(dtype: str, what: str, peer: str, goal: float) -> Figure:
    """The first ratio to `peer` after slm's own line of that dtype, and before its line of another dtype."""
    line = rf"^{dtype} +slm (?:(?!^\w+ +slm )[\s\S])*?ratio to {re.escape(peer)} .*?{what} +([\d.,]+)x"
    return Figure(f"{what}, {dtype}, over {peer}", line, goal, bound=BANDWIDTH if what == "decode" else "")


@dataclass(frozen=True)
class Row:
    command: str
    """Arguments of python; FOLDER is a temporary folder."""
    quick: str
    """The same at the smallest setting."""
    minutes: float
    """About how long the command takes. It is ended after twice as long and a minute."""
    figures: tuple[Figure, ...]
    peers: tuple[str, ...] = ()
    """Modules without which the figures are of fewer peers."""


TRAIN, COLD_START = "benchmarks/train_throughput.py", "benchmarks/cold_start.py"
SPEEDUP = r"slm is ([\d.]+)x as fast"
TEXT = "data=local data.paths=docs data.val_paths=README.md"
ONE_TRAIN_STEP = f"{TRAIN} tiny:64:1 --repetitions 1 --peers transformers"
PEERS = ("transformers", "litgpt")
ROWS = {
    "train tiny": Row(
        f"{TRAIN} tiny:256:16",
        ONE_TRAIN_STEP,
        2,
        (Figure("training step, tiny, 16x256, over the fastest peer", SPEEDUP, 2.0, bound=PRODUCTS),),
        PEERS,
    ),
    "train mobilellm_125m": Row(
        f"{TRAIN} mobilellm_125m:512:1 --repetitions 5",
        ONE_TRAIN_STEP,
        4,
        (
            Figure("training step, mobilellm_125m, 1x512, over the fastest peer", SPEEDUP, 1.4),
            Figure("the same, MFU", r"^  slm +\S+ tok/s +\S+ GFLOP/s MFU +(\d+)%", 60, "%", bound=PRODUCTS),
        ),
        PEERS,
    ),
    "sharing": Row(
        f"{TRAIN} mobilellm_125m:512:1 --sharing --repetitions 5",
        f"{TRAIN} tiny:64:1 --sharing --repetitions 1",
        1.5,
        (
            Figure(
                "blocks used twice, forward and backward, over once",
                r"using blocks twice takes (-?[\d.]+)x",
                2.0,
                at_least=False,
            ),
        ),
    ),
    "decode": Row(
        "benchmarks/decode_throughput.py",
        "benchmarks/decode_throughput.py --layers 1 --prompt-tokens 8 --new-tokens 4 --rounds 1",
        4,
        tuple(
            decode(dtype, what, peer, goal)
            for dtype in ("bfloat16", "float32")
            for what, peer, goal in (
                ("decode", "transformers", 4.0),
                ("decode", "llama.cpp", 1.0),
                ("prefill", "transformers", 1.15),
            )
        ),
        ("transformers",),
    ),
    "cold start": Row(
        f"{COLD_START} --only compiled",  # "uncompiled" has this word too
        f"{COLD_START} --only compiled --repetitions 1 --overrides {TEXT}",
        3,
        (
            seconds("first step of train.py, uncompiled", r"^train\.py uncompiled +([\d.]+) s", 6),
            seconds("the same, compiled, empty cache", r"^train\.py compiled, empty cache +([\d.]+) s", 12),
            seconds("the same, compiled, warm cache", r"^train\.py compiled, warm cache +([\d.]+) s", 7),
        ),
    ),
    "refusals and help": Row(
        f"{COLD_START} --only help =",  # each refusal has a setting in its name
        f"{COLD_START} --only help = --repetitions 1",
        1,
        (
            seconds("a refusal, the slowest of three programs", r"^\w+\.py \S+=\S+ +([\d.]+) s", 2.5),
            seconds("--help, the slowest of three programs", r"^\w+\.py --help +([\d.]+) s", 2.5),
        ),
    ),
    "job": Row(
        f"{COLD_START} --only job",
        f"{COLD_START} --only job --repetitions 1 --overrides {TEXT}",
        1.5,
        (seconds("job of a sweep, outside training", r"^job of a sweep outside training +(-?[\d.]+) s", 2.5),),
    ),
    "text to shards": Row(
        "benchmarks/corpus_build.py --megabytes 40 --processes 2 --encode-batch 3",
        "benchmarks/corpus_build.py --megabytes 9 --processes 2 --encode-batch 1",
        1.5,
        (Figure("text to shards, over encode_batch alone", r"text to shards .* ratio ([\d.]+)", 0.9),),
    ),
    "memory": Row(
        f"{TRAIN} mobilellm_125m:2048:8 --memory",
        f"{TRAIN} tiny:64:1 --memory",
        6,
        (
            Figure(
                "memory of a step, mobilellm_125m, 8x2048, over transformers",
                r"slm needs ([\d.]+)x",
                0.5,
                at_least=False,
            ),
        ),
        ("transformers",),
    ),
    "analysis, simulated": Row(
        "benchmarks/analysis_speed.py",
        "benchmarks/analysis_speed.py analysis=quick analysis.laws=[power] analysis.calibration=0 logger=csv",
        0.5,
        (seconds("analysis of 72 simulated runs", r"figures: ([\d.]+) s$", 12),),
    ),
    "analysis, published": Row(
        "sweep.py runs=mobilellm_published output_dir=FOLDER/out",
        "sweep.py runs=mobilellm_published output_dir=FOLDER/out analysis=quick logger=csv",
        0.25,
        (seconds("analysis of four published models", None, 6),),
    ),
    "time to loss": Row(
        "benchmarks/time_to_loss.py --seeds 1 --rates 4e-3",  # the best rate of the three (docs/log.md, 2026-11-22)
        f"benchmarks/time_to_loss.py --seeds 1 --rates 1e-3 --overrides {TEXT} model.num_layers=1 train.tokens=8192 "
        "train.sample_tokens=0",
        14,
        (
            Figure(
                "share of the time until the plain recipe's final loss",
                r"reaches the plain recipe's \S+ after (inf|[\d.]+) of the time",
                0.25,
                "",
                at_least=False,
            ),
        ),
        ("transformers",),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="parts of the names of rows")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path, help="the document (default: docs/performance.md)")
    args = parser.parse_args()
    rows = {name: row for name, row in ROWS.items() if any(word in name for word in args.only)}
    if not rows:
        parser.error(f"no row has one of these words in its name; the names are {', '.join(ROWS)}")
    if args.list:
        print(*(f"{name:22} {row.minutes:4g} min  python {row.command}" for name, row in rows.items()), sep="\n")
        return
    out = args.out or (None if args.quick else DOCUMENT)
    # Beside the document, because the rows that are not measured again come from it: the two belong to one commit.
    path = out.with_suffix(".json") if out else None
    records = read_json_object(path) if path else {}
    try:
        measure(rows, records, out, quick=args.quick)
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; the rows before this one are in {out}" if out else "\nstopped")
    print("", *table(records if out else {name: records[name] for name in rows}), sep="\n")
    sys.exit(1 if any(records[name]["failure"] for name in rows if name in records) else 0)


def measure(rows: Mapping[str, Row], records: dict[str, Record], out: Path | None, *, quick: bool) -> None:
    """Run the rows, and write records and document after each."""
    end = time.monotonic() + 60 * TOTAL_MINUTES
    minutes = sum(row.minutes for row in rows.values())
    here = {"commit": commit(), **machine()}
    print(*here.values(), sep=", ")
    before = matmul_peak()
    for number, (name, row) in enumerate(rows.items(), 1):
        command = row.quick if quick else row.command
        about = "" if quick else f"about {row.minutes:g} min, all that is left {minutes:g}; "
        print(f"\n[{number}/{len(rows)}] {name} ({about}peak {before:,.0f} GFLOP/s)\n$ python {command}", flush=True)
        limit = min(60 * (2 * row.minutes + 1), end - time.monotonic())
        if limit < LEAST_SECONDS:
            print(f"  the {TOTAL_MINUTES} minutes are over: give --only with this row and those after it")
            return
        record = run(command, limit, quick=quick)
        after = matmul_peak()
        date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        missing = [peer for peer in row.peers if not find_spec(peer)]
        records[name] = {
            "command": command,
            **record,
            "missing": missing,
            "peaks": [before, after],
            "date": date,
            **here,
        }
        minutes, before = minutes - row.minutes, after
        print(*(f"  {' | '.join(figure.cells(records[name]))}" for figure in row.figures), sep="\n")
        if notes := remarks(records[name]):
            print(f"  {notes}", flush=True)
        if out:
            write_json(out.with_suffix(".json"), records)
            write_atomically(out, document(records))


def run(command: str, limit: float, *, quick: bool = False) -> Record:
    """Run python with the arguments `command`; shows its output. Returns output, seconds and failure ("" if none)."""
    environment = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if quick:
        environment["TORCHDYNAMO_DISABLE"] = "1"  # compiling would take most of the time
    lines: list[str] = []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        arguments = [sys.executable, *shlex.split(command.replace("FOLDER", folder))]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        start = time.monotonic()
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, start_new_session=True, **streams)
        reader = threading.Thread(target=show, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            code = process.wait(limit)
            failure = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            failure = f"not done after {limit:.0f} s"
        finally:
            taken = time.monotonic() - start
            stop(process)
        reader.join(timeout=5)
        errors.seek(0)
        last_errors = errors.read().splitlines()[-ERROR_LINES:]
    if failure:
        show(last_errors, lines)
    return {"output": "\n".join(lines), "seconds": round(taken, 1), "failure": failure}


def show(source: IO[str] | list[str], lines: list[str]) -> None:
    for line in source:
        lines.append(line.rstrip())
        print(f"  {lines[-1]}", flush=True)


def stop(process: subprocess.Popen[str]) -> None:
    """End a process that still runs, with all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SIGINT_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def matmul_peak() -> float:
    """GFLOP/s of the CPU, in the dtype of training."""
    import torch  # here, so that --list and --help are fast

    from slm.runtime.machine import native_bfloat16
    from slm.training.speed import measure_matmul

    return measure_matmul("cpu", torch.bfloat16 if native_bfloat16("cpu") else torch.float32) / 1e9


def machine() -> dict[str, str]:
    import torch

    from slm.runtime.machine import device_name

    return {"machine": device_name("cpu"), "torch": f"torch {torch.__version__}"}


def commit() -> str:
    """The commit, and whether tracked files differ from it, other than the results themselves."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "-uno", "--", ".", ":!docs/performance.*")
    return (git("rev-parse", "--short", "HEAD") or "no commit") + (" with changes" if changed else "")


def remarks(record: Record) -> str:
    notes = [record["failure"]] if record["failure"] else []
    missing = {*re.findall(r"No module named '(\w+)", record["output"]), *record.get("missing", ())}
    notes += [f"{name} is not installed" for name in sorted(missing)]
    if has_moved(record):
        notes.append("**peak moved**")
    return ", ".join(notes)


def has_moved(record: Record) -> bool:
    before, after = record["peaks"]
    return abs(after / before - 1) > MAX_PEAK_CHANGE


def table(records: Mapping[str, Record]) -> list[str]:
    """Rows of Markdown: a figure each."""
    lines = ["| work | figure | goal | reached | `python` ... | s | peak before, after | remarks |", "|" + "---|" * 8]
    for name, row in ROWS.items():
        record = records.get(name)
        rest = [f"`{row.command}`", "", "", ""]
        if record:
            peaks = " ".join(f"{peak:,.0f}" for peak in record["peaks"])
            rest = [f"`{record['command']}`", f"{record['seconds']:.0f}", peaks, remarks(record)]
        for figure in row.figures:
            cells = [*figure.cells(record), *rest]
            if cells[3] == "no" and figure.bound:
                cells[-1] = ", ".join(filter(None, [cells[-1], figure.bound]))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def document(records: Mapping[str, Record]) -> str:
    last = max(records.values(), key=lambda record: record["date"])
    lines = [
        "# Performance",
        "",
        f"Written by `python benchmarks/all.py`, last on {last['date']}, commit {last['commit']}, {last['torch']},",
        f"{last['machine']}. Each output below has its own date, commit and machine. Peaks are GFLOP/s of",
        f"matmuls; measure a row again if they moved by over {MAX_PEAK_CHANGE:.0%} while it ran.",
        "",
        *table(records),
    ]
    for name in ROWS:
        if record := records.get(name):
            facts = ", ".join(record[key] for key in ("date", "commit", "machine", "torch"))
            body = ["```text", f"$ python {record['command']}", record["output"], "```"]
            lines += ["", f"## {name[0].upper()}{name[1:]}", "", facts, "", *body]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
