"""A sweep from design to report, with jobs that write results without training."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from slm.analysis.runs import COLUMNS
from slm.sweep.cells import Cell
from slm.sweep.config import check_settings
from slm.sweep.ledger import Outcome, read_outcome
from slm.sweep.run import run_sweep
from tests.sweep.designs import composed, result_of, write

QUICK = (
    *("analysis=quick", "analysis.laws=[power]", "analysis.calibration=99", "logger=csv"),
    "sweep.overrides=['model.vocab_size=1024','model.head_dim=16','train.batch_tokens=2048','cache_dir=cache']",
)
TWO = ("output_dir=here", "sweep.families=[mobilellm,ssd]")
FEW = (*TWO, "sweep.grid.sizes=null", "sweep.grid.shapes=[32x2,64x4,96x6,128x8]")
TUNED = ("sweep.lr.rule=tuned", "sweep.lr.factors=[0.5,1,2]")
Sweep = Callable[..., int]


class Jobs:
    """In place of `execute`: writes results at once, and keeps what it was asked for."""

    def __init__(self, breaks: Callable[[Cell], str | None] = lambda cell: None) -> None:
        self.breaks, self.started, self.common = breaks, [], []  # type: ignore[var-annotated]

    def __call__(
        self, cells: Sequence[Cell], folder: Path, launcher: Mapping, *, retry: str, common: Sequence[str], show: object
    ) -> dict[str, Outcome]:
        self.common = list(common)
        outcomes = {}
        for cell in cells:
            run = folder / cell.name
            if cell.impossible:
                outcomes[cell.name] = Outcome("impossible", cell.impossible)
                continue
            if read_outcome(run).status != "completed":
                self.started.append(cell.name)
                how = self.breaks(cell)
                if how == "failed":
                    outcomes[cell.name] = Outcome("failed", "exit code 1: out of memory")
                    continue
                write(run, result_of(cell, **({"status": how, "val": None} if how else {})))
            outcomes[cell.name] = read_outcome(run)
        return outcomes


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("slm.analysis.run.make_report", lambda folder: None)


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run a sweep whose cells are trained by `jobs`; returns the exit code."""

    def run(jobs: Jobs, *overrides: str) -> int:
        monkeypatch.setattr("slm.sweep.run.execute", jobs)
        return run_sweep(check_settings(composed(*QUICK, *overrides)))

    return run


def tables(folder: str) -> dict[Path, bytes]:
    """The files of a sweep's directory but settings.json."""
    return {path: path.read_bytes() for path in Path(folder).glob("*.*") if path.name != "settings.json"}


def test_a_sweep_ends_in_an_audited_comparison(sweep: Sweep) -> None:
    jobs = Jobs()
    assert sweep(jobs, "sweep.seeds=[1,2]", "logger.tags=[mine]") == 0
    (folder,) = Path("sweeps").iterdir()
    assert folder.name.startswith("quick-")
    grouped = {'logger.tags=["quick", "mine"]', 'logger.job_type="train"', f'logger.group="{folder.name}"'}
    assert grouped <= set(jobs.common)
    results = pd.read_csv(folder / "results.csv")
    assert len(results) == len(jobs.started) == 24
    assert set(results["budget"]) == {"tokens=400000"}
    assert set(results["lr_rule"]) == {"transferred by completep"}
    audit = json.loads((folder / "audit.json").read_text())
    assert audit["controlled"], audit["violations"]
    pairs = json.loads((folder / "comparison.json").read_text())["laws"]["power"]["pairs"]
    differ = {(pair["a"], pair["b"]): pair["p_adjusted"] < 0.01 for pair in pairs}
    assert differ == {("mobilellm", "llama_wide"): False, ("mobilellm", "ssd"): True, ("llama_wide", "ssd"): True}
    with (folder / "design.csv").open() as file:
        planned = list(csv.DictReader(file))
    assert [row["name"] for row in planned] == jobs.started
    assert {row["status"] for row in planned} == {"completed"}
    assert yaml.safe_load((folder / "sweep.yaml").read_text())["sweep"]["name"] == "quick"
    assert Path("cache/speeds.json").exists()


