"""Families at the same sizes: what is matched, and slopes, levels and floors against closed forms and simulations."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from slm.scaling import Settings, Table, table_from_frame
from slm.scaling.forms import Floats
from slm.scaling.matching import match
from slm.scaling.paired import compare_pairs
from slm.scaling.pairs import at_floors
from tests.scaling.samples import power_law, runs
from tests.seeds import generator

SIZES = np.round(np.geomspace(2e6, 9e7, 6))
COLUMNS = ["family", "params_total", "tokens", "seed", "loss"]
NOT_MATCHED = [("params_total", 1.3, "0 of 6 sizes agree within 10%"), ("tokens", 2.0, "0 of 6 sizes")]


def compared(table: Table) -> dict[str, Any]:
    return compare_pairs(table, "loss", "params_total", Settings())


def pair_of(table: Table) -> dict[str, Any]:
    return compared(table)["pairs"][0]


def test_the_slope_is_the_t_test_of_a_regression_of_log_ratios() -> None:
    table = runs({"a": power_law(20, 0.1), "b": power_law(19, 0.11)}, SIZES, noise=0.01, shared=0.05, seeds=2)
    pair = pair_of(table)
    means = table.frame.assign(y=np.log(table.frame["loss"])).groupby(["family", "params_total"])["y"].mean()
    line = stats.linregress(np.log(SIZES), means["a"].to_numpy() - means["b"].to_numpy())
    assert pair["delta"] == pytest.approx(-line.slope)
    assert pair["spread"] > pair["noise"]  # two seeds: sqrt(2 / 2) of it; else both would be pooled
    assert pair["p"] == pytest.approx(line.pvalue)
    reach = stats.t.ppf(0.975, 4) * line.stderr
    assert (pair["ci_low"], pair["ci_high"]) == pytest.approx((-line.slope - reach, -line.slope + reach))


def test_points_on_a_line_by_luck_scatter_as_much_as_seeds_do() -> None:
    """The means of four sizes lie on a line, the two seeds of each do not: t with the seeds' variance and 2 + 4 df."""
    rows = [
        {"family": family, "params_total": N, "tokens": 1e9, "seed": seed, "loss": 20 * N**-0.1 * np.exp(off)}
        for i, N in enumerate(SIZES[:4])
        for seed, noise in ((0, 0.01), (1, -0.01))
        for family, off in (("a", noise), ("b", 1e-5 * (-1) ** i))
    ]
    pair = pair_of(table_from_frame(pd.DataFrame(rows)))
    x = np.log(SIZES[:4])
    seeds = 2 * 0.01**2 / 1 / 2  # variance of a mean of two, 4 degrees of freedom
    pooled = (2 * pair["spread"] ** 2 + 4 * seeds) / 6
    error = np.sqrt(pooled / ((x - x.mean()) ** 2).sum())
    assert pair["df"] == 6
    assert pair["ci_high"] - pair["ci_low"] == pytest.approx(2 * stats.t.ppf(0.975, 6) * error, rel=1e-6)


def test_what_sizes_share_cancels() -> None:
    """Deviations of the sizes from any law change nothing in the comparison, whatever they do to a fit."""
    laws = {"a": power_law(20, 0.1), "b": power_law(19, 0.12)}
    plain, moved = (pair_of(runs(laws, SIZES, noise=0.01, shared=shared)) for shared in (0.0, 0.2))
    for key in ("delta", "ci_low", "ci_high", "p", "level_log_ratio"):
        assert moved[key] == pytest.approx(plain[key])


def test_runs_are_paired_by_seed_where_both_have_it() -> None:
    """A seed that only one family has, far off, takes no part."""
    table = runs({"a": power_law(20, 0.1), "b": power_law(20, 0.1)}, SIZES, noise=0.01, seeds=2)
    outlier = table.frame[(table.frame["family"] == "a") & (table.frame["seed"] == 1)].assign(seed=7)
    outlier = outlier.assign(loss=outlier["loss"] * np.linspace(1, 2, 6), perplexity=np.nan)
    more = table_from_frame(pd.concat([table.frame, outlier]).drop(columns=["perplexity", "cluster", "cell", "flops"]))
    assert pair_of(more)["delta"] == pytest.approx(pair_of(table)["delta"])
    by_seed = np.log(table.frame.pivot_table(index=["params_total", "seed"], columns="family", values="loss"))
    ratio = (by_seed["a"] - by_seed["b"]).unstack()
    assert pair_of(table)["noise"] == pytest.approx(np.sqrt(ratio.var(axis=1, ddof=1).mean() / 2))


