"""From a design to its cells: what decides a run decides its hash, and what cannot be trained says why."""

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from slm.composition.budget import count_steps
from slm.composition.settings import check_settings
from slm.model.counts import num_params
from slm.sweep.cells import Cell
from slm.sweep.design import check_design
from slm.sweep.grid import make_plan
from slm.sweep.recipe import Recipe, check_inputs, digest, run_key
from slm.training.plan import make_plan as make_train_plan
from tests import composing
from tests.composing import choices
from tests.running import ROOT
from tests.sweep.designs import SMALL, cells_of, composed
from tests.training.small import CPU


def train_config(cell: Cell) -> dict[str, Any]:
    """What train.py makes of a cell's overrides."""
    return composing.composed(*cell.overrides, "output_dir=elsewhere")


def test_the_published_sweep_has_the_cells_that_were_trained() -> None:
    trained = json.loads((ROOT / "results/first_study/sweep/cells.json").read_text())
    assert {cell.key for cell in cells_of("sweep=first_study")} == {cell["key"] for cell in trained}


def test_the_plan_says_which_shapes_miss_their_target_by_more_than_was_asked() -> None:
    design = ["sweep.families=[ssd]", "sweep.grid.sizes=[1.7e5]", "sweep.grid.tolerance=1e-5"]
    (note,) = make_plan(check_design(composed(*design)["sweep"])).notes
    assert re.fullmatch(
        r"Shapes that miss their target N by more than 0.001%: ssd \d+x\d+ is 0\.\d+% (above|below) 170000\.", note
    )
    assert make_plan(check_design(composed(*design[:2])["sweep"])).notes == []


@pytest.mark.parametrize("sweep", choices("sweep"))
def test_a_shipped_sweep_can_be_trained_as_planned(sweep: str) -> None:
    cells = cells_of(f"sweep={sweep}")
    assert [cell.impossible for cell in cells if cell.impossible] == []
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in (cells[0], cells[-1]):
        config = train_config(cell)
        check_settings(config)
        plan = make_train_plan(config, CPU)
        assert run_key(config) == cell.key
        assert cell.name == config["name"] == f"{cell.family}_{cell.width}x{cell.depth}-seed{cell.seed}-{cell.key[:8]}"
        assert plan.train_tokens == cell.tokens
        assert plan.train_tokens * plan.token_flops == pytest.approx(cell.flops, rel=1e-12)
        assert num_params(plan.model) == cell.params_total
        assert num_params(plan.model, non_embedding=True) == cell.params_non_embedding
        assert (config["optim"]["lr"], config["seed"], config["model"]["family"]) == (cell.lr, cell.seed, cell.family)


