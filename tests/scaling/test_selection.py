"""Which law is chosen for simulated tables, and whether an order of families survives, from entries written by hand."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from slm.scaling import Settings, Table, get_law, table_from_frame
from slm.scaling.entries import Task, fit_group
from slm.scaling.selection import choose_law, rankings, survival, weigh
from tests.scaling.samples import FLOOR, POWER, runs
from tests.seeds import generator

FAMILIES = ("a", "b", "c")
SIZES = np.round(np.geomspace(1.5e7, 1.3e9, 6))
QUICK: dict[str, Any] = {"laws": ("power", "power_floor"), "targets": ("loss",), "bootstrap": 0, "calibration": 0}


def entries(law: str, alphas: dict[str, float], **changes: Any) -> list[dict[str, Any]]:
    """Entries of one fit of every family; `changes` are common to all of them."""
    common = {"law": law, "target": "loss", "size": "N", "loss": "least_squares", "sigma_log": 0.01, "identified": True}
    common |= {"exponents": ["alpha"], "variables": list(get_law(law).variables)} | changes
    return [common | {"family": name, "params": {"alpha": value}} for name, value in alphas.items()]


FIRST = {"a": 0.3, "b": 0.2, "c": 0.1}
SWAPPED = {"a": 0.2, "b": 0.3, "c": 0.1}


def survives(*groups: list[dict[str, Any]]) -> dict[str, Any]:
    every = rankings([entry for group in groups for entry in group], FAMILIES)
    return survival(every, every[0], FAMILIES)


def test_families_are_ranked_from_the_steepest_down() -> None:
    (one,) = rankings(entries("power", {"a": 0.1, "b": 0.3, "c": 0.2}), FAMILIES)
    assert one["order"] == ["b", "c", "a"]
    assert one["usable"]


def test_an_order_that_is_the_same_everywhere_survives() -> None:
    others = [entries("power", FIRST, target="bits_per_byte"), entries("power", FIRST, size="params_total")]
    found = survives(entries("power", FIRST), entries("power_floor", {"a": 0.9, "b": 0.5, "c": 0.4}), *others)
    assert found["survives"] is True
    assert (found["same_order"], found["compared_with"]) == (3, 3)
    assert found["survives_change_of"] == {"law": True, "target": True, "size": True}
    assert all(pair["same"] == pair["of"] == 3 for pair in found["pairs"])


def test_an_order_that_another_law_turns_round_does_not() -> None:
    found = survives(
        entries("power", FIRST), entries("power_floor", SWAPPED), entries("power", FIRST, target="bits_per_byte")
    )
    assert found["survives"] is False
    assert found["primary_order"] == ["a", "b", "c"]
    assert found["survives_change_of"] == {"law": False, "target": True}
    pairs = {(p["steeper"], p["flatter"]): (p["same"], p["of"]) for p in found["pairs"]}
    assert pairs == {("a", "b"): (1, 2), ("a", "c"): (2, 2), ("b", "c"): (2, 2)}


@pytest.mark.parametrize("change", [{"identified": False}, {"sigma_log": 0.031}])
def test_fits_that_say_nothing_are_not_asked(change: dict[str, Any]) -> None:
    """Not identified, or missing the data by more than three times what the best law does."""
    found = survives(entries("power", FIRST), entries("power_floor", SWAPPED, **change))
    assert found["compared_with"] == 0
    assert found["survives"] is None
    assert survives(entries("power", FIRST), entries("power_floor", SWAPPED, sigma_log=0.029))["survives"] is False


def test_one_family_that_is_not_identified_spoils_the_ranking_of_all() -> None:
    rows = entries("power_floor", SWAPPED)
    rows[2]["identified"] = False
    assert survives(entries("power", FIRST), rows)["compared_with"] == 0
    assert survives(entries("power", FIRST), rows[:2])["compared_with"] == 0  # or that was not fitted


def test_misfits_are_compared_within_one_target_only() -> None:
    """Perplexity scatters more than loss does; that does not make its laws untenable."""
    scattered = entries("power", SWAPPED, target="bits_per_byte", sigma_log=0.05)
    assert survives(entries("power", FIRST), scattered)["compared_with"] == 1


def test_exponents_in_other_variables_are_another_ranking() -> None:
    assert survives(entries("power", FIRST), entries("power_D", SWAPPED, size=None))["compared_with"] == 0


def test_only_the_choice_that_changed_the_order_is_blamed() -> None:
    """The order turns round with the target, under either law; with the other law alone it holds."""
    laws = ("power", "power_floor")
    turned = [entries(law, SWAPPED, target="bits_per_byte") for law in laws]
    found = survives(*(entries(law, FIRST) for law in laws), *turned)
    assert found["survives_change_of"] == {"law": True, "target": False}


def test_an_order_under_perplexity_is_told_but_does_not_count() -> None:
    """Its exponent is that of loss times the loss, so a family of high loss looks steep."""
    found = survives(
        entries("power", FIRST), entries("power_floor", FIRST), entries("power", SWAPPED, target="perplexity")
    )
    assert found["survives"] is True
    assert found["perplexity_order"] == sorted(SWAPPED, key=lambda name: -SWAPPED[name])


def fitted(table: Table, loss: str = "least_squares") -> dict[str, Any]:
    settings, rng = Settings(**(QUICK | {"loss": loss})), generator()
    tasks = [Task(law, "loss", "params_total", settings.fit_loss) for law in (POWER, FLOOR)]
    return {task.law.name: fit_group(table, task, settings, rng, thorough=False) for task in tasks}


def test_the_pooled_criterion_is_that_of_one_gaussian_for_all_families() -> None:
    of = fitted(runs({"a": lambda N: 20 * N**-0.1, "b": lambda N: 19 * N**-0.1}, SIZES, noise=0.004))
    sse = sum(one.fit.sse for one in of["power"].values())
    n, k = 12, 5
    aicc = n * (np.log(2 * np.pi * sse / n) + 1) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    assert weigh(of)["power"]["aicc"] == pytest.approx(aicc)


def test_a_law_is_rejected_for_one_with_a_floor_in_one_of_a_hundred_tables_of_its_own() -> None:
    """F of six sizes in one family, by hand; and as often as its level says."""
    rejected = 0
    for seed in range(6):
        of = fitted(runs({"a": lambda N: 20 * N**-0.1}, SIZES, noise=0.004, seed=seed))
        one, two = (of[law]["a"].fit.sse for law in ("power", "power_floor"))
        p = stats.f.sf((one / two - 1) * 3, 1, 3)
        assert weigh(of)["power"]["tenable"] == (p >= 0.01)
        rejected += p < 0.01
    assert rejected <= 1
    bent = weigh(fitted(runs({"a": lambda N: 1.8 + 90 * N**-0.3}, SIZES, noise=0.001)))
    assert not bent["power"]["tenable"]
    assert "an F test against power_floor" in bent["power"]["why"]


@pytest.mark.slow
def test_seeds_do_not_count_as_evidence_for_a_floor() -> None:
    """Sizes off the power law by as much as seeds scatter: no floor is chosen for what is not there."""
    rng = generator()
    chosen = []
    for seed in range(15):
        off = {N: np.exp(0.01 * rng.standard_normal()) for N in SIZES}
        laws = dict.fromkeys("ab", lambda N, off=off: 20 * N**-0.1 * off[N])
        of = runs(laws, SIZES, noise=0.01, seed=seed, seeds=5)
        chosen.append(choose_law(groups := fitted(of), weigh(groups), "auto")[0])
    assert chosen.count("power_floor") <= 2


def test_hubers_fits_are_chosen_by_hubers_likelihood() -> None:
    """Rows of a floored law with one far outlier: least squares' criterion is about the outlier, Huber's is not."""
    of = runs({"a": lambda N: 1.8 + 90 * N**-0.3}, np.round(np.geomspace(1e6, 1e9, 14)), noise=0.0005)
    frame = of.frame[["family", "params_total", "tokens", "seed", "loss"]].copy()
    frame.loc[3, "loss"] *= 1.2
    huber = weigh(fitted(table_from_frame(frame), "huber"))
    assert huber["power"]["aicc_above_best"] > 10
    assert huber["power_floor"]["aicc_above_best"] == 0