def test_all_seeds_count_where_both_families_have_seeds_of_their_own() -> None:
    """Seeds 1 to 3 and 3 to 6: one common seed would scatter more than the means of three and of four runs."""
    frame = runs({"a": power_law(20, 0.1), "b": power_law(20, 0.1)}, SIZES, noise=0.01, seeds=6).frame[COLUMNS]
    kept = frame[frame["seed"].le(3) & frame["family"].eq("a") | frame["seed"].ge(3) & frame["family"].eq("b")]
    pair = pair_of(table_from_frame(kept))
    means = np.log(kept["loss"]).groupby([kept["params_total"], kept["family"]]).mean().unstack()
    assert pair["log_ratio"] == pytest.approx((means["a"] - means["b"]).to_numpy())
    assert pair["seeds"] == pytest.approx(24 / 7)  # the variance of the ratio is that of one run times 1/3 + 1/4


def test_sizes_that_are_not_quite_the_same_are_moved_along_the_curve() -> None:
    near = runs({"a": power_law(20, 0.1)}, SIZES)
    frame = near.frame.assign(family="b", params_total=np.round(SIZES * np.linspace(0.95, 1.05, 6)))
    frame["loss"] = 18 * frame["params_total"] ** -0.12
    found = match(table_from_frame(pd.concat([near.frame, frame])[COLUMNS]), "a", "b", "loss", "params_total")
    assert not isinstance(found, str)
    assert found.farthest == pytest.approx(0.0526, abs=1e-3)
    truth = np.log(20 / 18) + 0.02 * found.log_N
    assert found.log_ratio == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize(("column", "factor", "said"), [*NOT_MATCHED, ("loss", 1.0, "3 of 3 sizes")])
def test_what_is_not_matched_is_said(column: str, factor: float, said: str) -> None:
    """The last case: too few sizes in the second family."""
    frame = runs({"a": power_law(20, 0.1), "b": power_law(20, 0.1)}, SIZES).frame[COLUMNS].copy()
    frame.loc[frame["family"] == "b", column] *= factor
    few = (frame["family"] == "a") | frame["params_total"].isin(SIZES[:3])
    found = compared(table_from_frame(frame[few] if factor == 1 else frame))
    assert found["pairs"] == []
    assert said in found["unmatched"][0]["reason"]


def test_equal_tokens_a_parameter_are_equal_budgets() -> None:
    frame = runs({"a": power_law(20, 0.1), "b": power_law(19, 0.1)}, SIZES, noise=0.005).frame[COLUMNS].copy()
    frame.loc[frame["family"] == "b", "params_total"] *= 1.04
    frame["tokens"] = 20 * frame["params_total"]
    assert len(compared(table_from_frame(frame))["pairs"]) == 1


def test_the_worth_of_a_family_that_is_another_at_other_sizes_is_that_factor() -> None:
    """b is a at 1.7 times the parameters, at every size."""
    laws = {"a": power_law(20, 0.1), "b": power_law(20 * 1.7**-0.1, 0.1)}
    pair = pair_of(runs(laws, SIZES, noise=1e-5, shared=1e-4))
    for one in (pair["worth"], *pair["worth_by_size"]):
        assert one["factor"] == pytest.approx(1 / 1.7, rel=2e-2)
        assert one["low"] < 1 / 1.7 < one["high"]


def test_levels_slopes_and_worth_are_what_they_say_in_nineteen_of_twenty_tables() -> None:
    laws = {"a": power_law(20, 0.1), "b": power_law(20 * 1.3**-0.1, 0.1)}
    covers = {"delta": 0, "worth": 0}
    for seed in range(80):
        pair = pair_of(runs(laws, SIZES, noise=0.01, shared=0.01, seed=seed))
        covers["delta"] += pair["ci_low"] <= 0 <= pair["ci_high"]
        covers["worth"] += pair["worth"]["low"] <= 1 / 1.3 <= pair["worth"]["high"]
    assert all(0.88 * 80 <= count <= 80 for count in covers.values())


