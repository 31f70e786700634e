"""The numbers and the table that `train.py -m` prints."""

import json
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from slm.training.multirun import MultirunDisplay, print_results, swept_overrides


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=1,2", "model=tiny,tiny_ls", "train.tokens=1e5"],
        ["seed=range(1,4)", "name='a,b'", "optim.lr=choice(1e-3,2e-3)"],
        ["seed=1,2", "seed=3"],
        ["seed=1"],
    ],
)
def test_runs_are_counted_in_hydras_own_order(overrides: list[str]) -> None:
    parsed = OverridesParser.create().parse_overrides(overrides)
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    swept = swept_overrides(overrides)
    assert swept is not None
    assert len(swept) == len(jobs)
    for text, job in zip(swept, jobs, strict=True):
        assert set(text.split()) <= set(job)
    varied = {item for job in jobs for item in job if not all(item in other for other in jobs)}
    assert {item for text in swept for item in text.split()} >= varied


@pytest.mark.parametrize("override", ["model=glob(*)", "optim.lr=interval(0,1)"])
def test_runs_that_cannot_be_listed_are_not_counted(override: str) -> None:
    assert swept_overrides([override]) is None


def test_the_table_has_the_runs_that_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    display = MultirunDisplay()
    display.swept, display.folder = ["seed=1", "seed=2", "seed=3", "seed=4"], tmp_path
    monkeypatch.setattr(MultirunDisplay, "current", display)
    print_results()
    assert capsys.readouterr().out == ""  # no run has a result
    score = {"loss": 3.14159, "bits_per_byte": 1.5}
    result = {"name": "tiny", "params_total": 1_234_567, "wall_seconds": 2.5}
    for number, status in ((0, "completed"), (2, "interrupted")):
        (tmp_path / str(number)).mkdir()
        content = result | {"seed": number + 1, "status": status, "val": score}
        (tmp_path / str(number) / "result.json").write_text(json.dumps(content))
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "result.json").write_text("{")
    print_results()
    title, header, *rows = capsys.readouterr().out.strip().splitlines()
    assert title == "1 of 4 runs completed; without a result: 2, 4"
    assert header.split() == ["run", "overrides", "seed", "N", "loss", "bits/byte", "time", "directory"]
    completed, interrupted = (row.split() for row in rows)
    assert completed == ["1", "seed=1", "1", "1,234,567", "3.1416", "1.5000", "2.5", "s", str(tmp_path / "0")]
    assert interrupted[:6] == ["3", "seed=3", "3", "1,234,567", "interrupted", "–"]
