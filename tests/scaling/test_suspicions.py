"""What a table may not mean is said first, and tables that mean what they say are left in peace."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import pytest

from slm.scaling.tables import table_from_frame
from slm.scaling.tables.filters import expected_luck
from tests.seeds import generator

SIZES = (1.3e7, 3.1e7, 7.2e7, 1.6e8, 4.1e8, 1e9)
FAMILIES = {"a": 1.0, "b": 1.03}


def loss(N: float, D: float) -> float:
    return 1.69 + 406.4 / N**0.34 + 410.7 / D**0.28


def grid(row: Callable[[str, float, float], dict], budgets: Iterable[float] = (2e9, 8e9, 3.2e10)) -> pd.DataFrame:
    """A row for each family, size and budget, with what `row` adds or changes."""
    return pd.DataFrame(
        {"family": f, "N": N, "tokens": D, "loss": k * loss(N, D)} | row(f, N, D)
        for f, k in FAMILIES.items()
        for N in SIZES
        for D in budgets
    )


def rates(*values: float) -> pd.DataFrame:
    """A grid of learning rates at 20 tokens a parameter, best at 0.004."""
    rows = grid(lambda f, N, D: {"tokens": 20 * N, "loss": FAMILIES[f] * loss(N, 20 * N)}, [1.0])
    each = [rows.assign(lr=lr, loss=rows["loss"] * (1 + 0.02 * abs(math.log(lr / 0.004)))) for lr in values]
    return pd.concat(each, ignore_index=True)


def notes(rows: pd.DataFrame) -> list[str]:
    """What is said beside what is computed."""
    return [note for note in table_from_frame(rows).notes if "was computed" not in note]


CHECKPOINTS = grid(
    lambda f, N, s: {"tokens": N * s, "loss": FAMILIES[f] * loss(N, N * s), "step": 1000 * s, "Run": f"{f}-{N:.0f}"},
    range(1, 21),
)


def test_checkpoints_of_named_runs_are_told_from_runs() -> None:
    (said,) = notes(CHECKPOINTS)
    assert "checkpoints of 12 runs (a-13000000 has 20 of 240 rows)" in said
    assert "columns.run_id=Run" in said
    table = table_from_frame(CHECKPOINTS, columns={"run_id": "Run"})
    assert table.frame["cluster"].nunique() == 12
    assert not any("run_id" in note for note in table.notes)


def test_checkpoints_of_runs_without_a_name_are_told_by_their_step() -> None:
    (said,) = notes(CHECKPOINTS.drop(columns="Run"))
    assert all(words in said for words in ("differ in step", "columns.run_id=NAME", "where='step == 20000'"))


@pytest.mark.parametrize("named", ["Name", "run"])
def test_budgets_and_last_steps_of_runs_are_no_checkpoints(named: str) -> None:
    """An isoFLOP design has other steps at other budgets, and W&B exports the last step of each run."""
    assert notes(grid(lambda f, N, D: {"steps": D / 5e5})) == []
    last = grid(lambda f, N, D: {"_step": D / 5e5, named: f"{f}{N}{D}"})
    assert [note for note in notes(last) if "was read as name" not in note] == []


def test_a_grid_of_rates_offers_the_best_of_each() -> None:
    (said,) = notes(rates(0.001, 0.002, 0.004, 0.008, 0.016))
    assert "up to 5 values of lr" in said
    assert "best_of=lr" in said
    assert "1.16 times the scatter" in said  # the mean of the largest of five standard normal values is 1.163


def test_the_luck_of_the_best_of_a_few() -> None:
    """Harter 1961, table 1."""
    assert [expected_luck(k) for k in (1, 2, 3, 5, 10)] == pytest.approx(
        [0, 0.56419, 0.84628, 1.16296, 1.53875], abs=1e-3
    )


def test_the_best_of_a_grid_is_kept_with_all_its_seeds_and_its_luck_is_said() -> None:
    rng = generator(3)
    twice = pd.concat([rates(0.001, 0.004, 0.016).assign(seed=seed) for seed in (1, 2)], ignore_index=True)
    twice["loss"] *= np.exp(rng.normal(0, 0.002, len(twice)))
    table = table_from_frame(twice, best_of="lr")
    assert set(table.frame["lr"]) == {0.004}
    assert len(table.frame) == 2 * len(SIZES) * 2
    assert any("kept 24 of 72 rows" in note for note in table.notes)
    assert any("low by luck: by up to 0.85 times" in note for note in table.notes)
    assert not any("differ in a setting" in note for note in table.notes)


def test_the_best_is_chosen_by_the_mean_over_seeds_and_not_by_the_luckiest_run() -> None:
    rows = pd.DataFrame({"N": 1e8, "lr": [1e-3] * 2 + [2e-3] * 2, "loss": [3.0, 3.1, 2.9, 3.4]})
    kept = table_from_frame(rows.assign(tokens=2e9, seed=[1, 2] * 2), best_of=["lr"]).frame
    assert list(kept["loss"]) == [3.0, 3.1]


def test_of_runs_with_checkpoints_the_best_at_the_end_is_kept_with_all_its_rows() -> None:
    rows = pd.DataFrame({"N": 1e8, "lr": [1e-3] * 2 + [2e-3] * 2, "loss": [3.6, 3.0, 3.4, 3.1]})
    kept = table_from_frame(rows.assign(tokens=[1e9, 2e9] * 2, run_id=["slow"] * 2 + ["fast"] * 2), best_of="lr").frame
    assert list(kept["run_id"]) == ["slow", "slow"]


def test_another_setting_that_differs_is_another_grid() -> None:
    rows = pd.concat([rates(0.001, 0.004).assign(weight_decay=decay) for decay in (0.1, 0.01)], ignore_index=True)
    kept = table_from_frame(rows, best_of="lr").frame
    assert set(zip(kept["lr"], kept["weight_decay"], strict=True)) == {(0.004, 0.1), (0.004, 0.01)}
    assert "best_of=[lr,weight_decay]" in notes(rows)[0]


@pytest.mark.parametrize(("name", "said"), [("wd", "no such column; it has"), ("loss", "must be a setting")])
def test_the_best_of_what_was_not_tried_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"best_of={name}.*{said}"):
        table_from_frame(rates(0.001, 0.004), best_of=name)


def test_tokens_in_millions_are_suspicious_and_given_in_units_they_are_not() -> None:
    rows = grid(lambda f, N, D: {"tokens": D / 1e6})
    (said,) = notes(rows)
    assert "columns.tokens='tokens*1e6'" in said
    table = table_from_frame(rows, columns={"tokens": "tokens*1e6"})
    assert not any("Suspicious" in note for note in table.notes)


@pytest.mark.parametrize("unit", ["8.64e19", "1e18", "1e12"])
def test_flops_in_other_units_are_refused_with_the_remedy(unit: str) -> None:
    rows = grid(lambda f, N, D: {"flops": 6 * N * D / float(unit)})
    with pytest.raises(ValueError, match=rf"6 N D.*columns\.flops='flops\*{unit}'"):
        table_from_frame(rows)
    table = table_from_frame(rows, columns={"flops": f"flops*{unit}"})
    assert list(table.frame["flops"]) == pytest.approx(list(6 * rows["N"] * rows["tokens"]), rel=1e-12)


def test_flops_of_one_token_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"if it is per token, give columns\.flops='flops\*tokens'"):
        table_from_frame(grid(lambda f, N, D: {"flops": 6 * N}))


def test_flops_a_thousand_times_those_of_rows_alike_are_refused() -> None:
    rows = grid(lambda f, N, D: {"flops": 6 * N * D})
    rows.loc[4, "flops"] *= 1000
    with pytest.raises(ValueError, match=r"row 5, column flops: .* is 6000 N D and that of similar rows 6 N D"):
        table_from_frame(rows)


def test_flops_that_are_counted_exactly_or_of_experts_are_read() -> None:
    assert notes(grid(lambda f, N, D: {"flops": (6 + 14 * (1e7 / N) ** 0.3) * N * D})) == []
    experts = grid(lambda f, N, D: {"N": 64 * N, "flops": 6 * N * D})
    assert len(table_from_frame(experts).frame) == len(experts)
    assert any("flops are 0.0938 times N D" in note for note in notes(experts))


def test_small_counts_that_their_flops_vouch_for_are_counts() -> None:
    rows = pd.DataFrame({"N": [2100, 4000, 9000], "tokens": [4096] * 3, "loss": [5.2, 5.1, 5.0]})
    with pytest.raises(ValueError, match="too small for N"):
        table_from_frame(rows)
    assert len(table_from_frame(rows.assign(flops=6 * rows["N"] * rows["tokens"])).frame) == 3


@pytest.mark.parametrize(("params", "unit"), [([7, 13, 70], "1e9"), ([125, 350, 1300], "1e6")])
def test_sizes_in_millions_or_billions_are_refused_with_the_remedy(params: list[float], unit: str) -> None:
    rows = pd.DataFrame({"params": params, "tokens": 2e11, "loss": [2, 1.9, 1.7]})
    with pytest.raises(ValueError, match=rf"too small for N.*'params\*{unit}'"):
        table_from_frame(rows, columns={"N": "params"})
    table = table_from_frame(rows, columns={"N": f"params*{unit}"})
    assert list(table.frame["N"]) == [size * float(unit) for size in params]


def diverging(high: float) -> pd.DataFrame:
    rows = rates(0.001, 0.01, 0.03)
    return rows.assign(loss=rows["loss"].where(rows["lr"] < 0.03, high + rows.index % 6 / 5))


@pytest.mark.parametrize("high", [8.0, 9.0, 11.4])
def test_losses_far_above_those_of_lower_rates_are_of_runs_that_diverged(high: float) -> None:
    table = table_from_frame(diverging(high))
    assert set(table.frame["lr"]) == {0.001, 0.01}
    (said,) = (note for note in table.notes if "left out as diverged" in note)
    assert said.startswith("12 rows were left out as diverged: 25 (")


def test_a_low_rate_that_trained_too_little_did_not_diverge() -> None:
    rows = rates(1e-5, 0.01)
    rows["loss"] = rows["loss"].where(rows["lr"] == 0.01, 6.5)
    assert set(table_from_frame(rows).frame["lr"]) == {1e-5, 0.01}


def test_a_column_says_which_runs_diverged() -> None:
    rows = diverging(8.0)
    assert len(table_from_frame(rows.assign(diverged=False)).frame) == len(rows)
    said = rows.assign(diverged=["true" if N == 1e9 else "false" for N in rows["N"]])
    assert set(table_from_frame(said).frame["N"]) == {*SIZES} - {1e9}


def test_results_that_are_not_finite_of_runs_that_ended_are_of_runs_that_diverged() -> None:
    rows = pd.DataFrame({"N": [1e7, 2e7, 4e7], "loss": ["3.9", "NaN", "3.5"], "state": "finished"}, dtype=object)
    table = table_from_frame(rows)
    assert list(table.frame["N"]) == [1e7, 4e7]
    assert any("diverged: 2 (nan)" in note for note in table.notes)
    with pytest.raises(ValueError, match="row 2, column loss"):
        table_from_frame(rows.drop(columns="state"))


def test_a_target_that_rises_with_size_is_said_first() -> None:
    rising = grid(lambda f, N, D: {"loss": 0.2 + 0.05 * math.log10(N) + 0.02 * math.log10(D)} if f == "a" else {})
    said = table_from_frame(rising.assign(State="finished")).notes[0]
    assert said.startswith("The loss rises with N, at no fewer tokens, in 90 of 90 pairs of sizes of a:")
    assert not any("rises with N" in note for note in notes(grid(lambda f, N, D: {})))


def test_losses_that_fall_with_noise_do_not_rise() -> None:
    rng = generator(2)
    rows = grid(lambda f, N, D: {"tokens": 20 * N, "loss": loss(N, 20 * N) * math.exp(rng.normal(0, 0.02))}, [1.0])
    assert not any("rises with N" in note for note in notes(rows))
