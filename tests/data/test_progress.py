import re

from slm.data import progress as module
from slm.data.progress import progress


def test_a_log_gets_a_first_and_a_last_line_however_often_work_advances(capsys):
    with progress("encoding", 10.0, "MB") as advance:
        for _ in range(10_000):
            advance(0.001)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "data: encoding ..."
    assert re.fullmatch(r"data: encoding: 10 MB in \d+\.\d s", lines[1])
    assert len(lines) == 2


def test_a_log_of_long_work_says_how_long_is_left(capsys, monkeypatch):
    clock = iter([0.0, 30.0, 35.0, 60.0, 90.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("encoding", 40.0, "MB") as advance:
        for _ in range(3):
            advance(10)
    assert capsys.readouterr().err.splitlines()[1:-1] == [
        "data: encoding: 10 MB of 40, 90 s left",
        "data: encoding: 30 MB of 40, 20 s left",
    ]