def test_pairs_are_found_as_often_as_the_power_that_is_stated() -> None:
    """At the detectable difference of one table's scatter, known here: 0.004 sqrt(2) in the log ratio."""
    spread = np.sqrt(((np.log(SIZES) - np.log(SIZES).mean()) ** 2).sum())
    critical = stats.t.ppf(0.975, 4)
    shift = next(s for s in np.arange(0, 10, 0.01) if stats.nct.sf(critical, 4, s) > 0.8)
    difference = shift * 0.004 * np.sqrt(2) / spread
    laws = {"a": power_law(20, 0.1 + difference), "b": power_law(20, 0.1)}
    low = sum(pair_of(runs(laws, SIZES, noise=0.004, shared=0.03, seed=seed))["p"] < 0.05 for seed in range(80))
    assert low / 80 == pytest.approx(0.8, abs=0.13)


def test_a_floor_that_explains_a_slope_is_found() -> None:
    """One law with a floor, b worth 1.5 times the parameters: the slope of the ratio is sure, and means nothing."""
    laws = {"a": power_law(90, 0.3, floor=1.8), "b": power_law(90 * 1.5**-0.3, 0.3, floor=1.8)}
    said = [pair_of(runs(laws, SIZES, noise=0.002, seed=seed)) for seed in range(30)]
    assert np.mean([pair["p"] < 0.05 for pair in said]) > 0.5
    assert np.sum([pair["p_any_floor"] < 0.05 for pair in said]) <= 4


def test_a_difference_that_no_floor_explains_stays() -> None:
    """Levels equal in the middle, exponents not: a constant factor on N is 1, whatever the floor."""
    middle = float(np.exp(np.log(SIZES).mean()))
    laws = {"a": power_law(20, 0.1), "b": power_law(20 * middle**0.02, 0.12)}
    pair = pair_of(runs(laws, SIZES, noise=0.002, shared=0.01))
    assert pair["p"] < 0.01
    assert pair["p_any_floor"] < 0.05


@pytest.mark.parametrize("floor", [0.0, 1.0, 1.7])
def test_a_fit_at_a_given_floor_is_the_line_of_the_log_above_it(floor: float) -> None:
    """Exact rows: L - floor is a power of N, and the local exponent its share of alpha."""
    y = np.log(floor + 90 * SIZES**-0.3)
    found = at_floors(np.log(SIZES), y, np.array([floor]))
    assert found.alpha[0] == pytest.approx(0.3, rel=1e-8)
    assert found.squares[0] < 1e-20
    assert found.local_exponents[0] == pytest.approx(0.3 * (1 - floor / np.exp(y)), rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.98])
def test_a_fit_at_a_given_floor_is_the_least_squares_of_scipy(share: float) -> None:
    rng = generator(3)
    y = np.log(1.8 + 90 * SIZES**-0.3) + 0.01 * rng.standard_normal(6)
    x, floor = np.log(SIZES), share * float(np.exp(y.min()))
    found = at_floors(x, y, np.array([floor]))

    def residuals(p: Floats) -> Floats:
        return np.asarray(np.log(floor + np.exp(p[0] - p[1] * (x - x.mean()))) - y)

    best = optimize.least_squares(residuals, [-0.5, 0.3], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert found.squares[0] == pytest.approx(2 * best.cost, rel=1e-6)
    assert found.alpha[0] == pytest.approx(best.x[1], rel=1e-5)
    covariance = 2 * best.cost / 4 * np.linalg.inv(best.jac.T @ best.jac)
    assert found.errors[0] == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-4)


def test_budgets_that_vary_at_each_size_are_one_shape() -> None:
    """Six shapes at four budgets; each shape of either family is off by itself. Rows do not count."""
    covers = 0
    for seed in range(40):
        rng = generator(seed)
        rows = []
        for family in "ab":
            for N in SIZES:
                own = 0.01 * rng.standard_normal()
                for D in (1e9, 2e9, 4e9, 8e9):
                    loss = 20 * N**-0.1 * (D / 1e9) ** -0.05 * np.exp(own + 0.002 * rng.standard_normal())
                    rows.append({"family": family, "params_total": N, "tokens": D, "loss": loss})
        pair = pair_of(table_from_frame(pd.DataFrame(rows)))
        assert pair["df"] < 6
        covers += pair["ci_low"] <= 0 <= pair["ci_high"]
    assert covers >= 34
