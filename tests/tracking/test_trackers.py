import csv
from pathlib import Path

import pytest

from slm.tracking.trackers import CsvTracker


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_values_come_back_to_the_last_bit(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    CsvTracker(tmp_path / "m.csv", ["loss"]).log(3, {"loss": value})
    assert float(read(tmp_path / "m.csv")[0]["loss"]) == value


def test_rows_after_the_step_resumed_from_are_dropped_and_earlier_ones_untouched(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    tracker = CsvTracker(path, ["a", "b"])
    for step in (10, 20, 30):
        tracker.log(step, {"a": step / 3})
    before = read(path)
    CsvTracker(path, ["a", "b"], resume_step=20).log(30, {"b": 1.0})
    assert read(path) == [*before[:2], {"step": "30", "a": "", "b": "1.0"}]


def test_a_row_that_a_killed_run_wrote_half_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    CsvTracker(path, ["a"]).log(10, {"a": 1.0})
    with path.open("a") as file:
        file.write('"2')
    CsvTracker(path, ["a"], resume_step=10)
    assert [row["step"] for row in read(path)] == ["10"]


def test_a_metric_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="typo"):
        CsvTracker(tmp_path / "m.csv", ["loss"]).log(1, {"typo": 1.0})
