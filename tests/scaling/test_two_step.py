"""The two-step law, against separate fits by scipy, simulated tables, and OLMo's models that its ladder predicts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from slm.scaling import Settings, Table, read_table, table_from_frame
from slm.scaling.bounded import Bounded, TaskLossLaw
from slm.scaling.fitting import fit_sample
from slm.scaling.prediction import new_run_sigma
from slm.scaling.sample import take_sample
from slm.scaling.targets import fitted_column, with_target
from slm.scaling.two_step import _scatter_at_own_loss, two_step
from tests.running import ROOT
from tests.seeds import generator

LADDER = ROOT / "results/olmo_ladder/ladder.csv"
K, HALF_WAY, CHANCE = 9.0, 0.85, 0.25


def accuracy(T: Any, half_way: float = HALF_WAY) -> Any:
    return CHANCE + (1 - CHANCE) / (1 + np.exp(K * (T - half_way)))


def frame(seed: int, *, sizes: int = 9, seeds: int = 1, half_way: float = HALF_WAY, family: str = "a") -> pd.DataFrame:
    """T = 0.6 + 50 N^-0.28 with 0.4% of scatter, and 2,000 questions answered at the accuracy that follows."""
    rng = generator(seed)
    N = np.repeat(np.geomspace(1e7, 1e9, sizes), seeds)
    T = (0.6 + 50 * N**-0.28) * np.exp(0.004 * rng.standard_normal(len(N)))
    acc = rng.binomial(2000, accuracy(T, half_way)) / 2000
    columns = {"params_total": N, "tokens": 1e10, "seed": np.tile(np.arange(seeds), sizes), "task_bpb": T, "acc": acc}
    return pd.DataFrame({"family": family, **columns})


def chained(rows: pd.DataFrame | Table, curves: bool = False, **changes: Any) -> dict[str, Any]:
    given = {"target": "acc", "target_kind": "accuracy", "chance": CHANCE, "task_loss": "task_bpb", "calibration": 50}
    settings = Settings(**given | {"predict": (2.0,)} | changes)
    table = rows if isinstance(rows, Table) else table_from_frame(rows, target="acc")
    found = two_step(with_target(table, settings), settings, table.sizes[0], generator(), curves=curves)
    assert found is not None
    return found


def test_tokens_in_proportion_to_size_are_one_effect_with_it() -> None:
    """No law can separate the two, so the chain is that of one budget."""
    rows, fixed = frame(1), chained(frame(1))["families"][0]
    in_proportion = chained(rows.assign(tokens=20 * rows["params_total"]))["families"][0]
    assert in_proportion["predictions"] == fixed["predictions"]


def test_the_chain_is_the_composition_of_two_fits_by_scipy() -> None:
    rows = frame(1)
    (family,) = chained(rows)["families"]
    x, T, error = np.log(rows["params_total"] / 1e8), rows["task_bpb"], 1 - rows["acc"]
    (floor, log_a, alpha), _ = optimize.curve_fit(
        lambda x, floor, log_a, alpha: np.log(floor + np.exp(log_a - alpha * x)), x, np.log(T), p0=(0.5, -1, 0.3)
    )
    (k, half_way), covariance = optimize.curve_fit(
        lambda T, k, half_way: np.arcsin(np.sqrt((1 - CHANCE) / (1 + np.exp(-k * (T - half_way))))),
        T,
        np.arcsin(np.sqrt(error)),
        p0=(5, 0.8),
    )
    first, second = family["steps"]
    assert [first["law"], second["law"]] == ["power_floor", "logistic_power"]
    assert first["params"]["E"] == pytest.approx(floor, rel=1e-3)
    assert first["params"]["alpha"] == pytest.approx(alpha, rel=1e-3)
    assert second["params"]["k"] == pytest.approx(k, rel=1e-3)
    assert second["se"]["k"] == pytest.approx(np.sqrt(covariance[0, 0]), rel=0.05)
    T_at_double = floor + np.exp(log_a - alpha * np.log(20))
    expected = 1 - (1 - CHANCE) / (1 + np.exp(-k * (T_at_double - half_way)))
    (row,) = family["predictions"]
    assert row["accuracy"]["centre"] == pytest.approx(expected, rel=1e-4)
    assert row["accuracy"]["low"] < expected < row["accuracy"]["high"]


def test_the_largest_size_is_predicted_as_by_a_table_without_it() -> None:
    rows = frame(2)
    (family,) = chained(rows)["families"]
    held_out = family["held_out"]
    assert held_out["N"] == pytest.approx(1e9)
    smaller = rows[rows["params_total"] < 0.99e9]
    largest_factor = 1e9 / smaller["params_total"].max()
    (without,) = chained(smaller, predict=(largest_factor,))["families"]
    assert [step["law"] for step in without["steps"]] == [step["law"] for step in family["steps"]]
    (row,) = held_out["rows"]
    assert row["accuracy"]["centre"] == pytest.approx(without["predictions"][0]["accuracy"]["centre"], rel=1e-6)
    assert row["measured"] == rows["acc"].iloc[-1]
    assert row["error"] == pytest.approx(row["accuracy"]["centre"] - row["measured"])
    assert row["inside"] is (row["accuracy"]["low"] <= row["measured"] <= row["accuracy"]["high"])


def test_families_that_differ_at_equal_task_loss_are_told_from_those_that_do_not() -> None:
    same = pd.concat([frame(3, sizes=7), frame(4, sizes=7, family="b")])
    moved = pd.concat([frame(3, sizes=7), frame(4, sizes=7, family="b", half_way=0.8)])
    assert chained(same)["shared"]["p"] > 0.05
    assert chained(moved)["shared"]["p"] <= 0.02  # 50 simulations: at least 0.0196


def test_seeds_of_a_size_are_one_point_of_both_steps() -> None:
    (family,) = chained(frame(5, sizes=7, seeds=3))["families"]
    assert [step["n_cells"] for step in family["steps"]] == [7, 7]
    assert [step["n_rows"] for step in family["steps"]] == [21, 21]


def test_too_few_sizes_have_a_reason_and_no_number() -> None:
    (family,) = chained(frame(6, sizes=2))["families"]
    assert "2 distinct sizes" in family["reason"]
    assert family["predictions"] is None and family["held_out"] is None  # noqa: PT018
    (family,) = chained(frame(6, sizes=4))["families"]
    assert not family["steps"][1]["identified"]


@pytest.mark.parametrize(("task", "chance", "measured"), [("hellaswag", 0.25, (0.8135, 0.8337))])
def test_the_ladder_predicts_olmos_7b_and_13b(task: str, chance: float, measured: tuple[float, float]) -> None:
    """Bhagia et al. 2024 predict HellaSwag of both within two points; here with intervals, from the same runs."""
    points = ({"N": 6887575552, "D": 3945065873408}, {"N": 13202396160, "D": 5e12})
    columns = {"target": f"{task}_acc", "task_loss": f"{task}_bpb", "chance": chance, "predict": points}
    found = chained(read_table(Path(LADDER)), **columns)
    (family,) = found["families"]
    assert found["laws"][0]["law"] == "chinchilla"
    for row, truth in zip(family["predictions"], measured, strict=True):
        assert row["accuracy"]["centre"] == pytest.approx(truth, abs=0.02)
        assert row["accuracy"]["low"] < truth < row["accuracy"]["high"]
        assert row["beyond"] > 1.05  # no run of the ladder had so low a task loss
    assert all(row["inside"] for row in family["held_out"]["rows"])


def test_the_scatter_of_seeds_in_task_loss_is_not_one_of_accuracies_too() -> None:
    """Accuracies follow from their own task losses without error, so only the means of cells are off the sigmoid."""
    rows = frame(7, seeds=3)
    settings = Settings(target="acc", target_kind="accuracy", chance=CHANCE, task_loss="task_bpb")
    table = with_target(table_from_frame(rows.assign(acc=accuracy(rows["task_bpb"])), target="acc"), settings)
    mean_T = table.frame.groupby("cell")["task_bpb"].transform("mean")
    table = replace(table, frame=table.frame.assign(p=np.exp(-mean_T)))
    law = Bounded(TaskLossLaw("p", has_floor=False), "logistic", CHANCE)
    runs = take_sample(table, law, fitted_column(settings), "", unit="run")
    fit = fit_sample(law.prepared_for(runs.log_x), runs.cell_means())
    of_seeds = runs.log_y - runs.cell_means().log_y[np.unique(runs.cells, return_inverse=True)[1]]
    assert new_run_sigma(fit, runs) > 0.8 * np.std(of_seeds)
    assert _scatter_at_own_loss(table, fit, settings) < 0.05 * np.std(of_seeds)
