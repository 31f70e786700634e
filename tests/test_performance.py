"""benchmarks/all.py: figures are found in sample output, and a row measured again leaves the others as they were."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.running import ROOT

TRAIN = """\
EPYC (2 threads), bf16-mixed, torch 2.13.0, peak 1,130 GFLOP/s
mobilellm_125m 1x512
  slm                      1,033 tok/s    850 GFLOP/s MFU  61%  480 to 520 ms
  transformers eager         633 tok/s    521 GFLOP/s MFU  46%  790 to 810 ms
  slm is 1.63x as fast as transformers eager
"""
DECODE = """\
float32   slm           prefill    1,033 tok/s   decode    60.0 tok/s
float32   transformers  prefill      900 tok/s   decode    15.0 tok/s
  ratio to transformers   prefill 1.15x   decode 4.00x
  ratio to llama.cpp   prefill 1.20x   decode 0.98x
bfloat16  slm           prefill    2,033 tok/s   decode   120.0 tok/s
bfloat16  transformers  prefill    1,900 tok/s   decode    24.0 tok/s
  ratio to transformers   prefill 1.07x   decode 5.00x
"""
STARTS = """\
train.py --help                      1.74 s (1.70 to 1.80)
sweep.py --help                      2.60 s (2.50 to 2.70)
train.py model.hidden_size=abc       1.42 s (1.40 to 1.50)
evaluate.py checkpoint=nope          0.68 s (0.60 to 0.70)
"""
TIME_TO_LOSS = """\
seed 1: train.py 3.469 in 374 s; plain 4.752 at 0.004
seed 1: train.py reaches the plain recipe's 4.752 after 0.21 of the time
"""
MEMORY = "  slm needs 0.22x the memory of transformers\n"
SHARDS = "40 MB, 2 processes: text to shards 5.1 MB/s, encode_batch 6.0 MB/s, ratio 0.86 (0.84 to 0.87)\n"


@pytest.fixture
def performance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("all")


def record(output: str, peaks: tuple[float, float] = (1000.0, 1100.0), failure: str = "") -> dict[str, Any]:
    facts = {"commit": "abc", "date": "2026-11-29 01:00 UTC", "machine": "EPYC", "torch": "torch 2.13"}
    return {"command": "COMMAND", "output": output, "seconds": 5.1, "failure": failure, "peaks": peaks, **facts}


@pytest.mark.parametrize(
    ("row", "output", "values"),
    [
        ("train mobilellm_125m", TRAIN, [1.63, 61]),
        ("decode", DECODE, [5.0, None, 1.07, 4.0, 0.98, 1.15]),
        ("refusals and help", STARTS, [1.42, 2.60]),  # the slowest
        ("time to loss", TIME_TO_LOSS, [0.21]),
        ("time to loss", TIME_TO_LOSS.replace("0.21", "inf"), [float("inf")]),
        ("memory", MEMORY, [0.22]),
        ("sharing", "  using blocks twice takes 1.97x the time of the blocks\n", [1.97]),
        ("text to shards", SHARDS, [0.86]),
        ("analysis, simulated", "\n72 rows, 60 fits, 9 figures: 10.4 s\n", [10.4]),
        ("analysis, published", "", [5.1]),
        ("job", "", [None]),
    ],
)
def test_figures_are_found_in_the_output(
    performance: ModuleType, row: str, output: str, values: list[float | None]
) -> None:
    assert [figure.value(record(output)) for figure in performance.ROWS[row].figures] == values


def test_the_table_says_what_was_reached_and_what_is_doubtful(performance: ModuleType) -> None:
    records = {
        "memory": record(MEMORY),
        "text to shards": record(SHARDS, peaks=(1000.0, 849.0)),
        "job": record("No module named 'torch'", failure="exit code 1"),
    }
    lines = performance.table(records)
    assert [line.split(" | ")[1:4] for line in lines if "COMMAND" in line] == [
        ["no figure", "≤ 2.5 s", "–"],
        ["0.86x", "≥ 0.9x", "no"],
        ["0.22x", "≤ 0.5x", "yes"],
    ]
    assert [line.split(" | ")[-1] for line in lines if "COMMAND" in line] == [
        "exit code 1, torch is not installed |",
        "**peak moved** |",
        " |",
    ]
    assert sum("not measured" in line for line in lines) == len(lines) - 2 - 3


def test_what_keeps_a_figure_from_its_goal_is_shown_only_if_it_misses_the_goal(performance: ModuleType) -> None:
    (figure,) = performance.ROWS["train tiny"].figures
    for output, end in (
        (TRAIN.replace("1.63x", "1.99x"), f" {figure.bound} |"),
        (TRAIN.replace("1.63x", "2.00x"), " |  |"),
    ):
        assert performance.table({"train tiny": record(output)})[2].endswith(end)


def test_a_row_keeps_the_others_and_an_interrupt_keeps_both(
    performance: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(command: str, limit: float, *, quick: bool) -> dict[str, Any]:
        if "corpus_build" in command:
            raise KeyboardInterrupt
        return {"output": MEMORY, "seconds": 3.0, "failure": ""}

    monkeypatch.setattr(performance, "run", run)
    monkeypatch.setattr(performance, "matmul_peak", lambda: 1000.0)
    old = {"time to loss": record(TIME_TO_LOSS), "text to shards": record(SHARDS)}
    out = tmp_path / "performance.md"
    rows = {name: performance.ROWS[name] for name in ("memory", "text to shards")}
    with pytest.raises(KeyboardInterrupt):
        performance.measure(rows, dict(old), out, quick=False)
    kept = performance.read_json_object(out.with_suffix(".json"))
    assert kept["memory"]["output"] == MEMORY
    assert {name: kept[name]["output"] for name in old} == {name: old[name]["output"] for name in old}
    assert all(text in out.read_text() for text in (MEMORY, SHARDS, TIME_TO_LOSS))


def test_commands_that_fail_or_hang_are_ended_and_named(
    performance: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance, "SIGINT_SECONDS", 0.2)  # pytest may run where SIGINT is ignored
    failed = performance.run("-c 'print(1); import not_there'", 60.0)
    assert failed["failure"] == "exit code 1"
    assert failed["output"].startswith("1\n")
    assert failed["output"].endswith("No module named 'not_there'")
    hung = performance.run("-c 'import time; print(1); time.sleep(60)'", 1.0)
    assert (hung["failure"], hung["output"].splitlines()[0]) == ("not done after 1 s", "1")


def test_all_rows_together_take_under_40_minutes(performance: ModuleType) -> None:
    assert sum(row.minutes for row in performance.ROWS.values()) < performance.TOTAL_MINUTES == 40
