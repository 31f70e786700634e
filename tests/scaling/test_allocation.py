"""Budgets against published numbers, numeric minima and brute force."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import optimize

from slm.scaling import Loss, Settings, Table, analyse, get_law, table_from_frame
from slm.scaling.allocation import (
    compute_optimal,
    cost,
    flops_to_reach,
    lifetime_optimum,
    numeric_optimum,
    pareto_front,
)
from slm.scaling.context import allocation_entries, pareto_entries, references_entries, target_entries
from slm.scaling.entries import Entry, Fitted, Task, fit_group
from tests.scaling.samples import CHINCHILLA, HOFFMANN, TRUE
from tests.seeds import generator

RANGES = {"E": (0.5, 2.5), "A": (50, 2000), "B": (50, 5000), "alpha": (0.15, 0.6), "beta": (0.15, 0.6)}
VALUES = st.sampled_from([0.0, 1.0, 2.0, 3.5])
laws = st.fixed_dictionaries({name: st.floats(*ends) for name, ends in RANGES.items()})


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
    numeric = numeric_optimum(CHINCHILLA, law, flops)
    assert (numeric.params, numeric.loss) == pytest.approx((N, best.loss), rel=1e-4)
    loss = law["E"] + law["A"] / N ** law["alpha"] + law["B"] / (flops / 6 / N) ** law["beta"]
    assert best.loss == pytest.approx(loss, rel=1e-9)


@hypothesis_settings(max_examples=30, deadline=None)
@given(law=laws, log_flops=st.floats(39, 58))
def test_the_flops_to_reach_a_loss_reach_just_it(law: dict[str, float], log_flops: float) -> None:
    reached = compute_optimal(law, float(np.exp(log_flops))).loss
    assert np.log(flops_to_reach("chinchilla", law, reached)) == pytest.approx(log_flops, abs=1e-6)
    assert flops_to_reach("chinchilla", law, law["E"]) is None
    assert flops_to_reach("chinchilla", law, law["E"] - 0.1) is None


@hypothesis_settings(max_examples=30, deadline=None)
@given(law=laws, log_flops=st.floats(39, 58), log_served=st.floats(0, 40))
def test_the_optimum_with_serving_is_that_of_a_grid(law: dict[str, float], log_flops: float, log_served: float) -> None:
    loss, served = compute_optimal(law, float(np.exp(log_flops))).loss, float(np.exp(log_served))
    best = lifetime_optimum(law, loss, served)
    assert best is not None
    assert law["E"] + law["A"] / best.params ** law["alpha"] + law["B"] / best.tokens ** law["beta"] == pytest.approx(
        loss
    )
    N = best.params * np.exp(np.linspace(-3, 3, 60_001))
    left = loss - law["E"] - law["A"] / N ** law["alpha"]
    D = (law["B"] / np.where(left > 0, left, np.nan)) ** (1 / law["beta"])
    assert np.nanmin(6 * N * D + 2 * N * served) >= best.flops * (1 - 1e-9)


@hypothesis_settings(max_examples=30, deadline=None)
@given(law=laws, log_flops=st.floats(39, 58))
def test_without_serving_the_optimum_is_the_closed_form(law: dict[str, float], log_flops: float) -> None:
    best = compute_optimal(law, float(np.exp(log_flops)))
    alone = lifetime_optimum(law, best.loss, 0.0)
    assert alone is not None
    assert (alone.params, alone.tokens, alone.flops) == pytest.approx((best.params, best.tokens, best.flops), rel=1e-6)
    assert lifetime_optimum(law, law["E"], 1e12) is None


def test_more_serving_makes_the_model_smaller_and_the_training_longer() -> None:
    """Sardana et al. 2023, section 2: demand pushes to fewer parameters and more tokens."""
    loss = compute_optimal(HOFFMANN, 1e20).loss
    sizes, tokens = zip(
        *((o.params, o.tokens) for d in (0, 1e10, 1e12, 1e14) if (o := lifetime_optimum(HOFFMANN, loss, d))),
        strict=True,
    )
    assert list(sizes) == sorted(sizes, reverse=True)
    assert list(tokens) == sorted(tokens)


def test_serving_is_answered_only_where_the_law_is_identified() -> None:
    rng = generator()
    N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
    loss = (1.7 + 400 / N**0.34 + 410 / D**0.28) * np.exp(0.002 * rng.standard_normal(len(N)))
    table = table_from_frame(pd.DataFrame({"params_total": N, "tokens": D, "loss": loss}))
    settings = Settings.from_dict({"laws": ["chinchilla"], "bootstrap": 100, "targets": ["loss"],
                                   "served_tokens": 1e12, "training_flops": 1e20})  # fmt: skip
    (row,) = analyse(table, settings).comparison["lifetime"]
    law = {"E": 1.7, "A": 400, "B": 410, "alpha": 0.34, "beta": 0.28}
    truth = lifetime_optimum(law, compute_optimal(law, 1e20).loss, 1e12)
    assert truth is not None
    assert row["params_interval"][0] / 1.5 < truth.params < row["params_interval"][1] * 1.5
    assert row["best"]["flops"] < row["alone_flops"]
    one_budget = table_from_frame(pd.DataFrame({"params_total": N[:6], "tokens": 1e9, "loss": loss[:6]}))
    settings = Settings.from_dict(
        {"laws": ["power", "chinchilla"], "bootstrap": 0, "served_tokens": 1e12, "target_loss": 3.0}
    )
    (row,) = analyse(one_budget, settings).comparison["lifetime"]
    assert "do not identify" in row["refused"]


def test_costs_are_hours_times_a_price() -> None:
    """An A100 at 40% of 312 TFLOP/s does 3.6e18 / 312e12 / 0.4 s of work in 8.01 hours."""
    costs = cost(3.6e18, 0.4 * 312e12, 2.0)
    assert costs["device_hours"] == pytest.approx(3.6e18 / (0.4 * 312e12) / 3600)
    assert costs["price"] == pytest.approx(2 * costs["device_hours"])  # type: ignore[operator]
    assert cost(3.6e18, 1e12, None)["price"] is None
    assert cost(3.6e18, None, None) == {}


@given(st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[VALUES] * width), min_size=1, max_size=20)))
def test_a_pareto_front_is_what_no_other_row_beats(rows: list[tuple[float, ...]]) -> None:
    table = np.array(rows)
    no_worse, better = (table[:, None] <= table).all(axis=2), (table[:, None] < table).any(axis=2)
    assert pareto_front(table).tolist() == (~(no_worse & better).any(axis=0)).tolist()


def test_fronts_of_columns_know_which_way_is_better() -> None:
    columns = {"loss": [3.0, 2.5, 2.5, 2.0], "params_total": [4e6, 2e6, 3e6, 5e6]}
    columns |= {"tokens_per_second": [9.0, 7.0, 8.0, 1.0]}
    table = table_from_frame(pd.DataFrame(columns | {"family": "one", "tokens": 1e9}))
    fronts = {front["against"]: front["front"] for front in pareto_entries(table, "loss", "params_total")}
    assert [row["loss"] for row in fronts["tokens_per_second"]] == [2.0, 2.5, 3.0]
    assert [row["tokens_per_second"] for row in fronts["tokens_per_second"]] == [1.0, 8.0, 9.0]
    assert [row["params_total"] for row in fronts["params_total"]] == [2e6, 5e6]


def test_a_front_compares_means_over_seeds_so_that_no_lucky_seed_is_on_it() -> None:
    """The smaller cell has the best and the worst run; its mean, 2.5, is above the 2.4 of the larger one's mean."""
    columns = {"params_total": [1e6, 1e6, 2e6, 2e6], "loss": [2.2, 2.8, 2.3, 2.5], "seed": [1, 2, 1, 2], "width": 64}
    table = table_from_frame(pd.DataFrame(columns | {"family": "one", "tokens": 1e9, "depth": 4}))
    front = pareto_entries(table, "loss", "params_total")[0]
    assert [(row["params_total"], row["loss"]) for row in front["front"]] == [(1e6, 2.5), (2e6, 2.4)]
    assert {(row["family"], row["width"], row["depth"], row["runs"]) for row in front["front"]} == {("one", 64, 4, 2)}


