"""Every point of what a careful analysis says of the study's four rows, with the figures of FACTS."""

from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from slm.scaling.fitting import fit
from slm.scaling.forms import Floats
from slm.scaling.intervals import uncertainty
from slm.scaling.published import is_published, review
from slm.scaling.tables import Table, read_table

TABLE = read_table("mobilellm_published")
N = TABLE.frame["params_total"].to_numpy(float)
PERPLEXITY = np.array([11.961319, 8.976614, 7.984185, 7.171037])


@pytest.fixture(scope="module")
def claims() -> dict[str, dict[str, Any]]:
    return {one["claim"]: one for one in review(TABLE)}


def of(claims: dict[str, dict[str, Any]], words: str) -> tuple[dict[str, Any], str]:
    (found,) = (one for claim, one in claims.items() if words in claim)
    return found["figures"], found["finding"]


def test_the_fit_is_reproduced(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "perplexity = 1152")
    assert figures["A"] == pytest.approx(1151.55, abs=0.005)
    assert figures["slope"] == pytest.approx(-0.245707, abs=5e-7)
    assert figures["r2"] == pytest.approx(0.993497, abs=5e-7)
    assert "1152 N^-0.2457, R2 0.9935" in finding
    line = stats.linregress(np.log10(N), np.log10(PERPLEXITY))  # as the study did it
    assert (10**line.intercept, line.slope) == pytest.approx((figures["A"], figures["slope"]), rel=1e-5)


def test_the_interval_of_the_slope_excludes_both_published_exponents(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "cannot be distinguished")
    assert (figures["slope_low"], figures["slope_high"]) == pytest.approx((-0.306, -0.185), abs=5e-4)
    assert figures["df"] == 2
    assert figures["excludes"] == {"0.076": True, "0.089": True}
    assert "[-0.306, -0.185]" in finding
    assert "one family, one token budget and n = 4" in finding


def test_on_loss_the_exponent_is_less_than_half_of_that_on_perplexity(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "three times Kaplan")
    assert (figures["alpha"], figures["low"], figures["high"]) == pytest.approx((0.1105, 0.094, 0.127), abs=5e-4)
    assert figures["times_kaplan"] == pytest.approx(1.45, abs=0.005)
    assert figures["times_kaplan_non_embedding"] == pytest.approx(1.38, abs=0.005)
    assert "0.1105 [0.094, 0.127]: 1.45 times Kaplan's, or 1.38 times with non-embedding N" in finding


def test_reference_laws_are_read_as_perplexity(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "set beside a slope of perplexity")
    assert figures["kaplan_as_perplexity"] == pytest.approx(-0.198, abs=5e-4)
    assert figures["hoffmann_as_perplexity"] == pytest.approx(-0.177, abs=5e-4)
    assert figures["tokens"] == 1e12
    assert "-0.198" in finding
    assert "-0.177" in finding


def test_hoffmanns_exponents_are_those_of_the_paper(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "-0.089 (Hoffmann)")
    assert figures == {"alpha": 0.34, "beta": 0.28, "E": 1.69}
    assert "No such exponent has a source" in finding


def profile_of_loss(alpha: float, *, least_floor: float) -> float:
    """Least squares of log loss at a given alpha with E of at least `least_floor`, by scipy from several starts."""
    y, power = np.log(np.log(PERPLEXITY)), (N / 5e8) ** -alpha

    def residuals(p: Floats) -> Floats:
        return np.asarray(np.log(np.maximum(p[0] + p[1] * power, 1e-12)) - y)

    line = np.polyfit(power, np.exp(y), 1)
    starts = [[max(line[1], least_floor + 1e-3), abs(line[0])], [max(0.5, least_floor), 1.5], [0.01, 2.1]]
    bounds = ([least_floor, 0], [np.inf, np.inf])
    fits = [
        optimize.least_squares(residuals, s, bounds=bounds, x_scale=[1, 1], xtol=1e-15, ftol=1e-15, gtol=1e-15)
        for s in starts
    ]
    return 2 * min(float(one.cost) for one in fits)


def ends(least_floor: float) -> tuple[float | None, float]:
    best = optimize.minimize_scalar(
        lambda a: profile_of_loss(a, least_floor=least_floor), bounds=(0.05, 1.0), method="bounded"
    )
    threshold = best.fun * (1 + stats.f.ppf(0.95, 1, 1))

    def above(alpha: float) -> float:
        return profile_of_loss(alpha, least_floor=least_floor) - threshold

    low = optimize.brentq(above, 1e-3, best.x, xtol=1e-6) if above(1e-3) > 0 else None
    return low, float(optimize.brentq(above, best.x, 3.0, xtol=1e-6))


def test_with_a_floor_alpha_is_not_identified(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "power law without a floor")
    low, high = ends(0.0)
    assert low is not None
    assert figures["high"] == pytest.approx(1.18, abs=0.005)  # FACTS: about [0.02, 1.18]
    assert figures["high"] == pytest.approx(high, rel=0.01)
    assert figures["low"] == pytest.approx(low, rel=0.02)
    assert figures["low"] < 0.1
    free_low, free_high = ends(-1e4)
    assert figures["free_low"] is None
    assert free_low is None
    assert figures["free_high"] == pytest.approx(free_high, rel=0.01)
    assert "not identified" in finding
    result = uncertainty(fit(TABLE, "power_floor"), replicates=0, rng=np.random.default_rng(0))
    assert set(result.not_identified) >= {"alpha", "E"}


def test_without_the_smallest_model_the_line_is_flatter(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "holds from 125M")
    assert figures["slope_without_smallest"] == pytest.approx(-0.210, abs=5e-4)
    assert "-0.210" in finding


def test_the_prediction_for_two_billion_has_its_interval(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "2B model")
    assert (figures["value"], figures["low"], figures["high"]) == pytest.approx((5.97, 5.18, 6.89), abs=0.005)
    assert "5.97, 95% prediction interval [5.18, 6.89]" in finding


def test_speeds_measure_depth(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "sweet spot")
    assert figures["tokens_per_second_times_layers"] == pytest.approx([711, 694, 701, 719], abs=0.51)
    assert "711, 694, 701, 719" in finding


def test_perplexity_times_speed_rewards_the_worst(claims: dict[str, dict[str, Any]]) -> None:
    figures, finding = of(claims, "x speed")
    speeds = np.array([23.715576, 21.692929, 17.527269, 13.309350])
    assert figures["products"] == pytest.approx((PERPLEXITY * speeds).tolist())
    assert figures["largest"] == "MobileLLM-125M"
    assert figures["largest_has_worst_perplexity"] is True
    assert "lower-is-better by a higher-is-better" in finding


def test_only_the_published_rows_are_taken_for_the_study() -> None:
    assert is_published(TABLE)
    changed = TABLE.frame.assign(perplexity=TABLE.frame["perplexity"] * 1.001)
    assert not is_published(Table(changed, (), "copy"))
    assert not is_published(Table(TABLE.frame.iloc[:3], (), "fewer"))
    for column in ("depth", "tokens", "params_non_embedding"):
        assert not is_published(Table(TABLE.frame.drop(columns=column), (), f"no {column}"))