def test_the_papers_ablation_has_the_shapes_that_it_prints() -> None:
    cells = cells_of("sweep=paper_depth_width")
    deep = {(384, 62), (448, 42), (512, 30), (576, 24), (640, 18), (768, 12), (896, 8), (1024, 6), (1280, 4)}
    shapes = {(cell.width, cell.depth) for cell in cells}
    assert (len(shapes), deep <= shapes) == (19, True)
    for cell in cells:
        # Multi-head attention of 4 h^2, three matrices of 256 ceil(8 h / 3 / 256), two norms; two tables and a norm.
        h, inner = cell.width, 256 * -(-8 * cell.width // (3 * 256))
        body = cell.depth * (4 * h * h + 3 * h * inner + 2 * h) + h
        assert (cell.params_non_embedding, cell.params_total) == (body, body + 2 * 32_000 * h)


def test_quick_has_sizes_over_a_factor_of_twenty_to_two_percent() -> None:
    cells = cells_of()
    for family in ("mobilellm", "llama_wide", "ssd"):
        sizes = [cell.params_total for cell in cells if cell.family == family]
        assert sizes == pytest.approx([1.7e5, 4.6e5, 1.25e6, 3.4e6], rel=0.02)
    assert len({cell.tokens for cell in cells}) == 1


def test_every_family_shape_budget_rate_and_seed_is_a_cell() -> None:
    several = [*SMALL, "sweep.families=[mobilellm,gpt2]", "sweep.grid.depths=[2,4]", "sweep.seeds=[1,5]"]
    tuned = ["sweep.lr.rule=tuned", "sweep.lr.factors=[2,0.5,1]", "sweep.lr.value=0.01"]
    cells = cells_of(*several, *tuned, "sweep.budget.tokens=[10000,20000]")
    assert len(cells) == len({cell.key for cell in cells}) == 2 * 2 * 2 * 3 * 2
    assert {cell.lr for cell in cells} == {0.005, 0.01, 0.02}
    assert {cell.budget for cell in cells} == {"tokens=10000", "tokens=20000"}
    assert {cell.tokens for cell in cells} == {10000 // 2048 * 2048, 20000 // 2048 * 2048}


def test_overrides_may_be_added_to_those_of_a_design() -> None:
    (own,) = cells_of(*SMALL, "sweep.overrides=['optim=muon','train.log_every=3']")
    (same,) = cells_of(*SMALL, "sweep.overrides=['optim=muon','train.log_every=5']", "sweep.also=['train.log_every=3']")
    assert same.key == own.key


def test_each_family_may_have_a_rate_of_its_own() -> None:
    own = [*SMALL, "sweep.families=[mobilellm,gpt2]", "sweep.lr.value={mobilellm:0.01,gpt2:0.002}"]
    assert {(cell.family, cell.lr) for cell in cells_of(*own)} == {("mobilellm", 0.01), ("gpt2", 0.002)}
    one = [*SMALL, "sweep.families=[mobilellm,gpt2]", "sweep.lr.value=0.01"]
    assert {cell.key for cell in cells_of(*one)} & {cell.key for cell in cells_of(*own)}


@pytest.mark.parametrize("budget", ["tokens_per_param=20", "flops=1e12"])
def test_budgets_come_to_the_steps_that_train_would_take(budget: str) -> None:
    key, _, value = budget.partition("=")
    (cell,) = cells_of(*SMALL, "sweep.budget.tokens=null", f"sweep.budget.{key}={value}")
    train = train_config(cell)["train"] | {key: float(value)}
    model = make_train_plan(train_config(cell), CPU).model
    assert cell.tokens == count_steps(train, model) * train["batch_tokens"]
    assert cell.budget == f"{key}={float(value):g}"


def test_shapes_that_come_out_alike_are_trained_once() -> None:
    alike = ["sweep.grid.sizes=[6e5]", "sweep.grid.aspects=[19,19.2]", "sweep.families=[mobilellm]"]
    plan = make_plan(check_design(composed(*alike)["sweep"]))
    assert len(plan.cells) == 1
    assert plan.notes == ["1 cell has the same settings as another cell and will not be trained twice."]


def test_a_feed_forward_that_departs_from_the_rule_is_in_the_overrides() -> None:
    cells = cells_of("sweep.grid.sizes=[6e5,1.6e6]")
    departs = [cell for cell in cells if any(item.startswith("model.intermediate_size=") for item in cell.overrides)]
    assert departs
    for cell in departs:
        assert num_params(make_train_plan(train_config(cell), CPU).model) == cell.params_total


def test_what_cannot_be_trained_is_a_cell_that_says_why_and_the_rest_stay() -> None:
    cells = cells_of(*SMALL, "sweep.grid.widths=[64,100]", "sweep.seeds=[1,2]", "sweep.budget.tokens=[10000,1000]")
    said = [cell.impossible for cell in cells if cell.impossible]
    assert len(cells) - len(said) == 2
    assert said[0].startswith("train.tokens=1000 gives 1000 tokens, fewer than one step")
    assert said[1].startswith("width=100 is not a multiple of model.head_dim=32 of family=mobilellm: 96 or 128 would")
    assert len(said) == 2


def test_a_size_that_one_family_cannot_reach_is_replaced_in_all_by_the_nearest_that_all_can() -> None:
    design = ["sweep.families=[mobilellm,llama_wide]", "sweep.grid.sizes=[1e5,6e5]", "sweep.grid.tolerance=0.02"]
    plan = make_plan(check_design(composed(*design)["sweep"]))
    sizes = {
        family: [cell.params_total for cell in plan.cells if cell.family == family]
        for family in ("mobilellm", "llama_wide")
    }
    assert not any(cell.impossible for cell in plan.cells)
    for small, target in zip(zip(*sizes.values(), strict=True), (1e5, 6e5), strict=True):
        assert max(small) / min(small) < 1.05
        assert min(small) / target == pytest.approx(1, abs=0.05)
    (note,) = [note for note in plan.notes if note.startswith("Sizes replaced")]
    assert note.startswith("Sizes replaced by the nearest that all families can reach: 100,000 by ")
    assert note.endswith("(llama_wide cannot reach it).")
    assert "600,000" not in note


def test_a_size_out_of_reach_is_a_cell_that_says_so_if_it_may_not_be_replaced() -> None:
    design = ["sweep.families=[mobilellm,llama_wide]", "sweep.grid.sizes=[1e5,6e5]", "sweep.grid.out_of_reach=skip"]
    plan = make_plan(check_design(composed(*design)["sweep"]))
    (impossible,) = [cell for cell in plan.cells if cell.impossible]
    assert (impossible.family, impossible.impossible[:30]) == ("llama_wide", "no shape has 100,000 parameter")


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("'schedule=wsd','schedule.warmup_steps=9'", "leave room for schedule.warmup_steps=9 in a run of 10 steps"),
        ("'schedule.warmup_steps=10'", "schedule.warmup_steps=10 leaves no step after the warm-up of a 10-step run"),
    ],
)
def test_a_budget_too_short_for_the_schedule_is_impossible_as_train_py_says(schedule: str, said: str) -> None:
    overrides = f"sweep.overrides=[{schedule},'train.batch_tokens=1024']"
    short, long = cells_of(*SMALL, "sweep.budget.tokens=[10240,40960]", overrides)
    assert said in str(short.impossible)
    make_train_plan(train_config(long), CPU)
    with pytest.raises(ValueError, match=re.escape(str(short.impossible))):
        make_train_plan(train_config(replace(long, overrides=(*long.overrides, "train.tokens=10240"))), CPU)


