"""Approach 2 against planted parabolas, known laws and numpy's own quadratic and line."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slm.scaling import Settings, analyse, table_from_frame
from slm.scaling.allocation import compute_optimal
from slm.scaling.forms import Floats
from slm.scaling.isoflop import Exponent, given_optima, group_budgets, isoflop, isoflop_bias
from tests.scaling.samples import HOFFMANN, plain_law
from tests.seeds import generator, seeded


def parabolas(exponent: float, *, sizes: int = 7, budgets: int = 4) -> pd.DataFrame:
    """IsoFLOP profiles whose log loss is a parabola in log N, lowest at N = 1e8 (C / 1e18)^exponent."""
    rows = []
    for C in np.geomspace(1e18, 1e20, budgets):
        best = np.log(1e8) + exponent * np.log(C / 1e18)
        for shift in np.linspace(-1.1, 0.9, sizes):  # not symmetric about the lowest
            N = float(np.exp(best + shift))
            log_loss = 1.1 - 0.02 * np.log(C / 1e18) + 0.03 * shift**2
            rows.append({"family": "a", "N": N, "tokens": C / 6 / N, "flops": C, "loss": np.exp(log_loss)})
    return pd.DataFrame(rows)


def exponents(frame: pd.DataFrame) -> tuple[Exponent, Exponent]:
    found = isoflop(frame, "N", "loss")
    return found.params, found.tokens


@pytest.mark.parametrize("exponent", [0.35, 0.5, 0.62])
def test_planted_exponents_of_size_and_tokens_are_recovered_from_exact_parabolas(exponent: float) -> None:
    found = isoflop(parabolas(exponent), "N", "loss")
    a, b = exponents(parabolas(exponent))
    assert (a.value, a.low, a.high) == pytest.approx((exponent,) * 3, abs=1e-6)
    assert (b.value, b.low, b.high) == pytest.approx((1 - exponent,) * 3, abs=1e-6)
    for row, C in zip(found.budgets, np.geomspace(1e18, 1e20, 4), strict=True):
        assert row.params == pytest.approx(1e8 * (C / 1e18) ** exponent, rel=1e-5)
        assert row.flops == pytest.approx(C)
        assert row.tokens == pytest.approx(C / 6 / row.params, rel=1e-5)
        assert row.reason is None


def profiles(law: dict[str, float], budgets: Floats, shift: float = 0.0, sizes: int = 9) -> pd.DataFrame:
    """Exact isoFLOP profiles of a `chinchilla` law over a factor of 20 in N, centred at the best N times e^shift."""
    C = np.repeat(budgets, sizes)
    best = np.repeat([compute_optimal(law, flops).params for flops in budgets], sizes)
    N = best * np.exp(np.tile(np.linspace(-1.5 + shift, 1.5 + shift, sizes), len(budgets)))
    loss = plain_law("chinchilla", law, {"N": N, "D": C / 6 / N})
    return pd.DataFrame({"N": N, "tokens": C / 6 / N, "flops": C, "loss": loss})


def noisy(frame: pd.DataFrame, sigma: float, rng: np.random.Generator) -> pd.DataFrame:
    return frame.assign(loss=frame["loss"] * np.exp(sigma * rng.standard_normal(len(frame))))


def noisy_shifts(law: dict[str, float], budgets: Floats, shift: float, rng: np.random.Generator) -> pd.DataFrame:
    """Profiles whose lowest point is moved at random at each budget, as an ill-tuned rate would move it."""
    moved = []
    for C in budgets:
        one = profiles(law, np.array([C]))
        factor = np.exp(shift * rng.standard_normal())
        moved.append(one.assign(N=one["N"] * factor, tokens=one["tokens"] / factor))
    return pd.concat(moved, ignore_index=True)


@pytest.mark.parametrize(("budgets", "sigma", "shift"), [(3, 0.003, 0.0), (5, 0.003, 0.0), (4, 0.001, 0.15)])
def test_intervals_of_both_exponents_cover(budgets: int, sigma: float, shift: float) -> None:
    """Nominally 95%, of what approach 2 finds in exact profiles, whether runs scatter or whole budgets do."""
    rng, tables = np.random.default_rng([seeded(budgets), 1]), 250
    C = np.geomspace(1e18, 3e20, budgets)
    exact = exponents(profiles(HOFFMANN, C))
    covered = np.zeros(2)
    for _ in range(tables):
        frame = noisy_shifts(HOFFMANN, C, shift, rng) if shift else profiles(HOFFMANN, C)
        found = exponents(noisy(frame, sigma, rng))
        covered += [one.low <= true.value <= one.high for one, true in zip(found, exact, strict=True)]
    assert ((0.915 * tables <= covered) & (covered <= 0.985 * tables)).all()  # a standard error is 1.4 points


def test_the_interval_of_a_lowest_point_covers_it() -> None:
    rng, frame, inside = generator(7), profiles(HOFFMANN, np.geomspace(1e18, 1e20, 3)), 0
    exact = isoflop(frame, "N", "loss").budgets
    for _ in range(120):
        found = isoflop(noisy(frame, 0.004, rng), "N", "loss").budgets
        inside += sum(one.low <= true.params <= one.high for one, true in zip(found, exact, strict=True))
    assert 0.92 <= inside / 120 / 3 <= 0.98


def test_budgets_whose_lowest_point_is_outside_their_runs_are_dropped_and_the_rest_decide() -> None:
    frame = parabolas(0.5, sizes=12)
    C = sorted(frame["flops"].unique())
    one_sided = (frame["flops"] > C[0] * 1.01) | (frame["N"] > 1.05e8)
    found = isoflop(frame[one_sided], "N", "loss")
    assert [row.reason for row in found.budgets] == ["its lowest point lies outside its runs", None, None, None]
    assert found.params.value == pytest.approx(0.5, abs=1e-6)
    few = isoflop(frame[one_sided & (frame["flops"] < C[3] * 0.99)], "N", "loss")
    assert few.params is None
    assert few.reason == "3 budgets have 5 sizes or more, and 2 of them have the lowest point inside; 3 are needed"


def test_too_few_sizes_or_budgets_or_no_lowest_point_give_no_exponent_and_say_why() -> None:
    assert isoflop(parabolas(0.5, sizes=4), "N", "loss").reason is not None
    two = isoflop(parabolas(0.5, budgets=2), "N", "loss")
    assert (two.params, two.reason) == (None, "2 budgets have 5 sizes or more; 3 are needed")
    found = isoflop(parabolas(0.5).assign(loss=lambda frame: 10 - frame["loss"]), "N", "loss")
    assert found.params is None
    assert {row.reason for row in found.budgets} == {"its curve has no lowest point"}


def test_runs_spread_over_compute_without_gaps_are_no_budgets() -> None:
    """92 rows over a factor of 9, no neighbours 10% apart: once taken for one budget."""
    rng = generator()
    N, C = np.exp(rng.uniform(np.log(1e8), np.log(3e9), 92)), np.geomspace(1.6e19, 1.5e20, 92)
    loss = plain_law("chinchilla", HOFFMANN, {"N": N, "D": C / 6 / N})
    frame = pd.DataFrame({"N": N, "tokens": C / 6 / N, "flops": C, "loss": loss})
    found = isoflop(frame, "N", "loss")
    assert (found.params, found.budgets, found.ungrouped) == (None, (), 92)
    assert isoflop(frame.assign(tokens=20 * N, flops=120 * N**2), "N", "loss").params is None  # a fixed ratio


def test_a_budget_holds_together_and_stands_apart() -> None:
    def sizes(*groups: tuple[float, float]) -> list[int]:
        """How many rows the groups between pairs of FLOPs come to, six rows each."""
        flops = np.concatenate([np.geomspace(low, high, 6) for low, high in groups])
        return [len(rows) for rows in group_budgets(pd.DataFrame({"flops": flops}))[1]]

    assert sizes((1, 1.2), (2, 2.4), (4, 4.8)) == [6, 6, 6]
    assert sizes((1, 1.2), (1.3, 1.5), (4, 4.8)) == [6]  # the first two are 8% apart, and 50% from end to end
    assert sizes((1, 1.6), (4, 4.8)) == [6]


def test_budgets_are_found_from_flops_that_differ_by_a_few_percent() -> None:
    frame = parabolas(0.5)
    near = frame.assign(flops=frame["flops"] * np.tile(np.linspace(0.97, 1.03, 7), 4)).sample(frac=1, random_state=0)
    found = isoflop(near, "N", "loss")
    assert [row.runs for row in found.budgets] == [7] * 4
    assert found.params.value == pytest.approx(0.5, abs=1e-6)


def test_seeds_of_one_size_are_one_point() -> None:
    frame = parabolas(0.5)
    pairs = pd.concat([frame.assign(loss=frame["loss"] * factor) for factor in (1.02, 1 / 1.02)])
    found = isoflop(pairs, "N", "loss")
    assert found.params.value == pytest.approx(0.5, abs=1e-6)
    assert found.params.high - found.params.low == pytest.approx(0, abs=1e-6)  # the means lie on parabolas


@pytest.mark.parametrize("column", ["budget", "isoflop"])
def test_a_column_of_budgets_counts_only_if_it_holds_flops(column: str) -> None:
    """Sweeps write tokens, tokens a parameter, or FLOPs as text; exact FLOPs may be twice 6 N D."""
    frame = parabolas(0.5)
    per_param = (frame["tokens"] / frame["N"]).round(-1)
    tokens = (per_param, frame["tokens"].round(-9), "tokens_per_param=" + per_param.astype(str))
    cases = [(frame.assign(**{column: values}), "flops", (column,)) for values in tokens]
    spread = frame.assign(flops=frame["flops"] * np.tile(np.linspace(1.0, 1.7, 7), 4))  # no clear groups by FLOPs
    flops = (frame["flops"], "flops=" + frame["flops"].map("{:g}".format))
    cases += [(spread.assign(**{column: values}), column, ()) for values in flops]
    for rows, grouped_by, ignored in cases:
        found = isoflop(rows, "N", "loss")
        assert (found.grouped_by, found.ignored) == (grouped_by, ignored)
        assert found.params.value == pytest.approx(0.5, abs=1e-6)


def by_polyfit(frame: pd.DataFrame) -> float:
    """Approach 2 written again: numpy's quadratic within a factor of 5 of the lowest, twice, and a line."""
    lowest = []
    for C, group in frame.groupby("flops"):
        x, y = np.log(group["N"].to_numpy()), np.log(group["loss"].to_numpy())
        at = x[y.argmin()]
        for _ in range(2):
            near = np.abs(x - at) <= np.log(5)
            c, b, _ = np.polyfit(x[near], y[near], 2)
            at = min(max(-b / (2 * c), x.min()), x.max())
        lowest.append((np.log(float(str(C))), at))
    return float(np.polyfit(*np.transpose(lowest), 1)[0])


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_the_bias_of_approach_2_is_its_error_on_exact_data_of_the_law(drift: float) -> None:
    """Sizes that drift away from the best ones as budgets grow show how lopsided the curve is."""
    budgets = np.geomspace(1e18, 1e21, 5)
    frame = pd.concat([profiles(HOFFMANN, budgets[[i]], shift=drift * i) for i in range(5)], ignore_index=True)
    expected = by_polyfit(frame) - HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])
    assert isoflop_bias(frame.assign(loss=1.0), "N", "loss", HOFFMANN) == pytest.approx(expected, abs=1e-6)
    assert (abs(expected) > 0.002) == (drift > 0)


