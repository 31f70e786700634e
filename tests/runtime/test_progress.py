import re

import pytest

from slm.runtime import progress as module
from slm.runtime.progress import Progress, progress
from slm.runtime.words import duration


def test_a_log_gets_a_first_and_a_last_line_however_often_work_advances(capsys):
    with progress("encoding", 10.0, "MB") as advance:
        for _ in range(10_000):
            advance(0.001)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "encoding ..."
    assert re.fullmatch(r"encoding: 10 MB in \d+\.\d s", last)


def test_a_log_of_long_work_says_how_long_is_left(capsys, monkeypatch):
    clock = iter([0.0, 30.0, 35.0, 60.0, 90.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("encoding", 40.0, "MB") as advance:
        for _ in range(3):
            advance(10)
    said = capsys.readouterr().err.splitlines()[1:-1]
    assert said == ["encoding 10/40 MB  1:30 min left", "encoding 30/40 MB  20 s left"]


def test_a_continued_task_counts_the_time_left_from_where_it_began(capsys, monkeypatch):
    clock = iter([0.0, 30.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with Progress("step", 100, start=80) as shown:
        shown.update(90, "loss 2.000", log=True)
    assert capsys.readouterr().err == "step 90/100  loss 2.000  30 s left\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0421, "0.042 s"), (1.0, "1.0 s"), (9.96, "10 s"), (59, "59 s"), (187, "3:07 min"), (18_720, "5:12:00 h")],
)
def test_a_duration_of_seconds_is_in_seconds(seconds, text):
    assert duration(seconds) == text