def test_a_shape_that_cannot_be_rounded_is_impossible_as_train_py_says() -> None:
    shapes = ("sweep.grid.widths=[64,48]", "sweep.grid.depths=[2]", "sweep.also=['quantize=int4','model.head_dim=16']")
    good, bad = cells_of(*SMALL, *shapes, "sweep.families=[mobilellm]")
    assert (good.width, good.impossible) == (64, None)
    said = "quantize=int4 rounds weights in groups of 32, but layers.0.self_attn.q_proj has 48 inputs"
    assert str(bad.impossible).startswith(said)
    with pytest.raises(ValueError, match=said):
        make_train_plan(train_config(replace(good, overrides=(*good.overrides, "width=48"))), CPU)


KEYS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def _shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list):
        return [_shuffled(item, rng) for item in value]
    if isinstance(value, dict):
        keys = rng.sample(list(value), len(value))
        return {key: _shuffled(value[key], rng) for key in keys}
    return value


@settings(max_examples=50, deadline=None)
@given(values=st.dictionaries(st.text(max_size=4), KEYS, max_size=4), rng=st.randoms(use_true_random=False))
def test_a_hash_is_the_same_whatever_the_order_of_keys(values: dict, rng: random.Random) -> None:
    assert digest(_shuffled(values, rng)) == digest(values)


