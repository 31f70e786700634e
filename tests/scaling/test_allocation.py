"""Budgets against published numbers, numeric minima and brute force."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import optimize

from slm.scaling.allocation import (
    compute_optimal,
    cost,
    flops_to_reach,
    front_rows,
    numeric_optimum,
    pareto_front,
)
from slm.scaling.analysis import analyse
from slm.scaling.context import allocation_entries, references_entries, target_entries
from slm.scaling.entries import Entry, Fitted, Task, fit_group
from slm.scaling.laws import get_law
from slm.scaling.settings import Settings
from slm.scaling.solver import Loss
from slm.scaling.tables import Table, table_from_frame
from tests.seeds import generator

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}

laws = st.fixed_dictionaries(
    {
        "E": st.floats(0.5, 2.5),
        "A": st.floats(50, 2000),
        "B": st.floats(50, 5000),
        "alpha": st.floats(0.15, 0.6),
        "beta": st.floats(0.15, 0.6),
    }
)


def test_hoffmanns_constants_at_1e20_flops() -> None:
    best = compute_optimal(HOFFMANN, 1e20)
    assert best.params == pytest.approx(6.45e8, rel=1e-3)
    assert best.tokens == pytest.approx(2.59e10, rel=3e-3)  # 2.5846e10: C / 6 / N*
    assert 6 * best.params * best.tokens == pytest.approx(1e20)


@hypothesis_settings(max_examples=40, deadline=None)
@given(law=laws, log_flops=st.floats(39, 58))
def test_the_closed_form_is_the_least_loss_of_the_budget(law: dict[str, float], log_flops: float) -> None:
    flops = float(np.exp(log_flops))

    def slope(log_n: float) -> float:
        """dL/dlog N along N D = C / 6, by hand."""
        N = np.exp(log_n)
        D = flops / 6 / N
        return float(law["beta"] * law["B"] / D ** law["beta"] - law["alpha"] * law["A"] / N ** law["alpha"])

    best = compute_optimal(law, flops)
    N = np.exp(optimize.brentq(slope, -50, 100, xtol=1e-12))
    assert best.params == pytest.approx(N, rel=1e-6)
    numeric = numeric_optimum(get_law("chinchilla"), law, flops)
    assert (numeric.params, numeric.loss) == pytest.approx((N, best.loss), rel=1e-4)
    loss = law["E"] + law["A"] / N ** law["alpha"] + law["B"] / (flops / 6 / N) ** law["beta"]
    assert best.loss == pytest.approx(loss, rel=1e-9)


@hypothesis_settings(max_examples=30, deadline=None)
@given(law=laws, log_flops=st.floats(39, 58))
def test_the_flops_to_reach_a_loss_reach_just_it(law: dict[str, float], log_flops: float) -> None:
    wanted = compute_optimal(law, float(np.exp(log_flops))).loss
    needed = flops_to_reach("chinchilla", law, wanted)
    assert np.log(needed) == pytest.approx(log_flops, abs=1e-6)
    assert flops_to_reach("chinchilla", law, law["E"]) is None
    assert flops_to_reach("chinchilla", law, law["E"] - 0.1) is None


def test_costs_are_hours_times_a_price() -> None:
    """An A100 at 40% of 312 TFLOP/s does 3.6e18 / 312e12 / 0.4 s of work in 8.01 hours."""
    found = cost(3.6e18, flops_per_second=0.4 * 312e12, price_per_hour=2.0)
    assert found["device_hours"] == pytest.approx(3.6e18 / (0.4 * 312e12) / 3600)
    assert found["price"] == pytest.approx(2 * found["device_hours"])
    assert cost(3.6e18, flops_per_second=1e12)["price"] is None


def beaten(rows: list[tuple[float, ...]], one: tuple[float, ...]) -> bool:
    return any(
        all(x <= y for x, y in zip(other, one, strict=True)) and any(x < y for x, y in zip(other, one, strict=True))
        for other in rows
    )


@given(
    st.integers(1, 3).flatmap(
        lambda width: st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.5])] * width), min_size=1, max_size=20)
    )
)
def test_a_pareto_front_is_what_no_other_row_beats(rows: list[tuple[float, ...]]) -> None:
    assert pareto_front(np.array(rows)).tolist() == [not beaten(rows, one) for one in rows]


def test_fronts_of_columns_know_which_way_is_better() -> None:
    frame = pd.DataFrame({"loss": [3.0, 2.5, 2.5, 2.0], "speed": [9.0, 7.0, 8.0, 1.0], "N": [1, 2, 3, 4]})
    assert front_rows(frame, [("loss", 1), ("speed", -1)])["N"].tolist() == [1, 3, 4]


def test_the_flops_to_reach_a_loss_under_laws_in_compute_invert_them() -> None:
    assert flops_to_reach("power_C", {"A": 30.0, "alpha": 0.05}, 30.0 * 1e19**-0.05) == pytest.approx(1e19)
    floor = {"E": 1.7, "A": 2000.0, "alpha": 0.17}
    assert flops_to_reach("power_floor_C", floor, 1.7 + 2000.0 * 1e20**-0.17) == pytest.approx(1e20)
    assert flops_to_reach("power_floor_C", floor, 1.7) is None


def test_the_optimum_of_kaplans_law_is_where_its_slope_along_the_budget_is_zero() -> None:
    """(N_c/N)^a + D_c u N / C with a = alpha_N / alpha_D is least at N = (a N_c^a C / (D_c u))^(1/(1+a))."""
    law = {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}
    a = law["alpha_N"] / law["alpha_D"]
    N = (a * law["N_c"] ** a * 1e21 / (law["D_c"] * 7)) ** (1 / (1 + a))
    best = numeric_optimum(get_law("kaplan_joint"), law, 1e21, unit=7)
    assert best.params == pytest.approx(N, rel=1e-5)
    assert best.tokens == pytest.approx(1e21 / 7 / N, rel=1e-5)


def grid(unit: float = 6.0, *, noise: float = 0.002, largest: float = 2e9) -> Table:
    """A 6 x 5 grid of N and D under a known law, whose FLOPs are `unit` N D."""
    rng = generator(2)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, largest, 6), np.geomspace(1e9, 1e11, 5)))
    loss = (1.8 + 480 / N**0.35 + 2000 / D**0.36) * np.exp(noise * rng.standard_normal(len(N)))
    frame = pd.DataFrame({"family": "a", "params_total": N, "tokens": D, "flops": unit * N * D, "loss": loss})
    return table_from_frame(frame, name="grid")


def fitted(table: Table, *laws: str) -> dict[str, dict[str, Fitted]]:
    """Least-squares fits of the laws to the loss, as `analyse` passes them on."""
    rng, least = generator(), Loss(np.inf)
    plain = Settings(bootstrap=0)
    return {
        law: fit_group(table, Task(get_law(law), "loss", "params_total", least), plain, rng, thorough=False)
        for law in laws
    }


def test_the_compute_for_a_loss_is_counted_as_the_table_counts_flops() -> None:
    """Twice the FLOPs a parameter and token, and nothing else: twice the FLOPs for any loss."""
    found = []
    for unit in (6.0, 12.0):
        table = grid(unit)
        (row,) = target_entries(table, fitted(table, "chinchilla"), Settings(target_loss=2.5), "loss", "params_total")
        found.append(row)
    assert found[1]["flops"] == pytest.approx(2 * found[0]["flops"], rel=1e-6)
    assert found[1]["beyond"] == pytest.approx(found[0]["beyond"], rel=1e-6)


def test_a_loss_that_no_run_reached_and_laws_that_contradict_each_other_are_marked() -> None:
    table = grid()
    primary, lowest = fitted(table, "chinchilla", "power_C"), float(table.frame["loss"].min())
    ask = lambda loss: target_entries(table, primary, Settings(target_loss=loss), "loss", "params_total")  # noqa: E731
    within, beyond = ask(2.6), ask(0.95 * lowest)
    cheapest = table.frame["flops"][table.frame["loss"] <= 2.6].min()
    assert [row["reached_with"] for row in within] == [cheapest] * 2
    assert [(row["reached_with"], row["lowest_loss"]) for row in beyond] == [(None, lowest)] * 2
    a, b = (row["flops"] for row in beyond)
    assert beyond[0]["laws_apart"] == pytest.approx(max(a, b) / min(a, b))
    assert beyond[0]["beyond"] == pytest.approx(a / table.frame["flops"].max())


def test_optima_beyond_the_largest_run_are_marked_with_the_factor() -> None:
    table = grid(largest=3e8)
    (row,) = allocation_entries(table, fitted(table, "chinchilla"), Settings(), "loss", "params_total")
    at, ten, hundred = row["budgets"]
    law = fitted(table, "chinchilla")["chinchilla"]["a"].entry["params"]
    N = compute_optimal(law, 100 * table.frame["flops"].max(), unit=6).params
    assert hundred["beyond"]["params"] == pytest.approx(N / 3e8)
    assert hundred["beyond"]["flops"] == pytest.approx(100)
    assert "flops" not in at["beyond"]
    assert "params" in ten["beyond"] or ten["params"] <= 3e8


def test_a_floor_above_a_loss_that_was_reached_gives_no_optimum() -> None:
    table = grid()
    primary = fitted(table, "chinchilla")
    floor = primary["chinchilla"]["a"].entry["params"]["E"]
    frame = table.frame.copy()
    frame.loc[0, "loss"] = 0.9 * floor
    lower = Table(frame, table.notes, table.name)
    (row,) = allocation_entries(lower, primary, Settings(), "loss", "params_total")
    assert row["contradicts"] == [f"its floor is {floor:.4g}, and a run has reached {0.9 * floor:.4g}"]
    assert row["budgets"] == []
    (sound,) = allocation_entries(table, primary, Settings(), "loss", "params_total")
    assert sound["contradicts"] == []


def references(sizes: np.ndarray, tokens: float = 1e10) -> tuple[list[Entry], list[Entry]]:
    rng = generator()
    N = np.repeat(sizes, 2)
    loss = 20 * N**-0.1 * np.exp(0.003 * rng.standard_normal(len(N)))
    frame = pd.DataFrame({"params_total": N, "tokens": tokens, "loss": loss, "seed": np.tile([1, 2], len(sizes))})
    table = table_from_frame(frame.assign(family="a"), name="t")
    found = analyse(table, Settings(laws=("power",), bootstrap=0, calibration=0, unit="cell"))
    return found.fits, references_entries(table, "params_total", found.fits)


def test_a_reference_is_marked_outside_its_range_and_left_out_far_outside() -> None:
    """Hoffmann et al. trained models from 70M to 16B on 5B to 500B tokens, Kaplan et al. from 768 to 1.5B."""
    _, near = references(np.geomspace(3.5e7, 7e8, 6))
    by = {row["reference"]: row for row in near if row["target"] == "loss"}
    assert by["Hoffmann 2022"]["outside_range"]["N"]["factor"] == pytest.approx(2)
    assert not by["Hoffmann 2022"]["left_out"]
    assert by["Kaplan 2020, L(N)"]["outside_range"] == {}
    _, small = references(np.geomspace(5e4, 5e6, 6))
    far = {row["reference"]: row for row in small if row["target"] == "loss"}
    assert far["Hoffmann 2022"]["left_out"]
    assert (far["Hoffmann 2022"]["curve"], far["Hoffmann 2022"]["reference_exponent"]) == (None, None)
    assert far["Kaplan 2020, L(N)"]["reference_exponent"] == pytest.approx(0.076)


def test_one_exponent_has_one_interval_in_fits_and_beside_references() -> None:
    fits, rows = references(np.geomspace(1e8, 2e9, 6))
    for row in rows:
        (entry,) = [e for e in fits if (e["law"], e["target"], e["loss"]) == ("power", row["target"], "least_squares")]
        assert [row["ci_low"], row["ci_high"]] == entry["ci95"]["alpha"]
        assert row["exponent"] == entry["params"]["alpha"]
    assert {row["target"] for row in rows} == {"loss", "perplexity"}
