"""What the verdict says of simulated tables with a known truth, law and method chosen by the analysis."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from slm.scaling import Settings, analyse, table_from_frame
from slm.scaling.tables import Table
from tests.scaling.samples import runs

SIZES = np.round(np.geomspace(1.5e7, 1.3e9, 6))
QUICK: dict[str, Any] = {"laws": ("power", "power_floor"), "targets": ("loss",), "bootstrap": 0, "calibration": 0}


def comparison(of: Table, **settings: Any) -> dict[str, Any]:
    return analyse(of, Settings(**(QUICK | settings)), verdict_only=True).comparison


def test_where_the_runs_reject_straight_lines_the_floored_law_says_who_scales_faster() -> None:
    """Without a floor dense looks steeper, above floors of their own, as is the truth, routed is."""
    laws = {"dense": lambda N: 1.0 + 17.3 * N**-0.127, "routed": lambda N: 1.49 + 28.6 * N**-0.19}
    found = comparison(runs(laws, SIZES, noise=0.0007))
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
    laws = {"dense": lambda N: 1.0 + 17.3 * N**-0.127, "routed": lambda N: 1.49 + 28.6 * N**-0.19}
    found = comparison(runs(laws, SIZES, noise=0.004, seed=3))
    assert found["weighed"]["power"]["tenable"]
    assert found["weighed"]["power_floor"]["tenable"]
    assert found["paired"]["pairs"][0]["p"] < 0.05
    assert found["verdict"]["distinguishable"] is None
    assert "depends on the law" in found["verdict"]["headline"]
    assert any("explains this too" in sentence for sentence in found["verdict"]["sentences"])


def test_above_a_floor_that_families_share_a_constant_factor_on_n_is_no_difference_and_another_exponent_is() -> None:
    """Over these sizes all slopes differ; of the exponents only that of c does."""
    middle = float(np.exp(np.log(SIZES).mean()))
    laws = {
        "a": lambda N: 1.8 + 90 * N**-0.3,
        "b": lambda N: 1.8 + 90 * (1.6 * N) ** -0.3,
        "c": lambda N: 1.8 + 90 * middle**0.1 * N**-0.4,
    }
    found = comparison(runs(laws, SIZES, noise=0.001))
    pairs = {(pair["a"], pair["b"]): pair for pair in found["paired"]["pairs"]}
    said = {(pair["a"], pair["b"]): pair for pair in found["verdict"]["pairs"]}
    assert pairs["a", "b"]["p"] < 0.01
    assert [said[names]["differs"] for names in (("a", "b"), ("a", "c"), ("b", "c"))] == [False, True, True]
    for names, truth in ((("a", "b"), 0.0), (("a", "c"), -0.1), (("b", "c"), -0.1)):
        assert said[names]["ci_low"] < truth < said[names]["ci_high"]
        assert said[names]["ci_high"] - said[names]["ci_low"] < 0.1


def test_a_difference_under_every_law_is_said_and_of_equal_families_none_is() -> None:
    middle = float(np.exp(np.log(SIZES).mean()))
    laws = {"a": lambda N: 20 * N**-0.1, "b": lambda N: 20 * middle**0.03 * N**-0.13}
    steep = comparison(runs(laws, SIZES, noise=0.003))["verdict"]
    assert steep["distinguishable"] is True
    assert any(s.startswith("The loss of b falls faster with N than that of a") for s in steep["sentences"])
    equal = comparison(runs({"a": lambda N: 20 * N**-0.1, "b": lambda N: 19 * N**-0.1}, SIZES, noise=0.003))["verdict"]
    assert equal["distinguishable"] is False
    assert any(s.startswith("At the middle size b reaches a loss 5") for s in equal["sentences"])
    assert not any("falls faster" in s or "steeper" in s for s in equal["sentences"])


@pytest.mark.slow
def test_ranges_that_differ_are_compared_where_they_agree() -> None:
    """One law with a floor, the sizes of b four times as large: power laws of the whole ranges differ."""
    law = {"a": lambda N: 1.8 + 90 * N**-0.3, "b": lambda N: 1.8 + 90 * N**-0.3}
    small = np.round(np.geomspace(2e6, 6e7, 8))
    apart = {"a": small, "b": np.round(small * 4.5)}
    said, whole = 0, 0
    for seed in range(12):
        found = comparison(runs(law, apart, noise=0.003, seed=seed), law="power")
        said += found["verdict"]["distinguishable"] is True
        low, high = found["laws"]["power"]["common_range"]["range"]
        assert apart["b"].min() * 0.9 < low < high < apart["a"].max() * 1.1
        slopes = [np.polyfit(np.log(apart[name]), np.log(law[name](apart[name])), 1)[0] for name in "ab"]
        whole += abs(slopes[0] - slopes[1]) > 0.01
    assert whole == 12  # what the whole ranges would say
    assert said <= 2


def test_a_law_that_one_family_cannot_hold_is_left_to_the_others_and_said() -> None:
    laws = {name: lambda N: 1.8 + 90 * N**-0.3 for name in "abc"}
    found = comparison(runs(laws, {"a": SIZES, "b": SIZES, "c": SIZES[[0, 2, 4]]}, noise=0.001))
    assert found["primary"]["law"] == "power_floor"
    assert list(found["weighed"]["power_floor"]["refused"]) == ["c"]
    assert any("power_floor cannot be fitted to c" in s for s in found["verdict"]["sentences"])


def test_one_family_under_a_floored_law_is_told_alone() -> None:
    said = comparison(runs({"a": lambda N: 1.8 + 90 * N**-0.3}, SIZES, noise=0.001))["verdict"]
    assert "A comparison of families needs at least two" in said["headline"]
    assert "E + A N^-alpha" in said["headline"]


def test_rows_that_lie_on_a_law_get_that_law() -> None:
    laws = {"a": lambda N: 1.8 + 90 * N**-0.3, "b": lambda N: 1.7 + 80 * N**-0.28}
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
    from slm.scaling import entries

    fit_sample = entries.fit_sample

    def breaks(law: Any, *rest: Any, **more: Any) -> Any:
        if law.name == "power_floor":
            raise np.linalg.LinAlgError("SVD did not converge")
        return fit_sample(law, *rest, **more)

    monkeypatch.setattr(entries, "fit_sample", breaks)
    found = analyse(runs({"a": lambda N: 20 * N**-0.1}, SIZES, noise=0.003), Settings(**QUICK), verdict_only=True)
    (lost,) = [entry for entry in found.fits if not entry["fitted"]]
    assert "SVD did not converge" in lost["notes"][0]
    assert found.comparison["primary"]["law"] == "power"