def test_the_same_command_goes_on_and_more_seeds_may_be_added_but_not_taken_away(sweep: Sweep) -> None:
    jobs = Jobs()
    assert sweep(jobs, *FEW) == 0
    before = tables("here")
    assert sweep(jobs, *FEW) == 0
    assert tables("here") == before
    assert len(jobs.started) == 8
    assert sweep(jobs, *FEW, "sweep.seeds=[1,2]") == 0
    assert (len(jobs.started), len(set(jobs.started))) == (16, 16)
    with pytest.raises(ValueError, match=r"output_dir=here holds a sweep with cells .*mobilellm_32x2-seed2-"):
        sweep(jobs, *FEW)
    Path("thesis").mkdir()
    Path("thesis/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="output_dir=thesis holds files that are not a sweep's"):
        sweep(jobs, *FEW, "output_dir=thesis")
    assert [path.name for path in Path("thesis").iterdir()] == ["thesis.tex"]


def test_two_sweeps_in_one_directory_are_refused_and_the_second_changes_nothing(sweep: Sweep) -> None:
    class Meanwhile(Jobs):
        def __call__(self, *given: Any, **named: Any) -> dict[str, Outcome]:
            before = tables("here")
            with pytest.raises(ValueError, match=r"output_dir=here is in use by another sweep\.py"):
                run_sweep(check_settings(composed(*QUICK, *FEW, "sweep.seeds=[1,2]")))
            assert tables("here") == before
            return super().__call__(*given, **named)

    assert sweep(Meanwhile(), *FEW) == 0
    assert sweep(Jobs(), *FEW) == 0


@pytest.mark.parametrize("left", [".lock", "cells.json.7.partial"])
def test_a_sweep_that_was_killed_as_it_began_is_begun_again(left: str, sweep: Sweep) -> None:
    Path("here").mkdir()
    Path("here", left).write_text("[")
    assert sweep(Jobs(), *FEW) == 0


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("/proc/none", ": No such file.*choose another"),
        ("file/below", " cannot be made: .*/file is a file; give the name"),
    ],
)
def test_a_directory_that_cannot_be_written_to_is_refused_by_name(folder: str, problem: str, sweep: Sweep) -> None:
    Path("file").touch()
    with pytest.raises(ValueError, match=f"output_dir={folder}{problem}"):
        sweep(Jobs(), *FEW, f"output_dir={folder}")


def test_what_failed_is_named_and_the_rest_is_analysed(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"mobilellm_64x3": "failed", "llama_wide_96x1": "diverged"}
    jobs = Jobs(lambda cell: broken.get(f"{cell.family}_{cell.width}x{cell.depth}"))
    sizes = "sweep.grid.sizes=[1e4,2e5,6e5,1e6,1.6e6,4e6]"
    assert sweep(jobs, "output_dir=here", sizes) == 2
    said = capsys.readouterr().err
    assert "5 of 18 cells have no result:" in said
    assert "failed, exit code 1: out of memory" in said
    notes = " ".join(json.loads(Path("here/comparison.json").read_text())["notes"])
    for what in ("failed, exit code 1: out of memory", ": diverged at step", "impossible, no shape has 10,000"):
        assert what in notes
    statuses = pd.read_csv("here/design.csv")["status"].value_counts().to_dict()
    assert statuses == {"completed": 13, "impossible": 3, "failed": 1, "diverged": 1}
    assert len(pd.read_csv("here/results.csv")) == 13
    assert len(pd.read_csv("here/runs.csv")) == 14


def test_an_overlay_may_be_added_to_a_finished_sweep(sweep: Sweep) -> None:
    assert sweep(Jobs(), *FEW) == 0
    Path("models.csv").write_text("model,params_total,bits_per_byte\nlarge,6e8,0.9\n")
    jobs = Jobs()
    assert sweep(jobs, *FEW, "overlay=models.csv") == 0
    assert jobs.started == []
    laid = json.loads(Path("here/overlay.json").read_text())
    assert [family["family"] for family in laid["families"]] == ["mobilellm", "ssd"]


