"""`sweep.py runs=TABLE` from table to analysis directory, and the tables that it must refuse or mark."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from slm.analysis.record import exponent_rows, run_rows, summary
from slm.analysis.report.directory import Directory
from slm.analysis.run import analyse_runs
from slm.runtime import pool
from slm.scaling.caveats import _repeats
from slm.sweep.config import check_settings
from slm.tracking.wandb_run import artifact_name
from tests.running import ROOT, run_script
from tests.sweep.designs import QUICK, composed, result, table, write
from tests.tracking.offline import inspected, offline_run

CONTRACT = """family law target size params se ci95 covariance_method n_runs n_rows objective r2 rmse_log aicc bic
converged starts_agreeing at_bound condition_number identified notes"""
ONE = table({"a": 0.1})


@pytest.fixture(autouse=True)
def _no_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second each time; the tests of figures and report draw them."""
    if "contract" not in request.node.name:
        monkeypatch.setattr("slm.analysis.run.make_report", lambda folder: None)


def analysed(frame: pd.DataFrame, folder: Path, *overrides: str) -> dict[str, Any]:
    source = folder / "runs.csv"
    frame.to_csv(source, index=False)
    config = composed(f"runs={source}", f"output_dir={folder}/analysis", *QUICK, *overrides)
    assert analyse_runs(check_settings(config)) == 0
    return json.loads((folder / "analysis/comparison.json").read_text())


def fits_of(analysis: Path, **named: object) -> list[dict[str, Any]]:
    """The fits of an analysis directory that have these values."""
    fits = json.loads((analysis / "fits.json").read_text())
    return [entry for entry in fits if named.items() <= {name: entry[name] for name in named}.items()]


def test_the_directory_holds_what_the_contract_names(tmp_path: Path) -> None:
    analysed(table({"a": 0.1, "b": 0.12}), tmp_path)
    folder = tmp_path / "analysis"
    named = ["design.csv", "results.csv", "audit.json", "fits.json", "comparison.json", "report.md", "report.html"]
    assert {path.name for path in folder.iterdir()} >= set(named)
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {name.rsplit(".")[0] + ".svg" for name in figures} <= figures
    assert not list(folder.rglob("*.partial"))
    assert all(set(CONTRACT.split()) <= set(entry) for entry in fits_of(folder))
    design = pd.read_csv(folder / "design.csv")
    assert (len(design), design["runs"].unique().tolist()) == (12, [2])


def test_a_folder_of_run_directories_is_analysed_as_a_table_of_them_is(tmp_path: Path) -> None:
    """As `train.py -m` leaves one; run 0 of it did not complete."""
    frame = table({"a": 0.1, "b": 0.12})
    for number, row in enumerate(frame.to_dict("records"), 1):
        facts = {"family": row["family"], "seed": row["seed"], "train_tokens": int(row["tokens"])}
        facts |= {"params_total": row["params_total"], "params_non_embedding": row["params_total"]}
        val = result()["val"] | {"loss": row["loss"], "perplexity": np.exp(row["loss"])}
        write(tmp_path / "multirun" / str(number), result(**facts, val=val))
    write(tmp_path / "multirun" / "0", result(status="diverged", val=None))
    power = "analysis.law=power", "analysis.laws=[power]"
    config = composed(f"runs={tmp_path}/multirun", f"output_dir={tmp_path}/runs", *QUICK, *power)
    assert analyse_runs(check_settings(config)) == 0
    analysed(frame, tmp_path, *power)
    fits = [fits_of(tmp_path / folder, law="power", target="loss") for folder in ("runs", "analysis")]
    of_runs, of_table = ({(e["family"], e["loss"]): e["params"]["alpha"] for e in each} for each in fits)
    assert of_runs == pytest.approx(of_table, rel=1e-9)
    notes = json.loads((tmp_path / "runs/comparison.json").read_text())["notes"]
    assert any("1 diverged (row 1)" in note for note in notes)


def test_exponents_that_differ_are_found_and_equal_ones_are_not_told_apart(tmp_path: Path) -> None:
    comparison = analysed(table({"steep": 0.15, "flat": 0.10, "too": 0.10}), tmp_path, "analysis.law=power")
    assert comparison["verdict"]["distinguishable"] is True
    pairs = {(p["a"], p["b"]): p for p in comparison["laws"]["power"]["pairs"]}
    assert pairs["steep", "flat"]["ci_low"] < 0.05 < pairs["steep", "flat"]["ci_high"]
    assert pairs["steep", "flat"]["p_adjusted"] < 0.001
    assert pairs["flat", "too"]["p_adjusted"] > 0.05


