"""Every figure that is set beside a claim of the published study, computed from its four rows by numpy and scipy."""

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from slm.scaling import fit, read_table, uncertainty
from slm.scaling.forms import Floats
from slm.scaling.published import is_published, published_claims
from slm.scaling.reference import REFERENCES, local_exponent
from tests.seeds import generator

TABLE = read_table("mobilellm_published")
FRAME = TABLE.frame
N, INNER, DEPTH, SPEED = (
    FRAME[name].to_numpy(float) for name in ("params_total", "params_non_embedding", "depth", "tokens_per_second")
)
PERPLEXITY = np.array([11.961319, 8.976614, 7.984185, 7.171037])
LOSS = np.log(PERPLEXITY)
KAPLAN, HOFFMANN, BESIROGLU = REFERENCES
CLAIMS = {claim["id"]: claim for claim in published_claims()}


def line(size: Floats, value: Floats) -> tuple[float, float, float, float]:
    """Slope in logs, the ends of its 95% t interval, and the intercept."""
    found = stats.linregress(np.log(size), np.log(value))
    reach = stats.t.ppf(0.975, len(size) - 2) * found.stderr
    return found.slope, found.slope - reach, found.slope + reach, found.intercept


def prediction(size: float) -> tuple[float, float, float]:
    """The textbook's interval of one further point of a regression line (Draper & Smith 1998, section 3.1)."""
    x, y = np.log(N), np.log(PERPLEXITY)
    slope, _, _, intercept = line(N, PERPLEXITY)
    sigma = math.sqrt(((y - intercept - slope * x) ** 2).sum() / 2)
    at = math.log(size)
    error = sigma * math.sqrt(1 + 1 / 4 + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    centre, reach = intercept + slope * at, stats.t.ppf(0.975, 2) * error
    return math.exp(centre), math.exp(centre - reach), math.exp(centre + reach)


def expected(key: str) -> dict[str, Any]:
    slope, low, high, intercept = line(N, PERPLEXITY)
    match key:
        case "fit":
            r2 = stats.linregress(np.log(N), np.log(PERPLEXITY)).rvalue ** 2
            return {"A": math.exp(intercept), "slope": slope, "r2": r2, "n": 4}
        case "slope":
            excludes = {exponent: not low <= -float(exponent) <= high for exponent in ("0.076", "0.089")}
            return {"slope_low": low, "slope_high": high, "df": 2, "excludes": excludes}
        case "loss":
            (slope, low, high, _), inner = line(N, LOSS), -line(INNER, LOSS)[0]
            total = {"alpha": -slope, "low": -high, "high": -low, "times_kaplan": -slope / 0.076}
            return total | {"alpha_non_embedding": inner, "times_kaplan_non_embedding": inner / 0.076}
        case "references":  # Kaplan et al. 2020, equation 1.1; Hoffmann et al. 2022, approach 3
            return {
                "kaplan_as_perplexity": line(INNER, np.exp((8.8e13 / INNER) ** 0.076))[0],
                "hoffmann_as_perplexity": line(N, np.exp(1.69 + 406.4 / N**0.34 + 410.7 / 1e12**0.28))[0],
                "tokens": 1e12,
                "slope_non_embedding": line(INNER, PERPLEXITY)[0],
            }
        case "hoffmann":
            return {"alpha": 0.34, "beta": 0.28, "E": 1.69}
        case "smallest":
            return {"slope_without_smallest": line(N[1:], PERPLEXITY[1:])[0]}
        case "prediction":
            return dict(zip(("value", "low", "high"), prediction(2e9), strict=True))
        case "speed":
            return {"tokens_per_second_times_layers": (SPEED * DEPTH).tolist()}
    products = (PERPLEXITY * SPEED).tolist()
    return {"products": products, "largest": "MobileLLM-125M", "largest_has_worst_perplexity": True}


@pytest.mark.parametrize("key", [key for key in CLAIMS if key != "floor"])
def test_every_figure_follows_from_the_rows(key: str) -> None:
    figures = CLAIMS[key]["figures"]
    wanted = expected(key)
    assert figures.keys() == wanted.keys()
    for name, value in wanted.items():
        assert figures[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, (float, list)) else value)


