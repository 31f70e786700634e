"""Tables with too few sizes for a law: report, terminal and files have losses by family, size and seed."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from slm.analysis.report import levels
from slm.analysis.run import analyse_runs
from slm.sweep.config import check_settings
from tests.sweep.designs import composed

QUICK = ("analysis.bootstrap=0", "analysis.calibration=0", "logger=csv")
TABLES = {
    "one row": [("a", 1e6, 1, 3.0)],
    "one size and seeds": [("a", 1e6, 1, 3.01), ("a", 1e6, 2, 2.99), ("b", 1e6, 1, 2.92), ("b", 1e6, 2, 2.88)],
    "two sizes": [("a", 1e6, 1, 3.0), ("a", 4e6, 1, 2.8), ("b", 1e6, 1, 2.9), ("b", 4e6, 1, 2.71)],
    "no common size": [("a", 1e6, 1, 3.0), ("b", 2e6, 1, 2.9)],
}


def analysed(rows: list[tuple], folder: Path, *overrides: str) -> Path:
    frame = pd.DataFrame(rows, columns=["family", "params_total", "seed", "loss"]).assign(tokens=1e8)
    frame.to_csv(folder / "small.csv", index=False)
    config = composed(f"runs={folder}/small.csv", f"output_dir={folder}/analysis", *QUICK, *overrides)
    assert analyse_runs(check_settings(config)) == 0
    return folder / "analysis"


@pytest.mark.parametrize("name", TABLES)
def test_every_loss_is_in_report_terminal_and_files(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = analysed(TABLES[name], tmp_path)
    report, printed = (folder / "report.md").read_text(), capsys.readouterr().out
    cells = json.loads((folder / "comparison.json").read_text())["levels"]["cells"]
    assert sorted(loss for cell in cells for loss in cell["losses"]) == pytest.approx(
        sorted(r[3] for r in TABLES[name])
    )
    for family, _, seed, loss in TABLES[name]:
        written = f"seed {seed}: {loss:.3f}"
        assert any(written in line and family in line for line in report.splitlines() if line.startswith("| "))
        assert any(written in line and line.startswith(f"  {family}, N ") for line in printed.splitlines())
    assert "too small for a law" in report
    assert "too small for a law" in printed
    assert "Exponents" not in report
    for text in (report, printed):
        assert not {"None", "nan"} & set(text.replace(",", " ").split())


def test_many_families_do_not_flood_report_and_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(levels, "MAX_TABLE_ROWS", 10)
    monkeypatch.setattr(levels, "MAX_LINES", 5)
    rows = [(f"f{number}", 1e6, 1, 3 + number / 100) for number in range(8)]
    folder = analysed(rows, tmp_path, "analysis.laws=[power]")
    report, printed = (folder / "report.md").read_text(), capsys.readouterr().out
    assert len(json.loads((folder / "comparison.json").read_text())["levels"]["pairs"]) == 28
    assert len(re.findall(r"^\| f\d ", report, re.MULTILINE)) == 8 + 10
    assert "18 more rows are in comparison.json (levels)." in report
    assert len(re.findall(r"^  f\d", printed, re.MULTILINE)) == 5 + 5
    assert "23 more rows are in comparison.json (levels)." in printed


def test_the_errors_are_those_of_the_seeds_and_said_to_be_unknown_without(tmp_path: Path) -> None:
    report = (analysed(TABLES["one size and seeds"], tmp_path) / "report.md").read_text()
    assert "| a | 1M | 100M | 2 | 3.000 ± 0.010 |" in report
    assert "| b | 1M | 100M | 2 | 2.900 ± 0.020 |" in report
    assert "| a - b | N 1M, 100M tokens | 0.100 [-0.0271, 0.227] |" in report  # 0.1 ± 12.7062 x 0.01
    (tmp_path / "one").mkdir()
    report = (analysed(TABLES["one row"], tmp_path / "one") / "report.md").read_text()
    assert "a mean without ± is of one run, whose scatter is unknown" in report


def test_a_family_in_two_spellings_is_asked_about_in_the_notes_and_the_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("Llama", 1e6, 1, 3.0), ("llama", 4e6, 1, 2.8), ("llama 2", 1e6, 1, 2.9)]
    folder = analysed(rows, tmp_path)
    notes = json.loads((folder / "comparison.json").read_text())["notes"]
    assert notes[0].startswith("Are Llama and llama one family? They count as 2")
    assert "Are Llama and llama one family?" in capsys.readouterr().out
    audit = json.loads((folder / "audit.json").read_text())
    assert not audit["controlled"]
    (violation,) = [item for item in audit["violations"] if item["what"] == "names"]
    assert violation["sentence"].startswith("The families Llama and llama may be one family")
    folder = analysed(rows, tmp_path, "where='family != \"Llama\"'", f"output_dir={tmp_path}/other")
    assert "one family?" not in (folder.parent / "other/report.md").read_text()
