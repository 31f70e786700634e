"""Differences of losses at equal sizes against scipy's t tests, and what is said of tables too small for a law."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slm.scaling import Settings, Table, analyse, table_from_frame
from slm.scaling.levels import compare_levels
from tests.seeds import generator

SIZES = (1e6, 4e6)
LEVELS = {"a": 3.0, "b": 2.9}


def table(seeds: dict[str, list[int]], sizes: tuple[float, ...] = SIZES, **columns: Any) -> Table:
    """Losses of families that differ by 0.1, with a scatter of 0.02."""
    rng = generator(7)
    rows = [
        {"family": family, "params_total": N, "tokens": 1e8, "seed": seed}
        | {"loss": LEVELS[family] - 0.3 * np.log10(N / 1e6) + 0.02 * rng.standard_normal()}
        for family, of_family in seeds.items()
        for N in sizes
        for seed in of_family
    ]
    return table_from_frame(pd.DataFrame(rows).assign(**columns))


def losses(found: Table, family: str, N: float) -> np.ndarray:
    frame = found.frame
    return frame["loss"][(frame["family"] == family) & (frame["params_total"] == N)].to_numpy()


def only_pair(found: Table) -> dict[str, Any]:
    (pair,) = compare_levels(found, "loss", "params_total", 0.95)["pairs"]
    return pair


def check_against(row: dict[str, Any], test: Any) -> None:
    interval = test.confidence_interval(0.95)
    assert [row["low"], row["high"]] == pytest.approx([interval.low, interval.high], rel=1e-9)
    assert row["p"] == pytest.approx(test.pvalue, rel=1e-9)


def test_runs_with_equal_seeds_are_paired_as_in_a_paired_t_test() -> None:
    found = table({"a": [1, 2, 3], "b": [1, 2, 3]})
    for row, N in zip(only_pair(found)["sizes"], SIZES, strict=True):
        check_against(row, stats.ttest_rel(losses(found, "a", N), losses(found, "b", N)))
        assert row["error"] == "paired seeds"


@pytest.mark.parametrize("seeds", [[4, 5, 6, 7], [3, 4, 5, 6], [2, 3, 4, 5]])
def test_all_runs_are_compared_by_welchs_test_if_both_families_have_seeds_of_their_own(seeds: list[int]) -> None:
    found = table({"a": [1, 2, 3], "b": seeds})
    for row, N in zip(only_pair(found)["sizes"], SIZES, strict=True):
        check_against(row, stats.ttest_ind(losses(found, "a", N), losses(found, "b", N), equal_var=False))
        assert (row["error"], row["runs"]) == ("seeds", [3, 4])


def test_without_seeds_the_mean_over_sizes_has_the_error_of_a_t_test_between_sizes() -> None:
    sizes = (1e6, 2e6, 4e6)
    found = table({"a": [1], "b": [1]}, sizes)
    pair = only_pair(found)
    assert all(row["se"] is None and row["p"] is None for row in pair["sizes"])
    differences = [losses(found, "a", N)[0] - losses(found, "b", N)[0] for N in sizes]
    check_against(pair["mean"], stats.ttest_1samp(differences, 0))
    assert pair["mean"]["error"] == "sizes"


def test_the_mean_over_sizes_is_that_of_an_analysis_of_variance_of_the_differences() -> None:
    """Each size has a mean of its own, and all have one scatter."""
    found = table({"a": [1, 2, 3], "b": [1, 2, 3]})
    differences = np.array([losses(found, "a", N) - losses(found, "b", N) for N in SIZES])  # [sizes, seeds]
    residuals = differences - differences.mean(axis=1, keepdims=True)
    df = differences.size - len(SIZES)
    se = np.sqrt((residuals**2).sum() / df / differences.size)
    mean = only_pair(found)["mean"]
    assert [mean["difference"], mean["se"], mean["df"]] == pytest.approx([differences.mean(), se, df])
    assert [mean["low"], mean["high"]] == pytest.approx(stats.t.interval(0.95, df, differences.mean(), se))


def test_budgets_of_one_size_do_not_count_as_more_sizes() -> None:
    once = table({"a": [1, 2, 3], "b": [1, 2, 3]}).frame
    twice = pd.concat([once, once.assign(tokens=2e8)])
    columns = ["family", "params_total", "tokens", "seed", "loss"]
    pairs = [only_pair(table_from_frame(frame[columns])) for frame in (once, twice)]
    assert len(pairs[1]["sizes"]) == 2 * len(pairs[0]["sizes"])
    for key in ("difference", "se", "df", "low", "high", "p"):
        assert pairs[1]["mean"][key] == pytest.approx(pairs[0]["mean"][key])


def test_one_run_of_each_has_a_difference_and_no_error() -> None:
    pair = only_pair(table({"a": [1], "b": [1]}, SIZES[:1]))
    assert pair["mean"]["difference"] == pytest.approx(0.1, abs=0.1)
    assert [pair["mean"][key] for key in ("se", "low", "high", "p", "p_adjusted", "error")] == [None] * 6


def test_families_without_a_common_size_are_not_compared() -> None:
    found = table({"a": [1, 2], "b": [1, 2]}, SIZES[:1])
    found.frame.loc[found.frame["family"] == "b", "params_total"] *= 1.2
    assert only_pair(found)["mean"] is None


def test_equal_losses_show_no_scatter() -> None:
    assert only_pair(table({"a": [1, 2], "b": [1, 2]}, loss=3.0))["mean"]["se"] is None


@pytest.mark.parametrize(
    ("seeds", "sizes", "said"),
    [
        ({"a": [1]}, SIZES[:1], "too small for a law, so how the loss falls with size is unknown."),
        ({"a": [1, 2], "b": [1, 2]}, SIZES, "at the same size the families differ in loss"),
        ({"a": [1], "b": [1]}, SIZES[:1], "at the same size have no error, for lack of a second seed or size"),
    ],
)
def test_a_table_too_small_for_a_law_has_a_verdict_on_levels(seeds: dict, sizes: tuple, said: str) -> None:
    found = analyse(table(seeds, sizes), Settings(bootstrap=0, calibration=0))
    verdict = found.comparison["verdict"]
    assert said in verdict["headline"]
    assert verdict["distinguishable"] is None
    assert verdict["pairs"] == []
    assert not any(entry["fitted"] for entry in found.fits)
    assert "No law was fitted: " in " ".join(verdict["sentences"])
    json.dumps([found.fits, found.comparison], allow_nan=False)


def test_a_law_that_was_asked_for_and_cannot_be_fitted_to_enough_sizes_is_refused() -> None:
    found = table({"a": [1], "b": [1]}, (1e6, 2e6, 4e6, 8e6))
    with pytest.raises(ValueError, match=r"no law can be fitted to table: chinchilla not fitted: D has one value"):
        analyse(found, Settings(laws=("chinchilla",)))
    with pytest.raises(ValueError, match="no law can be fitted to table: width_depth: the table has no"):
        analyse(found, Settings(laws=("width_depth",)))
    with pytest.raises(ValueError, match=r"no law can be fitted to table: chinchilla not fitted: D has one value"):
        analyse(found, Settings(law="chinchilla"))  # though the other laws of the settings can be fitted
