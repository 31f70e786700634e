"""What became of a cell is read from its run directory alone."""

import json
from pathlib import Path

import pytest

from slm.sweep.ledger import Outcome, RunProgress, make_ready_to_retry, read_outcome, read_progress, record_failure
from slm.tracking.trackers import CsvTracker


def write_result(folder: Path, **fields: object) -> None:
    (folder / "result.json").write_text(json.dumps({"steps": 7, "planned_steps": 9, **fields}))


@pytest.mark.parametrize("content", ["", "{", '{"status": "comp', "[]", "null", "\x00\x01", '{"status": "odd"}'])
def test_a_result_that_is_cut_short_or_garbage_counts_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    assert read_outcome(tmp_path).status == "not_started"
    (tmp_path / "config.yaml").touch()
    assert read_outcome(tmp_path).status == "interrupted"


def test_a_result_counts_before_a_failure_and_a_failure_before_an_interruption(tmp_path: Path) -> None:
    assert read_outcome(tmp_path / "nowhere") == Outcome("not_started")
    write_result(tmp_path, status="interrupted")
    assert read_outcome(tmp_path) == Outcome("interrupted", "interrupted at step 7 of 9")
    record_failure(tmp_path, why="lost", exit_code=None, num_starts=3)
    assert read_outcome(tmp_path) == Outcome("failed", "lost")
    write_result(tmp_path, status="diverged", train_loss_final=None)
    assert read_outcome(tmp_path).why == "diverged at step 7 of 9, with no finite loss"
    write_result(tmp_path, status="completed")
    assert read_outcome(tmp_path) == Outcome("completed")


@pytest.mark.parametrize(
    ("entries", "done"),
    [
        ([{"status": "completed", "tasks": {"piqa": {"value": 0.5}}}], True),
        ([{"status": "begun", "tasks": {}}], False),
        ([{"status": "completed", "tasks": {"piqa": {"error": "no such file"}}}], False),
        ([], False),
        ({}, False),
    ],
)
def test_an_evaluation_is_done_when_all_that_was_asked_is_measured(entries: object, done: bool, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(entries))
    assert read_outcome(tmp_path).status == ("completed" if done else "not_started")


def test_a_failure_keeps_the_end_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "job.log").write_text("".join(f"line {n}\n\n" for n in range(100)))
    record_failure(tmp_path, why="killed", exit_code=-9, num_starts=1)
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["log"] == [f"line {n}" for n in range(80, 100)]
    assert (failure["signal"], failure["exit_code"]) == (9, -9)


def test_each_retry_keeps_the_record_of_the_one_before(tmp_path: Path) -> None:
    for why in ("first", "second"):
        record_failure(tmp_path, why=why, exit_code=1, num_starts=1)
        make_ready_to_retry(tmp_path)
    kept = [json.loads((tmp_path / f"failure-{number}.json").read_text())["why"] for number in (1, 2)]
    assert kept == ["first", "second"]
    assert read_outcome(tmp_path).status == "not_started"


def test_progress_is_that_of_the_newest_whole_row(tmp_path: Path) -> None:
    """Written as train.py does, with rows enough that the table is longer than what is read of it."""
    assert read_progress(tmp_path) is None
    tracker = CsvTracker(tmp_path / "metrics.csv", ("tokens", "train/loss", "val/loss", "time/tokens_per_second"))
    assert read_progress(tmp_path) is None
    tracker.log(1, {"tokens": 256, "val/loss": 5.5})
    assert read_progress(tmp_path) == RunProgress(tokens=256, loss=None, tokens_per_second=None)
    for step in range(2, 2000):
        tracker.log(step, {"tokens": step * 256, "train/loss": 5 - step / 1000, "time/tokens_per_second": 1e4 + step})
    tracker.log(2000, {"tokens": 2000 * 256, "val/loss": 3.0})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2001,5122")  # the kill fell here
    expected = RunProgress(tokens=2000 * 256, loss=5 - 1.999, tokens_per_second=1e4 + 1999)
    assert read_progress(tmp_path) == expected