def test_a_symmetric_law_with_centred_sizes_has_no_bias() -> None:
    law = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}
    assert isoflop_bias(profiles(law, np.geomspace(1e18, 1e21, 5)), "N", "loss", law) == pytest.approx(0, abs=1e-6)


def optima() -> pd.DataFrame:
    rng = generator(4)
    C = np.geomspace(1e18, 1e21, 6)
    N = 0.1 * C**0.5 * np.exp(0.05 * rng.standard_normal(6))
    return pd.DataFrame({"params_total": N, "tokens": C / 6 / N, "flops": C, "loss": 30 * C**-0.05})


def test_given_optima_have_the_slopes_and_intervals_of_a_straight_line() -> None:
    frame = optima()
    found = given_optima(frame, "params_total")
    assert not isinstance(found, str)
    for one, column in zip(found, ("params_total", "tokens"), strict=True):
        line = stats.linregress(np.log(frame["flops"]), np.log(frame[column]))
        half = stats.t.ppf(0.975, 4) * line.stderr
        assert (one.value, one.low, one.high) == pytest.approx((line.slope, line.slope - half, line.slope + half))
    assert given_optima(frame[:2], "params_total") == "there are 2 budgets and 3 are needed"
    assert "several rows have the same budget" in str(given_optima(pd.concat([frame, frame]), "params_total"))


def test_an_analysis_of_optima_takes_each_row_for_the_optimum_of_its_budget() -> None:
    table = table_from_frame(optima().assign(family="a"), name="optima")
    given, plain = (
        analyse(table, Settings(laws=("power_C",), bootstrap=0, calibration=0, optima=on)).comparison["isoflop"][0]
        for on in (True, False)
    )
    line = stats.linregress(np.log(table.frame["flops"]), np.log(table.frame["params_total"]))
    assert given["exponent"] == pytest.approx(line.slope)
    assert (plain["exponent"], plain["reason"] is not None) == (None, True)
