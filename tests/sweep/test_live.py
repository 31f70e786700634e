"""What a person sees of a sweep that runs."""

import io

import pytest
from rich.console import Console

from slm.sweep.execute import CellStatus
from slm.sweep.ledger import Outcome, RunProgress
from slm.sweep.live import Board
from tests.sweep.celled import cell


def waiting(name: str, flops: float = 100.0) -> CellStatus:
    return CellStatus(cell=cell(name, flops=flops, tokens=100), is_running=False, outcome=Outcome("not_started"))


def running(name: str, tokens: int, rate: float | None, flops: float = 100.0) -> CellStatus:
    progress = RunProgress(tokens=tokens, loss=3.25, tokens_per_second=rate)
    outcome, planned = Outcome("interrupted"), cell(name, flops=flops, tokens=100)
    return CellStatus(cell=planned, is_running=True, outcome=outcome, progress=progress)


def ended(name: str, status: str, why: str | None = None) -> CellStatus:
    return CellStatus(cell=cell(name), is_running=False, outcome=Outcome(status, why))  # type: ignore[arg-type]


def test_without_a_terminal_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Board() as board:
        board.show([waiting("a"), waiting("b")])
        board.show([running("a", 50, None), waiting("b")])
        board.show([running("a", 60, None), waiting("b")])
        board.show([ended("a", "failed", "exit code 1: no"), ended("b", "completed")])
    assert capsys.readouterr().err.splitlines() == [
        "a: running; 1 running, 1 waiting",
        "a: failed (exit code 1: no); 1 completed, 1 failed",
        "b: completed; 1 completed, 1 failed",
    ]


def test_of_a_sweep_that_goes_on_what_was_completed_before_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = [ended("a", "completed"), ended("b", "completed"), ended("c", "failed", "why")]
    with Board() as board:
        board.show([*before, running("d", 1, None)])
        board.show([*before, ended("d", "completed")])
    assert capsys.readouterr().err.splitlines() == [
        "2 of 4 cells were completed before",
        "c: failed (why); 2 completed, 1 running, 1 failed",
        "d: running; 2 completed, 1 running, 1 failed",
        "d: completed; 3 completed, 1 failed",
    ]


def test_a_branch_that_will_never_start_is_not_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    with Board() as board:
        board.show([ended("trunk", "failed", "exit code 1"), ended("branch", "not_started", "it goes on from trunk")])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "branch: not_started (it goes on from trunk); 1 failed, 1 not_started"


def test_on_a_terminal_a_table_shows_what_runs_and_what_went_wrong() -> None:
    screen = io.StringIO()
    with Board(Console(file=screen, force_terminal=True, width=120)) as board:
        board.show([running("a", 40, 2.0), waiting("b"), ended("c", "diverged", "at step 5"), ended("d", "completed")])
    shown = screen.getvalue()
    for text in ("40%", "3.250", "30 s", "diverged: at step 5", "1 completed, 1 running, 1 waiting, 1 diverged"):
        assert text in shown


@pytest.mark.parametrize(
    ("statuses", "left"),
    [
        # 60 tokens left at 2 a second, and nothing after it
        ([running("a", 40, 2.0)], "30 s"),
        # two slots at 2 FLOPs a second each; 60 + 20 + 400 FLOPs left
        ([running("a", 40, 2.0), running("b", 80, 2.0), waiting("c", 400.0)], "2:00 min"),
        # one straggler: 90 tokens left at 1 a second, while the other is about done
        ([running("a", 10, 1.0), running("b", 99, 50.0)], "1:30 min"),
        # one that has not told its speed is as fast as the other: 100 tokens at 2 a second
        ([running("a", 40, 2.0), running("b", 0, None)], "50 s"),
        # and two slots work off what waits: 60 + 100 + 240 FLOPs at 4 a second
        ([running("a", 40, 2.0), running("b", 0, None), waiting("c", 240.0)], "1:40 min"),
    ],
)
def test_the_time_left_is_that_of_the_work_left_at_the_speed_seen(
    statuses: list[CellStatus], left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Board() as board:
        board.show(statuses)
    assert f"about {left} left" in capsys.readouterr().err