def test_the_flops_to_reach_a_loss_under_laws_in_compute_invert_them() -> None:
    assert flops_to_reach("power_C", {"A": 30.0, "alpha": 0.05}, 30.0 * 1e19**-0.05) == pytest.approx(1e19)
    floor = {"E": 1.7, "A": 2000.0, "alpha": 0.17}
    assert flops_to_reach("power_floor_C", floor, 1.7 + 2000.0 * 1e20**-0.17) == pytest.approx(1e20)
    assert flops_to_reach("power_floor_C", floor, 1.7) is None


def test_the_optimum_of_kaplans_law_is_where_its_slope_along_the_budget_is_zero() -> None:
    """(N_c/N)^a + D_c u N / C with a = alpha_N / alpha_D is least at N = (a N_c^a C / (D_c u))^(1/(1+a))."""
    law = TRUE["kaplan_joint"]
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
    rng, plain = generator(), Settings(bootstrap=0)
    tasks = {law: Task(get_law(law), "loss", "params_total", Loss(np.inf)) for law in laws}
    return {law: fit_group(table, task, plain, rng, thorough=False) for law, task in tasks.items()}


def test_the_compute_for_a_loss_is_counted_as_the_table_counts_flops() -> None:
    """Twice the FLOPs a parameter and token, and nothing else: twice the FLOPs for any loss."""
    settings, tables = Settings(target_loss=2.5), [grid(unit) for unit in (6.0, 12.0)]
    (once,), (twice,) = (target_entries(t, fitted(t, "chinchilla"), settings, "loss", "params_total") for t in tables)
    assert twice["flops"] == pytest.approx(2 * once["flops"], rel=1e-6)
    assert twice["beyond"] == pytest.approx(once["beyond"], rel=1e-6)


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
    lower = table.frame["loss"].where(table.frame.index > 0, 0.9 * floor)
    lower = Table(table.frame.assign(loss=lower), table.notes, table.name)
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
    sizes = (np.geomspace(3.5e7, 7e8, 6), np.geomspace(5e4, 5e6, 6))
    near, far = ({row["reference"]: row for row in references(N)[1] if row["target"] == "loss"} for N in sizes)
    assert near["Hoffmann 2022"]["outside_range"]["N"]["factor"] == pytest.approx(2)
    assert not near["Hoffmann 2022"]["left_out"]
    assert near["Kaplan 2020, L(N)"]["outside_range"] == {}
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