@settings(max_examples=50, deadline=None)
@given(one=KEYS, other=KEYS)
def test_different_values_have_different_hashes(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (repr(_sorted(one)) == repr(_sorted(other)))


def _sorted(value: Any) -> Any:
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return {key: _sorted(value[key]) for key in sorted(value)} if isinstance(value, dict) else value


def test_what_decides_a_run_decides_its_hash_and_nothing_else_does() -> None:
    (cell,) = cells_of(*SMALL)
    nothing = ("trainer=cpu", "trainer.precision=auto", "checkpoint.every_steps=7", "cache_dir=other")
    for same in nothing:
        (again,) = cells_of(*SMALL, f"sweep.overrides=['{same}']")
        assert again.key == cell.key
    changes = ["sweep.seeds=[2]", "sweep.lr.value=0.001", "sweep.budget.tokens=20000", "sweep.families=[mobilellm_ls]"]
    changes += [f"sweep.overrides=['{item}']" for item in ("train.log_every=3", "optim=adamw", "data.val_fraction=0.1")]
    changes += [f"sweep.overrides=['trainer.precision={kind}']" for kind in ("bf16-mixed", "64-true")]
    keys = {cells_of(*SMALL, change)[0].key for change in changes}
    assert len(keys | {cell.key}) == len(changes) + 1


def test_a_key_that_came_later_leaves_the_hash_of_runs_that_do_not_use_it() -> None:
    config = Recipe("mobilellm", ()).settings({})
    before = {**config, "train": {key: value for key, value in config["train"].items() if key != "val_tokens"}}
    for key in ("init_from", "init_vocab"):
        del before[key]
    assert run_key(config) == run_key(before)
    taught = Recipe("mobilellm", ("distill=logits", "distill.teacher=runs/a")).settings({})
    val_tokens = {**config, "train": {**config["train"], "val_tokens": 640}}
    assert len({run_key(before), run_key(val_tokens), run_key(taught)}) == 3


def test_designs_and_shapes_are_checked_without_torch() -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); from tests.sweep.designs import composed;"
        "from slm.sweep.design import check_design; from slm.sweep.recipe import Recipe;"
        f"check_design(composed(*{SMALL!r})['sweep']); Recipe('hybrid', ()).shape(128, 8);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep.families=[]"], r"sweep.families=\[\] must be a list of families"),
        (["sweep.families=[mamba]"], "Could not find 'family/mamba'"),
        (["sweep.families=[ssd,ssd]"], "sweep.families has ssd more than once"),
        (["sweep.grid.widths=[64]"], "sizes and widths are set: set the others to null"),
        (["sweep.grid.sizes=null"], "none of them is set"),
        (["sweep.grid.sizes=null", "sweep.grid.widths=[64]"], "only widths is set"),
        (["sweep.grid.sizes=null", "sweep.grid.shapes=[64]"], "sweep.grid.shapes=.* must be a list of WIDTHxDEPTH"),
        ([*SMALL, "sweep.grid.aspects=[16]"], "sweep.grid.aspects=.* needs sweep.grid.sizes"),
        (["sweep.grid.size=N"], "sweep.grid.size=N must be one of params_total, params_non_embedding"),
        (["sweep.grid.sizes=[1e6,-1]"], "sweep.grid.sizes=.* must be a list of numbers above 0"),
        (["sweep.budget.flops=1e12"], "sweep.budget must set exactly one of .* tokens and flops are set"),
        (["sweep.budget.tokens=null"], "none of them is set"),
        (["sweep.budget.tokens=[]"], r"sweep.budget.tokens=\[\] must be a number above 0, or a list of them"),
        (["sweep.lr.rule=best"], "sweep.lr.rule=best must be one of fixed, transferred, tuned"),
        (["sweep.lr.parametrization=null"], "sweep.lr.rule=transferred needs sweep.lr.parametrization"),
        (["sweep.lr.rule=fixed"], "sweep.lr.parametrization=completep needs sweep.lr.rule"),
        (["sweep.lr.value={mobilellm:0.01}"], "sweep.lr.value has rates for mobilellm, but sweep.families are mob.*"),
        (["sweep.lr.value={ssd:-1}"], "sweep.lr.value=.* must be a number above 0, or a mapping from family"),
        (["sweep.lr.rule=tuned"], "sweep.lr.rule=tuned needs sweep.lr.factors"),
        (["sweep.lr.rule=tuned", "sweep.lr.factors=[1,2]"], "3 or more numbers above 0"),
        (["sweep.lr.factors=[1,2,4]"], "needs sweep.lr.rule=tuned, but the rule is transferred"),
        (["sweep.lr.rule=fixed", "sweep.lr.parametrization=null", "sweep.lr.base_width=64"], "sweep.lr.base_width=64"),
        (["sweep.seeds=[1,1]"], "sweep.seeds has 1 more than once"),
        (["sweep.seeds=3"], "sweep.seeds=3 must be a list of whole numbers"),
        (["sweep.overrides=['seed=2']"], "sweep.overrides has seed=2, which the design sets: set sweep.seeds"),
        (["sweep.overrides=['train.tokens=2']"], "set sweep.budget instead"),
        (["sweep.overrides=['train']"], "sweep.overrides has 'train': an override of train.py has the form KEY=VALUE"),
        (
            ["sweep.also=['init_from=runs/a']"],
            "sweep.also has init_from=runs/a, but a sweep compares shapes, and a check",
        ),
        (["sweep.also=['seed=2']"], "sweep.also has seed=2, which the design sets: set sweep.seeds"),
        (["sweep.overrides=['train.tockens=2']"], "tockens"),
        (["sweep.overrides=['train.log_every=0']"], "train.log_every=0 must be a whole number of at least 1"),
        (["sweep.overrides=['data=local']"], "data.paths must be set"),
        (["sweep.evaluation=['data=wikitext2']"], "sweep.evaluation=.* must be a mapping of names to lists of over"),
        (["sweep.evaluation={a-b: []}"], "sweep.evaluation=.* must be a mapping"),
        (["sweep.evaluation={a: ['checkpoint=x']}"], "a has checkpoint=x, which the sweep sets itself: leave it out"),
        (["sweep.evaluation={a: ['chat=true']}"], "a has chat=true, which the sweep sets itself: leave it out"),
        (["sweep.evaluation={a: ['baselines=sub1b']}"], "a has baselines=sub1b, which the sweep sets itself"),
        (["sweep.evaluation={a: ['logger.mode=online']}"], "sweep.evaluation.a has logger.mode=online"),
        (["sweep.evaluation={a: ['quantize=[null,int4]']}"], "a has a list of quantize=..., and an evaluation of a sw"),
        (["sweep.evaluation={a: ['data=wiki']}"], "Could not find 'data/wiki'"),
        (["sweep.evaluation={a: ['task=piqa']}"], "task"),
        (["+sweep.sede=[1]"], "sweep.sede is not a key of a sweep; did you mean sweep.seeds"),
        (["sweep.assume.params=null"], "sweep.assume.params=null must be a mapping of numbers"),
        (["sweep.assume.sigma=0"], "sweep.assume.sigma=0 must be a number above 0"),
        (["sweep.grid.tolerance=0.05"], "sweep.grid.tolerance=0.05 must be a number above 0 and at most 0.02"),
        ([*SMALL, "sweep.grid.widths=[100]"], "no cell of sweep=quick can be trained: width=100"),
    ],
)
def test_a_design_that_is_wrong_is_one_sentence(overrides: list[str], said: str) -> None:
    with pytest.raises((ValueError, HydraException), match=said):
        cells_of(*overrides)


