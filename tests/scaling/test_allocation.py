"""Budgets against published numbers, numeric minima and brute force."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from slm.scaling.allocation import (
    compute_optimal,
    cost,
    flops_to_reach,
    front_rows,
    isoflop,
    isoflop_bias,
    pareto_front,
)
from slm.scaling.forms import Floats

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
RNG = np.random.default_rng(0)

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


@settings(max_examples=40, deadline=None)
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
    assert best.numeric_params == pytest.approx(N, rel=1e-4)
    loss = law["E"] + law["A"] / N ** law["alpha"] + law["B"] / (flops / 6 / N) ** law["beta"]
    assert best.loss == pytest.approx(loss, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(law=laws, log_flops=st.floats(39, 58))
def test_the_flops_to_reach_a_loss_reach_just_it(law: dict[str, float], log_flops: float) -> None:
    wanted = compute_optimal(law, float(np.exp(log_flops))).loss
    needed = flops_to_reach("chinchilla", law, wanted)
    assert needed is not None
    assert np.log(needed) == pytest.approx(log_flops, abs=1e-6)
    assert flops_to_reach("chinchilla", law, law["E"]) is None
    assert flops_to_reach("chinchilla", law, law["E"] - 0.1) is None


def test_costs_are_hours_times_a_price() -> None:
    """An A100 at 40% of 312 TFLOP/s does 3.6e18 / 312e12 / 0.4 s of work in 8.01 hours."""
    found = cost(3.6e18, flops_per_second=0.4 * 312e12, price_per_hour=2.0)
    assert found.device_hours == pytest.approx(3.6e18 / (0.4 * 312e12) / 3600)
    assert found.price == pytest.approx(2 * found.device_hours)
    assert cost(3.6e18, flops_per_second=1e12).price is None


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


def parabolas(exponent: float, *, sizes: int = 7, budgets: int = 4, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """IsoFLOP profiles whose log loss is a parabola in log N, lowest at N = 1e8 (C / 1e18)^exponent."""
    rng, rows = np.random.default_rng(seed), []
    for C in np.geomspace(1e18, 1e20, budgets):
        best = np.log(1e8) + exponent * np.log(C / 1e18)
        for shift in np.linspace(-1.1, 0.9, sizes):  # not symmetric about the lowest
            N = float(np.exp(best + shift))
            log_loss = 1.1 - 0.02 * np.log(C / 1e18) + 0.03 * shift**2 + noise * rng.normal()
            rows.append({"family": "a", "N": N, "tokens": C / 6 / N, "flops": C, "loss": np.exp(log_loss)})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("exponent", [0.35, 0.5, 0.62])
def test_a_planted_exponent_is_recovered_from_exact_parabolas(exponent: float) -> None:
    found = isoflop(parabolas(exponent), "N", "loss", RNG, replicates=60)
    assert found is not None
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((exponent, exponent), abs=1e-5)
    for row, C in zip(found.budgets, np.geomspace(1e18, 1e20, 4), strict=True):
        assert row["params"] == pytest.approx(1e8 * (C / 1e18) ** exponent, rel=1e-5)
        assert row["flops"] == pytest.approx(C)
        assert row["tokens"] == pytest.approx(C / 6 / row["params"], rel=0.02)
        assert row["inside"]


def test_the_interval_of_an_isoflop_exponent_covers_it() -> None:
    inside = 0
    for seed in range(60):
        found = isoflop(parabolas(0.5, sizes=9, noise=0.001, seed=seed), "N", "loss", RNG, replicates=100)
        assert found is not None
        inside += found.low <= 0.5 <= found.high
    assert 50 <= inside <= 60


def test_a_lowest_point_outside_of_the_runs_is_marked() -> None:
    frame = parabolas(0.5, sizes=12)
    one_sided = frame[frame["N"] > 1.05 * 1e8 * np.sqrt(frame["flops"] / 1e18)]
    found = isoflop(one_sided, "N", "loss", RNG, replicates=0)
    assert found is not None
    assert not any(row["inside"] for row in found.budgets)


def test_too_few_sizes_or_budgets_give_no_isoflop_analysis() -> None:
    assert isoflop(parabolas(0.5, sizes=4), "N", "loss", RNG) is None
    assert isoflop(parabolas(0.5, budgets=1), "N", "loss", RNG) is None
    upside_down = parabolas(0.5)
    upside_down["loss"] = 10 - upside_down["loss"]
    assert isoflop(upside_down, "N", "loss", RNG) is None


def test_budgets_are_found_from_flops_that_differ_by_a_few_percent() -> None:
    frame = parabolas(0.5)
    near = frame.assign(flops=frame["flops"] * np.tile(np.linspace(0.99, 1.01, 7), 4)).sample(frac=1, random_state=0)
    found = isoflop(near, "N", "loss", RNG, replicates=0)
    assert found is not None
    assert [row["runs"] for row in found.budgets] == [7] * 4
    assert found.exponent == pytest.approx(0.5, abs=1e-6)
    labelled = near.assign(budget=frame["flops"])
    again = isoflop(labelled, "N", "loss", RNG, replicates=0)
    assert again is not None
    assert again.exponent == pytest.approx(found.exponent)


def chinchilla_profiles(law: dict[str, float], shift: float) -> pd.DataFrame:
    rows = []
    for C in np.geomspace(1e18, 1e21, 5):
        best = compute_optimal(law, C).params
        for factor in np.exp(np.linspace(-1.5 + shift, 1.5 + shift, 9)):
            rows.append({"N": best * factor, "tokens": C / 6 / (best * factor), "flops": C, "loss": 1.0})
    return pd.DataFrame(rows)


def by_polyfit(frame: pd.DataFrame, log_y: Floats) -> float:
    """Approach 2 written again: numpy's quadratic at each budget, and a line through the vertices."""
    tops = []
    for C, group in frame.assign(y=log_y).groupby("flops"):
        c, b, _ = np.polyfit(np.log(group["N"]), group["y"], 2)
        tops.append((np.log(float(str(C))), -b / (2 * c)))
    return float(np.polyfit(*np.transpose(tops), 1)[0])


@pytest.mark.parametrize("shift", [0.0, 1.2])
def test_the_bias_of_approach_2_is_its_error_on_exact_data_of_the_law(shift: float) -> None:
    law = HOFFMANN
    frame = chinchilla_profiles(law, shift)
    exact = law["E"] + law["A"] / frame["N"] ** law["alpha"] + law["B"] / frame["tokens"] ** law["beta"]
    true = law["beta"] / (law["alpha"] + law["beta"])
    expected = by_polyfit(frame, np.log(exact.to_numpy())) - true
    assert isoflop_bias(frame, "N", "loss", law) == pytest.approx(expected, abs=1e-6)
    assert (abs(expected) > 0.003) == (shift > 0)  # sizes that are not centred show how lopsided the curve is


def test_a_symmetric_law_with_centred_sizes_has_no_bias() -> None:
    law = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}
    assert isoflop_bias(chinchilla_profiles(law, 0.0), "N", "loss", law) == pytest.approx(0, abs=1e-6)


def test_the_flops_to_reach_a_loss_under_laws_in_compute_invert_them() -> None:
    assert flops_to_reach("power_C", {"A": 30.0, "alpha": 0.05}, 30.0 * 1e19**-0.05) == pytest.approx(1e19)
    floor = {"E": 1.7, "A": 2000.0, "alpha": 0.17}
    assert flops_to_reach("power_floor_C", floor, 1.7 + 2000.0 * 1e20**-0.17) == pytest.approx(1e20)
    assert flops_to_reach("power_floor_C", floor, 1.7) is None
