"""Which law is chosen and what the verdict says of simulated tables, and whether an order of families survives."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slm.scaling import Settings, Table, analyse, get_law, table_from_frame
from slm.scaling.entries import Task, fit_group
from slm.scaling.fitting import fit_sample
from slm.scaling.selection import assess_laws, choose_law, rankings, survival
from tests.scaling.samples import FLOOR, POWER, power_law, runs
from tests.seeds import generator

FAMILIES = ("a", "b", "c")
FIRST, SWAPPED = {"a": 0.3, "b": 0.2, "c": 0.1}, {"a": 0.2, "b": 0.3, "c": 0.1}
CROSSING = {"dense": power_law(17.3, 0.127, floor=1.0), "routed": power_law(28.6, 0.19, floor=1.49)}
SIZES = np.round(np.geomspace(1.5e7, 1.3e9, 6))
MIDDLE = float(np.exp(np.log(SIZES).mean()))
QUICK: dict[str, Any] = {"laws": ("power", "power_floor"), "targets": ("loss",), "bootstrap": 0, "calibration": 0}


def entries(law: str, alphas: dict[str, float], **changes: Any) -> list[dict[str, Any]]:
    """Entries of one fit of every family; `changes` are common to all of them."""
    common = {"law": law, "target": "loss", "size": "N", "loss": "least_squares", "sigma_log": 0.01, "identified": True}
    common |= {"exponents": ["alpha"], "variables": list(get_law(law).variables)} | changes
    return [common | {"family": name, "params": {"alpha": value}} for name, value in alphas.items()]


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
    bits = entries("power", FIRST, target="bits_per_byte")
    found = survives(entries("power", FIRST), entries("power_floor", SWAPPED), bits)
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
    perplexity = entries("power", SWAPPED, target="perplexity")
    found = survives(entries("power", FIRST), entries("power_floor", FIRST), perplexity)
    assert found["survives"] is True
    assert found["perplexity_order"] == sorted(SWAPPED, key=lambda name: -SWAPPED[name])


def fitted(table: Table, loss: str = "least_squares") -> dict[str, Any]:
    settings, rng = Settings(**(QUICK | {"loss": loss})), generator()
    tasks = [Task(law, "loss", "params_total", settings.fit_loss) for law in (POWER, FLOOR)]
    return {task.law.name: fit_group(table, task, settings, rng, thorough=False) for task in tasks}


def test_the_pooled_criterion_is_that_of_one_gaussian_for_all_families() -> None:
    of = fitted(runs({"a": power_law(20, 0.1), "b": power_law(19, 0.1)}, SIZES, noise=0.004))
    sse = sum(one.fit.sse for one in of["power"].values())
    n, k = 12, 5
    aicc = n * (np.log(2 * np.pi * sse / n) + 1) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    assert assess_laws(of)["power"]["aicc"] == pytest.approx(aicc)


def test_a_law_is_rejected_for_one_with_a_floor_in_one_of_a_hundred_tables_of_its_own() -> None:
    """F of six sizes in one family, by hand; and as often as its level says."""
    rejected = 0
    for seed in range(6):
        of = fitted(runs({"a": power_law(20, 0.1)}, SIZES, noise=0.004, seed=seed))
        one, two = (of[law]["a"].fit.sse for law in ("power", "power_floor"))
        p = stats.f.sf((one / two - 1) * 3, 1, 3)
        assert assess_laws(of)["power"]["tenable"] == (p >= 0.01)
        rejected += p < 0.01
    assert rejected <= 1
    bent = assess_laws(fitted(runs({"a": power_law(90, 0.3, floor=1.8)}, SIZES, noise=0.001)))
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
        chosen.append(choose_law(groups := fitted(of), assess_laws(groups), "auto")[0])
    assert chosen.count("power_floor") <= 2


def test_hubers_fits_are_chosen_by_hubers_likelihood() -> None:
    """Rows of a floored law with one far outlier: least squares' criterion is about the outlier, Huber's is not."""
    of = runs({"a": power_law(90, 0.3, floor=1.8)}, np.round(np.geomspace(1e6, 1e9, 14)), noise=0.0005)
    frame = of.frame[["family", "params_total", "tokens", "seed", "loss"]].copy()
    frame.loc[3, "loss"] *= 1.2
    huber = assess_laws(fitted(table_from_frame(frame), "huber"))
    assert huber["power"]["aicc_above_best"] > 10
    assert huber["power_floor"]["aicc_above_best"] == 0


def comparison(of: Table, **settings: Any) -> dict[str, Any]:
    return analyse(of, Settings(**(QUICK | settings)), verdict_only=True).comparison


def test_where_the_runs_reject_straight_lines_the_floored_law_says_who_scales_faster() -> None:
    """Without a floor dense looks steeper, above floors of their own, as is the truth, routed is."""
    found = comparison(runs(CROSSING, SIZES, noise=0.0007))
    (pair,) = found["paired"]["pairs"]
    assert pair["delta"] > 0
    assert pair["p"] < 0.05
    assert pair["above_floor"] is None  # the two do not share a floor
    assert not found["weighed"]["power"]["tenable"]
    (said,) = found["verdict"]["pairs"]
    assert said["differs"]
    assert said["ci_low"] < 0.127 - 0.19 < said["ci_high"]
    assert any(s.startswith("alpha of routed is larger than that of dense") for s in found["verdict"]["sentences"])


def test_where_the_runs_reject_no_law_and_they_contradict_each_other_it_depends() -> None:
    """The same at more noise, where straight lines are not rejected."""
    found = comparison(runs(CROSSING, SIZES, noise=0.004, seed=3))
    assert found["weighed"]["power"]["tenable"]
    assert found["weighed"]["power_floor"]["tenable"]
    assert found["paired"]["pairs"][0]["p"] < 0.05
    assert found["verdict"]["distinguishable"] is None
    assert "depends on the law" in found["verdict"]["headline"]
    assert any("explains this too" in sentence for sentence in found["verdict"]["sentences"])


def test_above_a_floor_that_families_share_a_constant_factor_on_n_is_no_difference_and_another_exponent_is() -> None:
    """Over these sizes all slopes differ; of the exponents only that of c does."""
    laws = {name: power_law(A, 0.3, floor=1.8) for name, A in (("a", 90), ("b", 90 * 1.6**-0.3))}
    found = comparison(runs(laws | {"c": power_law(90 * MIDDLE**0.1, 0.4, floor=1.8)}, SIZES, noise=0.001))
    pairs = {(pair["a"], pair["b"]): pair for pair in found["paired"]["pairs"]}
    said = {(pair["a"], pair["b"]): pair for pair in found["verdict"]["pairs"]}
    assert pairs["a", "b"]["p"] < 0.01
    assert [said[names]["differs"] for names in (("a", "b"), ("a", "c"), ("b", "c"))] == [False, True, True]
    for names, truth in ((("a", "b"), 0.0), (("a", "c"), -0.1), (("b", "c"), -0.1)):
        assert said[names]["ci_low"] < truth < said[names]["ci_high"]
        assert said[names]["ci_high"] - said[names]["ci_low"] < 0.1


def test_a_difference_under_every_law_is_said_and_of_equal_families_none_is() -> None:
    laws = {"a": power_law(20, 0.1), "b": power_law(20 * MIDDLE**0.03, 0.13)}
    steep = comparison(runs(laws, SIZES, noise=0.003))["verdict"]
    assert steep["distinguishable"] is True
    assert any(s.startswith("The loss of b falls faster with N than that of a") for s in steep["sentences"])
    equal = comparison(runs({"a": power_law(20, 0.1), "b": power_law(19, 0.1)}, SIZES, noise=0.003))["verdict"]
    assert equal["distinguishable"] is False
    assert equal["headline"].startswith("At equal size b reaches a lower loss than a, like a model 1.7 times as large")
    assert 1.65 < (20 / 19) ** (1 / 0.1) < 1.75
    assert any(s.startswith("At the middle size b reaches a loss 5") for s in equal["sentences"])
    assert not any("falls faster" in s or "steeper" in s for s in equal["sentences"])


@pytest.mark.slow
def test_ranges_that_differ_are_compared_where_they_agree() -> None:
    """One law with a floor, the sizes of b four times as large: power laws of the whole ranges differ."""
    law, small, said = power_law(90, 0.3, floor=1.8), np.round(np.geomspace(2e6, 6e7, 8)), 0
    apart = {"a": small, "b": np.round(small * 4.5)}
    slopes = [np.polyfit(np.log(N), np.log(law(N)), 1)[0] for N in apart.values()]
    assert abs(slopes[0] - slopes[1]) > 0.01  # what the whole ranges would say
    for seed in range(12):
        found = comparison(runs({"a": law, "b": law}, apart, noise=0.003, seed=seed), law="power")
        said += found["verdict"]["distinguishable"] is True
        low, high = found["laws"]["power"]["common_range"]["range"]
        assert apart["b"].min() * 0.9 < low < high < apart["a"].max() * 1.1
    assert said <= 2


def test_a_law_that_one_family_cannot_hold_is_left_to_the_others_and_said() -> None:
    laws = {name: power_law(90, 0.3, floor=1.8) for name in "abc"}
    found = comparison(runs(laws, {"a": SIZES, "b": SIZES, "c": SIZES[[0, 2, 4]]}, noise=0.001))
    assert found["primary"]["law"] == "power_floor"
    assert list(found["weighed"]["power_floor"]["refused"]) == ["c"]
    assert any("power_floor cannot be fitted to c" in s for s in found["verdict"]["sentences"])


def test_one_family_under_a_floored_law_is_told_alone() -> None:
    said = comparison(runs({"a": power_law(90, 0.3, floor=1.8)}, SIZES, noise=0.001))["verdict"]
    assert "A comparison of families needs at least two" in said["headline"]
    assert "E + A N^-alpha" in said["headline"]


def test_rows_that_lie_on_a_law_get_that_law() -> None:
    laws = {"a": power_law(90, 0.3, floor=1.8), "b": power_law(80, 0.28, floor=1.7)}
    said = comparison(runs(laws, SIZES))["verdict"]
    assert "a alpha = 0.3; b alpha = 0.28" in said["headline"]
    assert "E + A N^-alpha" in said["headline"]
    assert said["distinguishable"] is None


def test_a_target_that_rises_with_size_is_analysed() -> None:
    rows = [{"family": "a", "params_total": N, "tokens": D, "loss": 0.2 + 0.05 * np.log10(N) + 0.02 * np.log10(D)}
            for N in SIZES for D in (2e9, 8e9)]  # fmt: skip
    settings = Settings(bootstrap=50, calibration=50, laws=("power", "chinchilla"))
    found = analyse(table_from_frame(pd.DataFrame(rows)), settings)
    assert any(entry["fitted"] for entry in found.fits)


def test_a_fit_that_breaks_down_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(law: Any, *rest: Any, **more: Any) -> Any:
        if law.name == "power_floor":
            raise np.linalg.LinAlgError("SVD did not converge")
        return fit_sample(law, *rest, **more)

    monkeypatch.setattr("slm.scaling.entries.fit_sample", breaks)
    found = analyse(runs({"a": power_law(20, 0.1)}, SIZES, noise=0.003), Settings(**QUICK), verdict_only=True)
    (lost,) = [entry for entry in found.fits if not entry["fitted"]]
    assert "SVD did not converge" in lost["notes"][0]
    assert found.comparison["primary"]["law"] == "power"
