"""Several budgets off one run: branches are the runs that they would be alone, and cost only their own steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from slm.composition.schedules import check_schedule, count_common_steps
from slm.scaling.tables import table_from_frame
from slm.sweep.cells import collect_cells, reset_branches_added_too_late, share_trunks
from slm.sweep.config import check_settings
from slm.sweep.execute import run_paths
from slm.sweep.forecast import Speeds, disk_bytes, find_power
from slm.sweep.run import run_sweep
from slm.training.run import train
from slm.training.setup import checked_settings, set_up
from tests.composing import composed as composed_train
from tests.running import make_command
from tests.sweep.celled import cell
from tests.sweep.designs import SMALL, cells_of, composed, write

WSD = "sweep.overrides=['schedule=wsd','schedule.warmup_steps=2','train.batch_tokens=1024']"
BRANCHED = (*SMALL, "sweep.budget.tokens=[10240,20480,40960]", "sweep.budget.trunk=true", WSD)


def wsd(**changes: Any) -> dict[str, Any]:
    schedule = {"name": "wsd", "warmup_steps": 2, "warmup_fraction": 0.05, "decay_fraction": 0.2, "final_fraction": 0.0}
    parts = {"data": {"source": "pydocs"}, "train": {"batch_tokens": 100}, "checkpoint": {"keep_steps": []}}
    return parts | {"schedule": schedule | changes}


def test_the_longest_budget_is_the_trunk_of_the_others_and_keys_do_not_change() -> None:
    several = ("sweep.seeds=[1,2]", "sweep.lr.rule=tuned", "sweep.lr.factors=[0.5,1,2]")
    alone = cells_of(*BRANCHED, *several, "sweep.budget.trunk=false")
    cells = {cell.name: cell for cell in cells_of(*BRANCHED, *several)}
    assert [cell.key for cell in cells.values()] == [cell.key for cell in alone]
    trunks = [cell for cell in cells.values() if cell.trunk is None]
    assert len(trunks) == 6
    for trunk in trunks:
        assert (trunk.tokens, trunk.flops_trained) == (40960, trunk.flops)
        assert trunk.overrides[-1] == "checkpoint.keep_steps=[8,16]"
    for branch in (each for each in cells.values() if each.trunk):
        assert (cells[branch.trunk].lr, cells[branch.trunk].seed) == (branch.lr, branch.seed)
        assert (branch.branch_step, branch.shared_tokens) == (branch.tokens // 1024 * 8 // 10, branch.tokens * 8 // 10)
        assert branch.flops_trained == pytest.approx(branch.flops / 5)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=4, unique=True), st.floats(0.01, 0.99), st.integers(0, 20))
def test_a_branch_leaves_before_the_learning_rates_part(steps: list[int], decay: float, warmup: int) -> None:
    config = wsd(decay_fraction=decay, warmup_steps=warmup)
    schedule = config["schedule"]
    try:
        for count in steps:
            check_schedule(schedule, count)
    except ValueError:
        assume(False)
    for branch in share_trunks([cell(str(count), steps=count) for count in steps], config):
        common = count_common_steps(schedule, max(steps), schedule, int(branch.name))
        assert branch.branch_step <= common
        if branch.trunk is None:
            assert int(branch.name) == max(steps) or (1 - decay) * int(branch.name) < 1
        else:
            assert branch.branch_step >= common - 1  # nothing is trained twice but for a step


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sweep.budget.tokens=10000", r"trunk=true needs several budgets, but sweep\.budget\.tokens has only 10000"),
        ("sweep.overrides=[]", r"trunk=true needs schedule=wsd, because schedule=cosine"),
        ("sweep.overrides=['schedule=wsd']", r"trunk=true needs a warm-up .*schedule\.warmup_steps=null"),
        (WSD.replace("]", ",'schedule.decay_fraction=1.0']"), r"schedule\.decay_fraction=1\.0 leaves none"),
        ("sweep.budget.trunk=yes please", r"sweep\.budget\.trunk=yes please must be true or false"),
    ],
)
def test_what_cannot_be_branched_is_refused(change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cells_of(*BRANCHED, change)


def test_the_plan_counts_what_is_trained_and_names_trunks_and_branches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = cells_of(*BRANCHED)
    # Of 10, 20 and 40 steps the first two train 2 and 4 of their own.
    assert sum(cell.flops_trained for cell in cells) == pytest.approx(cells[-1].flops * 46 / 40)
    assert sum(map(Speeds({}, 1e9).seconds, cells)) == pytest.approx(cells[-1].flops * 46 / 40 / 1e9)
    assert disk_bytes(cells) == (3 * 28 + 2 * 12) * cells[0].params_total
    assert run_sweep(check_settings(composed(*BRANCHED, "dry_run=true"))) == 0
    said = capsys.readouterr().out
    assert "10,240, branch at 8,192" in said
    assert "trunks       1 with 2 branches that start from a trunk's state where their decay begins" in said


def test_budgets_of_a_shape_share_its_misfit_and_branches_of_a_trunk_their_noise_too() -> None:
    wide = ("sweep.grid.widths=[64,128,192,256]", "sweep.families=[mobilellm,gpt2]")
    assume = {"law": "power", "params": {"A": 20, "alpha": 0.1}, "sigma": 0.01, "more_seeds": 0}

    def detectable(misfit: float, *budgets: str) -> float:
        scatter = {"misfit": misfit, "own_misfit": misfit}
        how: dict = {"size": "params_total", "num_seeds": 1, "assume": assume | scatter, "power": 0.8, "level": 0.95}
        found = find_power(cells_of(*BRANCHED, *wide, *budgets), **how)
        assert found is not None
        return found.detectable[1]

    alone, one = ["sweep.budget.trunk=false"], ["sweep.budget.trunk=false", "sweep.budget.tokens=20480"]
    for misfit in (0.0, 0.02):
        assert detectable(misfit) == pytest.approx(detectable(misfit, *one))
    assert detectable(0.0, *one) > 1.5 * detectable(0.0, *alone)
    assert detectable(0.02, *one) < 1.1 * detectable(0.02, *alone)


def test_a_branch_of_a_mix_leaves_before_its_weights_change() -> None:
    later = [{"at": 0.3, "weights": {"a": 1, "b": 0}}]
    data = {"source": "mix", "sources": {"a": {}, "b": {}}, "weights": {"a": 1, "b": 1}, "schedule": later}
    (short, _) = share_trunks([cell("short", steps=10), cell("long", steps=20)], wsd() | {"data": data})
    assert short.branch_step == 3  # 0.3 of 10 steps; the decay would begin later
    (plain, _) = share_trunks([cell("short", steps=10), cell("long", steps=20)], wsd())
    assert plain.branch_step > 3


def test_a_budget_added_to_a_finished_trunk_that_kept_no_step_for_it_is_trained_from_step_0(tmp_path: Path) -> None:
    cells = share_trunks([cell("short", steps=10), cell("long", steps=20)], wsd())
    assert reset_branches_added_too_late(cells, tmp_path) == cells
    write(tmp_path / "long", {"status": "completed"})
    short, _ = reset_branches_added_too_late(cells, tmp_path)
    assert (short.branch_step, short.flops_trained, short.trunk) == (0, short.flops, "long")
    (tmp_path / "long" / "checkpoints").mkdir()
    (tmp_path / "long" / "checkpoints" / "step-000008.ckpt").touch()
    assert reset_branches_added_too_late(cells, tmp_path) == cells


def test_a_trunk_that_was_interrupted_past_a_step_that_it_did_not_keep_has_lost_it(tmp_path: Path) -> None:
    cells = share_trunks([cell("short", steps=10), cell("long", steps=20)], wsd())
    write(tmp_path / "long", {"status": "interrupted"})
    for step, branch_step in ((8, 8), (9, 0)):
        (tmp_path / "long" / "metrics.csv").write_text(f"step,tokens\n{step},{step * 100}\n")
        assert reset_branches_added_too_late(cells, tmp_path)[0].branch_step == branch_step


def test_a_branch_has_the_loss_of_a_run_from_step_0(text_file: Path, cache_dir: Path, tmp_path: Path) -> None:
    """In this process: three of train.py take three times as long to start as to train."""
    common = [item for item in make_command(text_file, cache_dir)[2:] if not item.startswith("train.tokens=")]
    common += ["schedule=wsd", "schedule.warmup_steps=3"]
    cells = [
        replace(cell(name, tokens=tokens, flops=1.0), overrides=(f"train.tokens={tokens}", f"name={name}"))
        for name, tokens in {"long": 10240, "short": 5120}.items()
    ]
    schedule = wsd(warmup_steps=3) | {"train": {"batch_tokens": 256}}
    cells = [*share_trunks(cells, schedule), replace(cells[1], name="alone")]
    for one in cells:
        config = composed_train(*common, *one.overrides, *run_paths(one, tmp_path))
        train(set_up(checked_settings(OmegaConf.create(config))))
    results = {one.name: json.loads((tmp_path / one.name / "result.json").read_text()) for one in cells}
    assert results["short"]["val"] == results["alone"]["val"]
    assert results["short"]["branched_from"] == {"name": "long", "step": 16}
    assert results["short"]["tokens_trained"] == 4 * 256 == cells[1].tokens - cells[1].shared_tokens
    assert results["alone"]["branched_from"] is None
    runs = collect_cells(tmp_path, cells, lambda family: "fixed").assign(family="f")
    clusters = table_from_frame(runs).frame.set_index("run_id")["cluster"]
    assert clusters.to_dict() == {"short": "long", "long": "long", "alone": "alone"}
