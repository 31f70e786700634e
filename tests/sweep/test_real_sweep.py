"""A sweep whose jobs are train.py and evaluate.py: what W&B and the table of runs hold of it in the end.

Of five shapes of two families only the smallest are trained; results of the others are put there beforehand, with an
evaluation but for one, whose evaluation fails for want of weights.
"""

import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from slm.sweep.cells import Cell
from slm.sweep.config import check_settings
from slm.sweep.design import Design, check_design
from slm.sweep.evaluation import evaluation_cells
from slm.sweep.grid import make_plan
from slm.sweep.run import run_sweep
from tests.sweep.designs import composed, result_of, write
from tests.tracking.offline import offline_run

TINY = shlex.split("""
    data=local data.paths=text.txt data.max_document_bytes=500 tokenizer=bytes model.vocab_size=260 model.head_dim=16
    train.sequence_length=32 train.batch_tokens=256 train.eval_tokens=512 train.sample_tokens=4
    trainer=cpu trainer.compile=false checkpoint.every_steps=null cache_dir=cache
""")
SWEEP = (
    *shlex.split("""
        output_dir=here analysis=quick analysis.laws=[power] analysis.calibration=99 logger=wandb logger.mode=offline
        logger.tags=[mine] launcher.slots=2 launcher.threads=1 sweep.families=[mobilellm,llama_wide]
        sweep.grid.sizes=null sweep.budget.tokens=10240 sweep.grid.shapes=[32x2,48x2,64x2,96x2,128x2]
    """),
    f"sweep.overrides={json.dumps(TINY)}",
    "sweep.evaluation={held_out: ['data=local', 'data.paths=other.txt', 'batch_tokens=512']}",
)
SCORE = {"protocol": "non_overlapping", "data_fingerprint": "f" * 16, "perplexity": 20.0}


def settings() -> dict[str, Any]:
    return check_settings(composed(*SWEEP))


@cache
def design() -> Design:
    return check_design(settings()["sweep"])


@cache
def cells() -> list[Cell]:
    return make_plan(design()).cells


def read_evaluation(cell: Cell) -> Path:
    (job,) = evaluation_cells([cell], design().evaluations, Path("here/runs"), Path("cache"))
    return Path("here/runs", job.name, "results.json")


@pytest.fixture(scope="module", autouse=True)
def _swept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sweep"))
        patch.setattr("slm.analysis.run.make_report", lambda folder: None)
        for name in ("text.txt", "other.txt"):
            Path(name).write_text("".join(f"{name} has a line {i} about {i * i}.\n" for i in range(400)))
        for cell in (cell for cell in cells() if cell.width > 32):
            write(Path("here/runs", cell.name), result_of(cell))
            if cell.width < 128 or cell.family == "mobilellm":
                read_evaluation(cell).parent.mkdir(parents=True)
                entry = {"status": "completed", "tasks": {}, "perplexity_results": [SCORE | {"loss": 3.0}]}
                entry["perplexity_results"][0]["bits_per_byte"] = 100 / cell.width  # type: ignore[index]
                read_evaluation(cell).write_text(json.dumps([entry]))
        Path("here/cells.json").write_text("[]")
        assert run_sweep(settings()) == 2
        yield


def rows_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def trained() -> list[Cell]:
    return [cell for cell in cells() if cell.width == 32]


def test_runs_and_analysis_are_one_group_with_tags_and_kinds_of_job() -> None:
    runs = [offline_run(Path("here/runs", cell.name)) for cell in trained()]
    analysis = offline_run(Path("here"))
    assert [run["name"] for run in runs] == [cell.name for cell in trained()]
    assert {run["group"] for run in [*runs, analysis]} == {"here"}
    assert [run["job_type"] for run in [*runs, analysis]] == ["train", "train", "analysis"]
    assert all(run["tags"] == ["quick", "mine"] for run in runs)
    assert analysis["tags"] == ["mine"]