def test_an_analysis_is_the_same_to_the_last_bit_when_it_is_repeated_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formula = "analysis.formulas={bend: 'E + A*N**-a'}"
    first = analysed(table({"a": 0.1, "b": 0.12}), tmp_path, formula)
    before = {path: path.read_bytes() for path in (tmp_path / "analysis").glob("*.json")}
    monkeypatch.setattr(pool, "PATIENCE", -1.0)
    monkeypatch.setattr(pool, "num_cores", lambda: 2)
    assert analysed(table({"a": 0.1, "b": 0.12}), tmp_path, formula) == first
    assert before == {path: path.read_bytes() for path in (tmp_path / "analysis").glob("*.json")}


def test_a_directory_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds files other than an analysis"):
        analysed(table({"a": 0.1}), tmp_path)
    assert [path.name for path in (tmp_path / "analysis").iterdir()] == ["thesis.tex"]


def test_fewer_sizes_than_parameters_plus_two_are_marked_not_identified(tmp_path: Path) -> None:
    analysed(table({"a": 0.1}, sizes=4, seeds=1), tmp_path)
    floors = fits_of(tmp_path / "analysis", law="power_floor")
    assert floors
    assert all("alpha" in entry["not_identified"] and not entry["identified"] for entry in floors)
    (tmp_path / "three").mkdir()
    analysed(table({"a": 0.1}, sizes=3, seeds=1), tmp_path / "three")
    floors = fits_of(tmp_path / "three/analysis", law="power_floor")
    assert {entry["params"]["alpha"] for entry in floors} == {None}
    assert all("not fitted: 3 distinct sizes" in entry["notes"][0] for entry in floors)


def test_one_family_is_analysed_and_compared_with_nothing(tmp_path: Path) -> None:
    comparison = analysed(table({"a": 0.1}), tmp_path)
    assert comparison["verdict"]["distinguishable"] is None
    assert "at least two" in comparison["verdict"]["headline"]
    assert comparison["laws"] == {}


def test_columns_that_nothing_reads_are_named_and_misspelt_ones_first(tmp_path: Path) -> None:
    read = {
        "data": "x",
        "epochs": 1,
        "eval_set": "x",
        "weight_decay": 0.1,
        "step": 9,
        "tokens_per_second": 5.0,
        "q": "z",
    }
    frame = table({"a": 0.1, "b": 0.1}).drop(columns="family").assign(famly="a", vendor="v", **read)
    notes = analysed(frame, tmp_path, "where='q == \"z\"'")["notes"]
    assert notes[0] == f"Nothing reads the column famly of {tmp_path}/runs.csv: did you mean family?"
    assert notes[-1] == f"Nothing reads the column vendor of {tmp_path}/runs.csv."
    assert sum("Nothing reads" in note for note in notes) == 2


@pytest.mark.parametrize("sizes", [2, 7])
def test_no_family_is_ranked_by_loss_per_token_of_another_tokenizer(sizes: int, tmp_path: Path) -> None:
    """One text of 3.3 and 4 bytes a token: per byte `b` is lower, per token it looks worse."""
    frame = table({"a": 0.1, "b": 0.1}).groupby("family").head(sizes).reset_index(drop=True)
    bytes_per_token = frame["family"].map({"a": 3.3, "b": 4.0})
    frame["loss"] = frame["loss"] / frame["loss"].mean() * bytes_per_token * frame["family"].map({"a": 0.8, "b": 0.75})
    frame["bits_per_byte"] = frame["loss"] / np.log(2) / bytes_per_token
    frame["tokenizer"] = frame["family"].map({"a": "x", "b": "y"})
    per_token = analysed(frame, tmp_path, "analysis.target=loss")["verdict"]
    assert "which family is lower at equal size is unknown, since loss per token does not" in per_token["headline"]
    said = " ".join([per_token["headline"], *per_token["sentences"]])
    assert not re.search("reaches a|like a model|differ in loss", said)
    shutil.rmtree(tmp_path / "analysis")
    per_byte = analysed(frame, tmp_path, "analysis.target=bits_per_byte")["verdict"]
    said = " ".join([per_byte["headline"], *per_byte["sentences"]])
    assert "unknown, since" not in said
    assert re.search("b reaches a", said)


def test_a_law_does_not_contradict_the_mean_over_three_sizes(tmp_path: Path) -> None:
    frame = table({"a": 0.1, "b": 0.1}, sizes=3, seeds=1)
    frame["loss"] = [3.01, 2.79, 2.62, 3.05, 2.88, 2.66]
    verdict = analysed(frame, tmp_path)["verdict"]
    assert "no clear difference" in verdict["headline"]
    assert not any("In level" in sentence for sentence in verdict["sentences"])


