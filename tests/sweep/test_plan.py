"""What a dry run says: durations by measured speeds, power by closed form, cells and costs that add up."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from slm.sweep.cells import Cell
from slm.sweep.config import check_settings
from slm.sweep.forecast import Power, Speeds, find_power, read_speeds, remember_speeds
from slm.sweep.run import run_sweep
from tests.scaling.samples import slope_and_error
from tests.seeds import seeded
from tests.sweep.designs import SMALL, composed

ASSUME = {"law": "power", "params": {"A": 20, "alpha": 0.1}, "sigma": 0.01, "misfit": 0.006, "own_misfit": 0.02}
ASSUME |= {"more_seeds": 2}
SIZES = [200_000, 600_000, 1_600_000, 4_000_000]


def cell(family: str, params: int, **changes: object) -> Cell:
    name = f"{family}-{params}"
    made = Cell(
        name=name, key=name, overrides=(), family=family, width=64, depth=4, seed=1, tokens=1000, lr=0.01,
        params_total=params, params_non_embedding=params, flops=6000.0 * params,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


TWO_FAMILIES = [cell(family, params) for family in "ab" for params in SIZES]


def power(cells: list[Cell], seeds: int, assume: dict = ASSUME) -> Power:
    """The power of families whose size is the total of their parameters."""
    found = find_power(cells, num_seeds=seeds, assume=assume, size="params_total", power=0.8, level=0.95)
    assert found is not None
    return found


def test_families_of_the_same_sizes_are_told_apart_by_their_ratio_as_often_as_is_said() -> None:
    """By simulation: sizes deviate from a law by 5% in all families alike, and by 0.6% in the ratio of two."""
    found = power(TWO_FAMILIES, seeds=2)
    assert found.size_mismatch == 0
    rng = np.random.default_rng(seeded())
    shape = (20_000, len(SIZES))
    shared = 0.05 * rng.standard_normal(shape)
    a, b = (shared + 0.01 * rng.standard_normal((*shape, 2)).mean(-1) for _ in range(2))
    ratio = a + 0.006 * rng.standard_normal(shape) - b
    slope, error = slope_and_error(np.log(SIZES), ratio - found.detectable[2] * np.log(SIZES))
    rejected = (np.abs(slope / error) > stats.t.ppf(0.975, len(SIZES) - 2)).mean()
    assert rejected == pytest.approx(0.8, abs=0.01)
    assert found.detectable[2] > found.detectable[3] > found.detectable[4]


def test_families_of_other_sizes_are_compared_each_about_its_own_law() -> None:
    """By simulation of Welch's test: each size deviates from its family's law by 2%, whatever the seeds."""
    sizes = {"a": SIZES, "b": [int(1.3 * size) for size in SIZES]}
    cells = [cell(family, params) for family in "ab" for params in sizes[family]]
    found = power(cells, seeds=2)
    assert found.size_mismatch is None
    rng = np.random.default_rng(seeded())
    slopes, errors = [], []
    for family, difference in (("a", 0.0), ("b", found.detectable[2])):
        x = np.log(sizes[family])
        scatter = rng.standard_normal((20_000, 4)) * math.hypot(0.02, 0.01 / math.sqrt(2))
        slope, error = slope_and_error(x, scatter - difference * x)
        slopes.append(slope)
        errors.append(error)
    df = (errors[0] ** 2 + errors[1] ** 2) ** 2 / (errors[0] ** 4 / 2 + errors[1] ** 4 / 2)
    rejected = np.abs(slopes[0] - slopes[1]) / np.hypot(*errors) > stats.t.ppf(0.975, df)
    assert rejected.mean() == pytest.approx(0.8, abs=0.01)
    assert found.detectable[4] > 0.9 * found.detectable[2]  # seeds do not average the misfit away


def test_sizes_that_one_family_lacks_are_left_out_of_its_pairs_and_the_worst_pair_counts() -> None:
    five = [cell(family, params) for family in "ab" for params in (*SIZES, 9_000_000)]
    found = power([*five, *(cell("c", params) for params in SIZES)], seeds=1)
    alone = power(TWO_FAMILIES, seeds=1)
    assert (found.size_mismatch, found.num_pairs, alone.num_pairs) == (0, 3, 1)
    assert found.detectable[1] > alone.detectable[1]  # the same four sizes, of three pairs
    assert found.advice is not None
    assert found.advice.sizes_now == 4


def test_three_sizes_are_too_few_to_be_paired() -> None:
    assert power([one for one in TWO_FAMILIES if one.params_total < SIZES[3]], seeds=1).size_mismatch is None


def test_too_few_shapes_tell_nothing_and_impossible_ones_do_not_count() -> None:
    few = [cell("a", SIZES[0]), cell("a", 0, impossible="too small")]
    assert power(few, seeds=1).detectable == {1: None, 2: None, 3: None}
    assert find_power(few[1:], num_seeds=1, assume=ASSUME, size="params_total", power=0.8, level=0.95) is None


@pytest.mark.parametrize("changes", [{"law": "cubic"}, {"params": {"A": 20}}])
def test_an_assumption_that_is_none_is_named(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"sweep\.assume\.law"):
        power(TWO_FAMILIES, seeds=1, assume=ASSUME | changes)


def test_durations_go_by_the_nearest_shape_of_the_family_that_was_trained_here(tmp_path: Path) -> None:
    assert read_speeds(tmp_path, 1e9).seconds(cell("a", 10**6)) == pytest.approx(6.0)
    row = {"width": 64, "depth": 4, "tokens": 1000, "steps": 50}
    remember_speeds(tmp_path, [row | {"family": "a", "flops": 6e9, "tokens_per_second": 500.0}])
    remember_speeds(tmp_path, [row | {"family": "b", "width": 32, "flops": 6e8, "tokens_per_second": 100.0}])
    speeds = read_speeds(tmp_path, 1e9)
    assert speeds.seconds(cell("a", 10**6)) == pytest.approx(2.0)  # 1,000 tokens at 500 a second
    assert speeds.seconds(cell("a", 10**5)) == pytest.approx(0.2)
    assert speeds.seconds(cell("c", 10**5)) == pytest.approx(10.0)  # the nearest of any family: b's
    assert "2 shapes" in speeds.source
    remember_speeds(tmp_path, [row | {"family": "d", "flops": 6e9, "tokens_per_second": 9.0, "steps": 9}])
    assert "2 shapes" in read_speeds(tmp_path, 1e9).source  # a run so short says little
    remember_speeds(tmp_path, [row | {"family": "a_ls", "flops": 5e8, "tokens_per_second": 1.0}])
    assert read_speeds(tmp_path, 1e9).seconds(cell("a", 10**5)) == pytest.approx(0.2)
    (tmp_path / "speeds.json").write_text('{"a": [1')
    assert read_speeds(tmp_path, 1e9) == Speeds({}, 1e9)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("launcher=slurm", "launcher.array_parallelism=2"), "2 at a time"),
        (("launcher=ray", "launcher.cpus_per_job=3"), "2 at a time"),
        (("launcher=ray", "launcher.address=auto"), "4 at a time"),
    ],
)
def test_a_dry_run_says_how_many_jobs_an_engine_runs_at_a_time_before_it_is_asked_to(
    overrides: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slm.sweep.launchers.slurm.Submitit", lambda settings, folder: None)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(remote=lambda **resources: lambda function: function))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(7)))
    assert run_sweep(check_settings(composed(*SMALL, "sweep.seeds=[1,2,3,4]", *overrides, "dry_run=true"))) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ("data.paths=nix", r"sweep\.overrides: data\.paths='nix' "),
        ("tokenizer.path=/nix", r"sweep\.overrides: tokenizer\.path='/nix' does not exist"),
    ],
)
def test_a_plan_of_what_is_not_there_is_refused_as_the_sweep_would_be(also: str, said: str, text_file: Path) -> None:
    given = ["data=local", f"data.paths={text_file}", "tokenizer=file", "tokenizer.path=some/hub-id", also]
    listed = ",".join(f"'{item}'" for item in given)
    with pytest.raises(ValueError, match=said):
        run_sweep(check_settings(composed(*SMALL, f"sweep.also=[{listed}]", "dry_run=true")))


def test_a_dry_run_prints_cells_cost_power_and_what_is_impossible_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ("sweep.grid.widths=[64,96,100,128]", "sweep.seeds=[1,2]", "sweep.overrides=['cache_dir=cache']")
    changes += ("sweep.evaluation={wiki: ['data=wikitext2']}", "launcher.slots=3")
    config = composed(*SMALL, *changes, "dry_run=true", "sweep.assume.flops_per_second=1e10")
    assert run_sweep(check_settings(config)) == 0
    said = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    for text in (
        *("sweep quick: 6 runs, in sweeps/quick-", "mobilellm  128x4  1,311,872", "impossible   mobilellm_100x4-"),
        *("width=100 is not a multiple of model.head_dim=32", "3 at a time", "at an assumed 1e+10 FLOP/s per job"),
        *("evaluation   wiki, 6 runs (data=wikitext2)", "with 3 seeds", "half of it, ", "more seeds do not suffice"),
        "in alpha between two families is found in 80% of cases (1 pair tested)",
        "by an unpaired test",  # they have three sizes
    ):
        assert text in said