def test_the_config_of_a_run_is_that_of_its_cell_and_the_analysis_has_the_designs() -> None:
    for cell in trained():
        run = offline_run(Path("here/runs", cell.name))
        assert run["config"]["model"]["hidden_size"] == cell.width
        assert (run["config"]["seed"], run["config"]["optim"]["lr"]) == (cell.seed, cell.lr)
        result = json.loads(Path("here/runs", cell.name, "result.json").read_text())
        assert run["summary"]["params_total"] == cell.params_total
        assert run["summary"]["val/loss"]["min"] == pytest.approx(result["val"]["loss"])
    config = offline_run(Path("here"))["config"]
    assert config["sweep"]["families"] == ["mobilellm", "llama_wide"]
    assert config["analysis"]["laws"] == ["power"]


def test_the_analysis_links_to_its_runs_by_their_ids() -> None:
    rows = rows_of(offline_run(Path("here"))["tables"]["runs"])
    known = {row["run_id"]: row["wandb_run"] for row in rows if row["wandb_run"]}
    assert len(rows) == 10
    assert known == {cell.name: offline_run(Path("here/runs", cell.name))["id"] for cell in trained()}


def test_exponents_and_comparisons_are_those_of_the_directory() -> None:
    analysis = offline_run(Path("here"))
    fits, comparison = (json.loads(Path(f"here/{name}.json").read_text()) for name in ("fits", "comparison"))
    written = rows_of(analysis["tables"]["exponents"])
    assert len(written) == len(fits)
    for row, entry in zip(written, fits, strict=True):
        assert all(row[key] == entry[key] for key in ("family", "target", "size"))
        known = "alpha" not in entry["not_identified"]
        assert (row["value"], row["identified"]) == (entry["params"]["alpha"] if known else None, known)
        if known:
            assert [row["ci_low"], row["ci_high"]] == entry["ci95"]["alpha"]
    table = analysis["tables"]["comparisons"]
    (pair,) = comparison["laws"]["power"]["pairs"]
    assert {"law": "power"} | {key: pair[key] for key in table["columns"] if key != "law"} in rows_of(table)
    assert analysis["summary"]["verdict"] == comparison["verdict"]["headline"]
    delta = analysis["summary"].get("comparison/mobilellm_vs_llama_wide/delta")
    first = next(iter(comparison["verdict"]["pairs"]), {"delta": None})
    assert delta == first["delta"]


def test_every_run_has_the_results_of_its_evaluation_in_the_table() -> None:
    runs = pd.read_csv("here/runs.csv").set_index("run_id")
    for cell in trained():
        (entry,) = json.loads(read_evaluation(cell).read_text())
        (score,) = entry["perplexity_results"]
        assert runs.at[cell.name, "held_out_bits_per_byte"] == pytest.approx(score["bits_per_byte"], rel=1e-12)
        assert runs.at[cell.name, "held_out_eval_data_fingerprint"] == score["data_fingerprint"]
        assert runs.at[cell.name, "loss"] != score["loss"]
    assert runs["held_out_loss"].isna().sum() == 1


def test_a_failed_evaluation_is_named_and_its_run_analysed_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Started once more, nothing is trained or measured again, on another column either."""
    logs = {path: path.stat().st_mtime_ns for path in Path("here/runs").rglob("job.log")}
    assert len(logs) == 5  # two runs, their evaluations, and the one that fails
    (lost,) = (cell.name for cell in cells() if (cell.family, cell.width) == ("llama_wide", 128))
    chosen = composed(*SWEEP, "columns.bits_per_byte=held_out_bits_per_byte", "analysis.target=bits_per_byte")
    chosen["logger"]["wandb"] = False
    assert len(pd.read_csv("here/results.csv")) == 10
    assert run_sweep(check_settings(chosen)) == 2
    assert logs == {path: path.stat().st_mtime_ns for path in Path("here/runs").rglob("job.log")}
    results = pd.read_csv("here/results.csv")
    assert lost not in set(results["run_id"])
    assert dict(zip(results["width"], results["bits_per_byte"], strict=True))[128] == pytest.approx(100 / 128)
    said = capsys.readouterr().err
    assert "1 of 10 evaluations have no result:" in said
    assert f"- {lost}/evaluation/held_out-" in said
    notes = json.loads(Path("here/comparison.json").read_text())["notes"]
    assert f"These runs have no held_out_bits_per_byte and are left out: {lost}." in notes