def test_an_experiment_that_sets_a_budget_of_its_own_is_refused() -> None:
    design = check_design(composed(*SMALL)["sweep"])
    with pytest.raises(ValueError, match=r"train.flops=1e\+18 is set by sweep.overrides"):
        make_plan(replace(design, overrides=("train.flops=1e18",)))


def test_questions_that_do_not_exist_are_named_before_a_job_starts() -> None:
    config = OmegaConf.create({"train": {"eval_tasks": {"quiz": "no/such.jsonl"}, "eval_task_limit": 10}})
    with pytest.raises(
        ValueError, match=r"^sweep\.overrides: train\.eval_tasks\.quiz='no/such\.jsonl' matches no file"
    ):
        check_inputs(config, "sweep.overrides")


def test_a_text_whose_name_would_be_a_glob_is_there(tmp_path: Path) -> None:
    (tmp_path / "book[1].txt").write_text("text")
    check_inputs(OmegaConf.create({"data": {"paths": [str(tmp_path / "book[1].txt"), str(tmp_path)]}}), "sweep.also")
    (tmp_path / "book.csv").write_text("text")
    with pytest.raises(ValueError, match=r"^sweep\.also: data\.val_paths: .*book\.csv is of an unknown kind"):
        check_inputs(OmegaConf.create({"data": {"val_paths": str(tmp_path / "*.csv")}}), "sweep.also")