def changed(row: int, column: str, value: float) -> pd.DataFrame:
    frame = table({"a": 0.1, "b": 0.1}).astype({"params_total": float})
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "overrides", "said"),
    [
        (ONE, ["analysis.laws=[chinchilla]"], "no law can be fitted to runs: chinchilla not fitted: D has one value"),
        (changed(3, "loss", np.nan), [], "row 4.*loss"),
        (changed(3, "loss", -2.5), [], "row 4.*loss"),
        (changed(3, "loss", 12.0), [], "row 4, column loss: 12 .*perplexity"),
        (changed(3, "params_total", 12.5), [], "row 4, column params_total: 12.5 is in other units"),
        (ONE.drop(columns="params_total"), [], "params_total"),
        (ONE.iloc[:0], [], "empty|no rows"),
        (
            ONE.assign(loss=3.2),
            ["analysis.laws=[power,chinchilla]"],
            "power not fitted: all results are equal, .* a law needs runs whose results differ; chinchilla not",
        ),
        (ONE, ["analysis.law=cubic"], "analysis.law=cubic must be one of auto, power"),
        (ONE, ["analysis.bootstrap=3"], "analysis.bootstrap=3"),
        (ONE, ["+analysis.lawz=all"], "did you mean law"),
        (ONE, ["analysis.target=bits_per_byte"], "the table has loss, perplexity"),
    ],
)
def test_a_table_or_settings_that_cannot_be_are_one_sentence_and_no_directory(
    frame: pd.DataFrame, overrides: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        analysed(frame, tmp_path, *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "analysis").exists()


def test_duplicated_rows_are_counted_once_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table({"a": 0.1}, sizes=4, seeds=1)
    comparison = analysed(pd.concat([frame, frame.iloc[[2]]]), tmp_path)
    assert comparison["n_rows"] == len(frame)
    printed = capsys.readouterr().out
    assert "1 family\n" in printed
    for text in ("\n".join(comparison["notes"]), printed):
        assert "1 row was left out as exact duplicates" in text


def test_rows_of_one_run_widen_the_intervals_and_the_report_says_what_they_share(tmp_path: Path) -> None:
    frame = table({"a": 0.1, "b": 0.1}, seeds=2)
    frame["run_id"] = [f"run{i // 2}" for i in range(len(frame))]
    comparison = analysed(frame, tmp_path, "analysis.law=power", "analysis.unit=run")
    power = fits_of(tmp_path / "analysis", fitted=True, law="power", loss="least_squares")
    assert {e["covariance_method"] for e in power} == {"cluster_t"}
    assert not comparison["laws"]["power"]["independent"]
    assert all(any("12 rows are correlated within 6 shapes or runs" in note for note in e["notes"]) for e in power)


def test_the_tracker_can_be_read_back(tmp_path: Path) -> None:
    frame = table({"a": 0.1, "b": 0.14})
    frame.to_csv(tmp_path / "runs.csv", index=False)
    command = [sys.executable, str(ROOT / "sweep.py"), f"runs={tmp_path}/runs.csv", f"output_dir={tmp_path}/out"]
    chosen = ["analysis.laws=[power]", "columns.loss=loss", "where='tokens > 1e6'"]
    run_script([*command, *QUICK[:3], *chosen], cwd=tmp_path).check_returncode()
    (file,) = (tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb")
    told = inspected(file)["summary"]
    (power,) = fits_of(tmp_path / "out", family="a", law="power", target="loss", loss="least_squares")
    assert told["exponent/a/power/alpha"] == pytest.approx(power["params"]["alpha"], rel=1e-12)
    assert told["exponent/a/power/ci_low"] == pytest.approx(power["ci95"]["alpha"][0], rel=1e-12)
    assert told["comparison/a_vs_b/p_adjusted"] < 0.05
    assert {"exponents", "comparisons"} <= set(told)
    comparison = json.loads((tmp_path / "out/comparison.json").read_text())
    (pair,) = comparison["paired"]["pairs"]
    assert [told[f"worth/a_in_b/{key}"] for key in ("factor", "low", "high")] == pytest.approx(
        [pair["worth"][key] for key in ("factor", "low", "high")], rel=1e-12
    )
    (level,) = comparison["levels"]["pairs"]
    assert told["level/a_vs_b/difference"] == pytest.approx(level["mean"]["difference"], rel=1e-12)
    tracked = offline_run(tmp_path / "out")
    _check_recorded_settings(tracked, tmp_path)
    _check_charts(tracked["charts"], comparison, power, frame)


def _check_recorded_settings(tracked: dict[str, Any], folder: Path) -> None:
    """The run is named, grouped and configured by its table, and has nothing of a sweep."""
    assert (tracked["name"], tracked["group"], tracked["job_type"]) == ("analysis-runs", "runs", "analysis")
    config = tracked["config"]
    assert not {"sweep", "launcher", "dry_run", "retry"} & set(config)
    assert (config["runs"], config["where"]) == (f"{folder}/runs.csv", "tokens > 1e6")
    assert config["columns"] == {"loss": "loss"}
    assert config["analysis"]["laws"] == ["power"]
    assert config["table"] == {"name": "runs", "families": ["a", "b"], "n_rows": 24, "n_runs": 24, "n_cells": 12}
    settings = json.loads((folder / "out/settings.json").read_text())
    assert not {"sweep", "launcher", "dry_run", "retry"} & set(settings)


def _check_charts(
    charts: dict[str, Any], comparison: dict[str, Any], power: dict[str, Any], frame: pd.DataFrame
) -> None:
    """Every chart is one that W&B draws without an account, from a table with its columns."""
    assert set(charts) == {"loss_against_N", "exponents", "differences", "worth", "level_differences"}
    for chart in charts.values():
        assert chart["preset"] == "wandb/line/v0"
        assert set(chart["fields"].values()) <= set(chart["table"]["columns"])
        assert chart["strings"]["title"]
    lines = {name: lines_of(chart) for name, chart in charts.items()}
    of_a = frame[frame["family"] == "a"].groupby("params_total")["loss"].mean()
    assert lines["loss_against_N"]["runs: a"] == pytest.approx(
        np.column_stack([np.log10(of_a.index), np.log10(of_a)]), rel=1e-9
    )
    assert [x for x, _ in lines["exponents"]["runs: a alpha"]] == pytest.approx(
        [power["ci95"]["alpha"][0], power["params"]["alpha"], power["ci95"]["alpha"][1]]
    )
    assert {y for _, y in lines["exponents"]["runs: b alpha"]} == {-1}
    (difference,) = comparison["verdict"]["pairs"]
    (points,) = lines["differences"].values()
    assert [x for x, _ in points] == pytest.approx([difference[key] for key in ("ci_low", "delta", "ci_high")])
    assert list(lines["worth"]) == ["runs: a in b"]


def lines_of(chart: dict[str, Any]) -> dict[str, Any]:
    """Line -> its points (x, y)."""
    columns = chart["table"]["columns"]
    x, y, line = (columns.index(chart["fields"][field]) for field in ("x", "y", "stroke"))
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in chart["table"]["data"]:
        lines.setdefault(row[line], []).append((row[x], row[y]))
    return {name: np.array(points) for name, points in lines.items()}


@pytest.mark.parametrize("place", ["/proc/foo", "/dev/null/x", "x" * 300])
def test_an_impossible_directory_is_refused_at_once(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm.analysis.run.analyse", lambda *_, **__: pytest.fail("analysed"))
    with pytest.raises(ValueError, match=f"^output_dir={place}(:| cannot be made:) ") as caught:
        analysed(table({"a": 0.1}), tmp_path, f"output_dir={place}")
    assert "\n" not in str(caught.value)


def test_an_interrupted_analysis_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm.analysis.run.analyse", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        analysed(table({"a": 0.1}), tmp_path, f"output_dir={tmp_path}/new/analysis")
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]


def test_the_analysis_of_other_rows_is_refused_and_an_old_report_goes_before_new_numbers(tmp_path: Path) -> None:
    analysed(table({"a": 0.1}), tmp_path)
    folder = tmp_path / "analysis"
    settings = (folder / "settings.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds the analysis of .*runs.csv, drop_worst=0: choose another output_dir"):
        analysed(table({"a": 0.1}), tmp_path, "drop_worst=1")
    (folder / "settings.json").write_text('{"runs": null, "where": null, "columns": {}, "drop_worst": 0}')
    with pytest.raises(ValueError, match="holds the analysis of the sweep that was trained in it: choose another"):
        analysed(table({"a": 0.1}), tmp_path)
    (folder / "settings.json").write_bytes(settings)
    (folder / "figures").mkdir()
    old = [folder / name for name in ("report.md", "report.html", "figures/curves.png")]
    for path in old:
        path.write_text("old")
    analysed(table({"a": 0.1}), tmp_path)  # draws nothing here
    assert not any(path.exists() for path in [*old, folder / "figures"])


def test_the_tracker_gets_names_that_it_takes_and_no_value_that_is_not_identified() -> None:
    entry = {"law": "power", "target": "loss", "size": "N", "loss": "log", "exponents": ["alpha", "beta"], "r2": 0.9}
    entry |= {"family": "a/b", "params": {"alpha": 0.1, "beta": 9.0}, "not_identified": {"beta": "too few"}}
    entry |= {"ci95": {"alpha": [0.0, 0.2], "beta": [None, None]}}
    primary = {"law": "power", "target": "loss", "size": "N", "loss": "log"}
    comparison = {"primary": primary, "verdict": {"headline": ".", "pairs": []}, "laws": {}}
    comparison |= {"paired": {"pairs": []}, "levels": {"pairs": []}}
    found = Directory(Path(), [entry], comparison, {}, {}, {}, {})
    columns, rows = exponent_rows(found)
    (alpha, beta) = (dict(zip(columns, row, strict=True)) for row in rows)
    assert (alpha["value"], alpha["identified"]) == (0.1, True)
    assert [beta[key] for key in ("value", "ci_low", "ci_high", "identified")] == [None, None, None, False]
    assert summary(found)["exponent/a_b/power/alpha"] == 0.1
    assert artifact_name("analysis-my runs (v2) größe", "1a2b") == "analysis-my_runs_v2_gr_e-1a2b"
    assert len(artifact_name("x" * 500, "1a2b")) == 128


def test_columns_are_computed_and_the_best_of_a_grid_kept_as_the_command_line_says(tmp_path: Path) -> None:
    frame = pd.concat([table({"a": 0.1, "b": 0.1}, seeds=1).assign(lr=lr) for lr in (1e-3, 2e-3)], ignore_index=True)
    frame["loss"] *= 1 + 0.1 * (frame["lr"] == 1e-3)
    frame["size"] = frame.pop("params_total") / 1e6
    overrides = ["columns.N='size * 1e6'", "columns.loss='loss / log(2) * log(2)'", "best_of=lr"]
    assert any("kept 12 of 24 rows" in note for note in analysed(frame, tmp_path, *overrides)["notes"])
    results = pd.read_csv(tmp_path / "analysis/results.csv")
    assert set(results["lr"]) == {2e-3}
    assert list(results["N"]) == pytest.approx(list(frame["size"][:12] * 1e6))
    with pytest.raises(ValueError, match=r"best_of=.*lr.*: choose another output_dir"):
        analysed(frame, tmp_path, *overrides[:-1])


def test_no_line_of_the_summary_is_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a family with rather a long name, number {number}" for number in range(12)]
    frame = table(dict.fromkeys(names, 0.1), sizes=4, seeds=1)
    frame = frame.assign(data=frame["family"], lr=0.001 * np.repeat(np.arange(1, 13), 4))
    frame = pd.concat([frame.assign(status="completed"), *[frame.assign(status="killed", loss=9)] * 40])
    analysed(frame, tmp_path, "analysis.laws=[power]", "analysis.law=power")
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= 300
    assert any("1920 killed (rows 49, 50, 51, 52, 53, 54 and 1914 more)" in line for line in said)
    rates = next(line for line in said if line.startswith("- Learning rates differ"))
    assert "a family with rather...umber 0 0.001; " in rates
    assert "and 8 more." in rates


def test_rows_without_a_run_id_are_recorded_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("run_id,family,loss\na,f,3.5\n,f,3.4\n")
    columns, rows = run_rows(tmp_path, "table.csv")
    assert [dict(zip(columns, row, strict=True)).get("run_id") for row in rows] == ["a", None]
    assert [row[-1] for row in rows] == [None, None]


def test_repeated_text_is_a_limit_of_the_verdict(tmp_path: Path) -> None:
    sentences = analysed(ONE.assign(epochs=np.linspace(0.2, 12, len(ONE))), tmp_path)["verdict"]["sentences"]
    said = (
        "Training text was seen up to 12 times: from about 4 times on, repeated text is worth ever less than new text"
    )
    assert [sentence[: len(said)] for sentence in sentences if "text was seen" in sentence] == [said]
    almost_new = "Training text was seen up to 3.5 times. Up to about 4 times, it is almost worth as much as new text"
    for epochs, said in ((None, ""), (1.0, ""), (3.5, almost_new)):
        assert "".join(_repeats(Mock(comparison={"epochs": epochs}))).startswith(said)
        assert bool(_repeats(Mock(comparison={"epochs": epochs}))) == bool(said)