@pytest.mark.parametrize("how", ["diverged", "failed"])
def test_a_sweep_without_a_result_ends_with_code_2(how: str, sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(Jobs(lambda cell: how), *FEW, "sweep.evaluation={wiki: ['data=wikitext2']}") == 2
    said = capsys.readouterr().err
    assert "no cell of sweep=quick completed" in said
    assert "8 of 8 cells have no result:" in said
    assert set(pd.read_csv("here/design.csv")["status"]) == {how}
    assert "loss" in pd.read_csv("here/runs.csv")


def test_the_verdict_is_about_the_size_that_families_were_matched_in(sweep: Sweep) -> None:
    sizes = ("sweep.grid.sizes=[1.2e5,3e5,1e6,3e6]", "sweep.grid.size=params_non_embedding")
    assert sweep(Jobs(), *TWO, *sizes) == 0
    assert json.loads(Path("here/comparison.json").read_text())["primary"]["size"] == "params_non_embedding"


@pytest.mark.parametrize("shapes", [["64x4"], ["64x4", "96x6"]])
def test_rates_tuned_at_few_sizes_give_losses_at_these_sizes_where_there_is_no_law_to_fit(
    shapes: list[str], sweep: Sweep
) -> None:
    assert sweep(Jobs(), *FEW, *TUNED, f"sweep.grid.shapes=[{','.join(shapes)}]") == 0
    assert len(pd.read_csv("here/tuning.csv")) == 2 * len(shapes)
    assert not any(entry["fitted"] for entry in json.loads(Path("here/fits.json").read_text()))
    assert len(json.loads(Path("here/comparison.json").read_text())["levels"]["cells"]) == 2 * len(shapes)


def test_rates_of_which_too_few_completed_are_named(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(Jobs(lambda cell: "diverged" if cell.lr > 0.005 else None), *FEW, *TUNED) == 2
    said = capsys.readouterr().err
    assert "no shape has a best learning rate: mobilellm 32x2 (tokens=400000) is left out: a parabola needs 3" in said


@pytest.mark.parametrize(("rule", "matched"), [((), False), ((*TUNED, "sweep.lr.factors=[0.25,0.5,1,2,4]"), True)])
def test_rates_of_each_family_are_matched_only_if_tuned(rule: tuple[str, ...], matched: bool, sweep: Sweep) -> None:
    assert sweep(Jobs(), *FEW, "sweep.lr.value={mobilellm: 0.004, ssd: 0.005}", *rule) == 0
    violations = json.loads(Path("here/audit.json").read_text())["violations"]
    assert ("learning rate rule" in [item["what"] for item in violations]) == (not matched)


def test_tuned_rates_are_interpolated_before_the_analysis(sweep: Sweep) -> None:
    assert sweep(Jobs(), *FEW, *TUNED, "sweep.lr.factors=[0.25,0.5,1,2,4]", "sweep.seeds=[1,2,3]") == 0
    results, optima = pd.read_csv("here/results.csv"), pd.read_csv("here/tuning.csv")
    assert (len(pd.read_csv("here/runs.csv")), len(results), len(optima)) == (120, 24, 8)
    # Losses bend by 0.02 x loss in log lr and scatter by 0.002 of it, so the optimum is known to about 20%.
    np.testing.assert_allclose(np.log(optima["lr"] / 0.004), 0, atol=0.5)
    assert results["lr_rule"].unique().tolist() == ["tuned over 5 rates by completep"]
    assert (optima["lr_value"] == 0.006).all()  # that of conf/optim


@pytest.mark.parametrize("rule", ["fixed", "tuned"])
def test_budgets_off_one_trunk_are_one_cluster_of_the_table(rule: str, sweep: Sweep) -> None:
    """Of four shapes, two families and two seeds, whether or not optima of rates lie between."""
    lr = {"fixed": ["sweep.lr.parametrization=null"], "tuned": ["sweep.lr.factors=[0.25,1,4]"]}[rule]
    off_trunk = ["sweep.budget.tokens=[200000,400000]", "sweep.budget.trunk=true", "sweep.seeds=[1,2]"]
    wsd = QUICK[-1].replace("]", ",'schedule=wsd','schedule.warmup_steps=5']")
    assert sweep(Jobs(), *FEW, f"sweep.lr.rule={rule}", *lr, *off_trunk, wsd) == 0
    results = pd.read_csv("here/results.csv")
    of_run = ["family", "width", "depth", "seed"]
    assert (len(results), results["cluster"].nunique(), len(results.drop_duplicates(of_run))) == (32, 16, 16)
    assert results.groupby("cluster")[of_run].nunique().eq(1).all(axis=None)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("analysis.level=2", "analysis.level"),
        ("launcher.slots=0", "launcher.slots"),
        ("++logger={wandb: true, mode: sometimes}", "logger.mode=sometimes must be"),
        ("where='losss < 5'", "the runs of a sweep have no column losss; did you mean loss"),
        ("where='loss <'", "where=loss < must be a condition"),
        (
            "sweep.also=['logger.mode=online']",
            "all runs use the logger of sweep.py: give logger.mode=online to sweep.py",
        ),
        ("drop_worst=8", "drop_worst=8 drops all 8 runs"),
        ("sweep.name=../x", "sweep.name"),
        ("sweep.also=['data=local','data.paths=/nowhere/*.txt']", r"data.paths='/nowhere/\*.txt' matches no file"),
        ("sweep.evaluation={w: ['data=local','data.paths=no.txt']}", "sweep.evaluation.w: data.paths='no.txt' matches"),
        ("sweep.evaluation={w: ['task_files={piqa: no.jsonl}']}", "w: task_files.piqa='no.jsonl' matches no file"),
        ("columns.loss=wiki_loss", "columns.loss=wiki_loss: the runs of a sweep have no column wiki_loss"),
        ("columns.tokens='stepps*batch_tokens'", "the runs of a sweep have no column stepps; did you mean steps"),
        ("best_of=[lr,wd]", "best_of=wd: the runs of a sweep have no column wd"),
    ],
)
def test_settings_that_are_wrong_are_refused_before_anything_is_written(override: str, said: str, sweep: Sweep) -> None:
    with pytest.raises(ValueError, match=said):
        sweep(Jobs(), *FEW, override)
    assert not Path("here").exists()


def test_rows_may_be_chosen_by_any_column_that_the_table_will_have(sweep: Sweep) -> None:
    sweep(Jobs(), *FEW, "where='abs(loss) > 0 and `depth` >= 1 and budget != 1'")
    assert set(COLUMNS) - {"trunk", "lr_at_end", "lr_tried"} == set(pd.read_csv("here/runs.csv"))