@pytest.mark.parametrize("key", CLAIMS)
def test_findings_quote_their_figures(key: str) -> None:
    """Every number with a decimal point in a finding is one of its figures, rounded, or of what it is compared with."""
    numbers = [value for value in CLAIMS[key]["figures"].values() if isinstance(value, (float, list))]
    slope = CLAIMS["fit"]["figures"]["slope"]
    figures = np.hstack([*numbers, slope, -slope, 0.95, -0.076, -0.089, 0.246])
    for text in re.findall(r"-?\d+\.\d+", CLAIMS[key]["finding"]):
        decimals = len(text.partition(".")[2])
        assert any(f"{figure:.{decimals}f}" == text for figure in figures), text


def profile_of_loss(alpha: float, *, least_floor: float) -> float:
    """Least squares of log loss at a given alpha with E of at least `least_floor`, by scipy from several starts."""
    y, power = np.log(LOSS), (N / 5e8) ** -alpha

    def residuals(p: Floats) -> Floats:
        return np.asarray(np.log(np.maximum(p[0] + p[1] * power, 1e-12)) - y)

    slope, floor = np.polyfit(power, LOSS, 1)
    starts = [[max(floor, least_floor + 1e-3), abs(slope)], [max(0.5, least_floor), 1.5], [0.01, 2.1]]
    tight = {"bounds": ([least_floor, 0], [np.inf, np.inf]), "xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    return 2 * min(float(optimize.least_squares(residuals, start, **tight).cost) for start in starts)


def ends(least_floor: float) -> tuple[float | None, float]:
    profile = partial(profile_of_loss, least_floor=least_floor)
    best = optimize.minimize_scalar(profile, bounds=(0.05, 1.0), method="bounded")

    def above(alpha: float) -> float:
        return profile(alpha) - best.fun * (1 + stats.f.ppf(0.95, 1, 1))

    low = optimize.brentq(above, 1e-3, best.x, xtol=1e-6) if above(1e-3) > 0 else None
    return low, float(optimize.brentq(above, best.x, 3.0, xtol=1e-6))


def test_with_a_floor_alpha_is_not_identified() -> None:
    figures, finding = CLAIMS["floor"]["figures"], CLAIMS["floor"]["finding"]
    result = uncertainty(fit(TABLE, "power_floor"), replicates=0, rng=generator())
    assert set(result.reasons_not_identified) >= {"alpha", "E"}
    assert (figures["low"], figures["high"]) == pytest.approx(result.ci["alpha"], rel=1e-6)
    low, high = ends(0.0)
    assert (figures["low"], figures["high"]) == (pytest.approx(low, rel=0.02), pytest.approx(high, rel=0.01))
    free_low, free_high = ends(-1e4)
    assert figures["free_low"] is free_low is None
    assert figures["free_high"] == pytest.approx(free_high, rel=0.01)
    assert "not identified" in finding


def test_only_the_published_rows_are_taken_for_the_study() -> None:
    assert is_published(FRAME)
    assert not is_published(FRAME.assign(perplexity=FRAME["perplexity"] * 1.001))
    assert not is_published(FRAME.iloc[:3])
    for column in ("depth", "tokens", "params_non_embedding"):
        assert not is_published(FRAME.drop(columns=column))


def test_references_have_the_constants_of_their_papers() -> None:
    N, D = np.array([1e8, 7e10]), np.array([2e9, 1.4e12])
    np.testing.assert_allclose(np.exp(KAPLAN.log_loss({"N": N})), (8.8e13 / N) ** 0.076, rtol=1e-9)
    hoffmann = 1.69 + 406.4 / N**0.34 + 410.7 / D**0.28
    np.testing.assert_allclose(np.exp(HOFFMANN.log_loss({"N": N, "D": D})), hoffmann, rtol=1e-9)
    besiroglu = 1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658
    np.testing.assert_allclose(np.exp(BESIROGLU.log_loss({"N": N, "D": D})), besiroglu, rtol=1e-9)
    assert [r.size for r in REFERENCES] == ["params_non_embedding", "params_total", "params_total"]


def test_read_as_perplexity_over_mobilellms_sizes_they_have_the_slopes_of_facts() -> None:
    kaplan = np.exp(KAPLAN.log_loss({"N": INNER}))
    hoffmann = np.exp(HOFFMANN.log_loss({"N": N, "D": np.full(4, 1e12)}))
    assert local_exponent(np.log(INNER), kaplan) == pytest.approx(0.198, abs=5e-4)
    assert local_exponent(np.log(N), hoffmann) == pytest.approx(0.177, abs=5e-4)


def test_the_local_exponent_of_a_power_law_is_its_exponent() -> None:
    assert local_exponent(np.log(N), KAPLAN.log_loss({"N": N})) == pytest.approx(0.076, rel=1e-9)
