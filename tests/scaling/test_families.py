"""Nested models of families against analysis of covariance by hand, exact F tests, and planted factors."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from slm.scaling.families import (
    MODELS,
    Families,
    efficiency_factors,
    fit_joint,
    gather,
    likelihood_ratio,
    sharing_matrices,
)
from slm.scaling.fitting import fit_sample
from slm.scaling.forms import Floats
from slm.scaling.laws import Law, get_law
from slm.scaling.sample import Sample
from tests.scaling.samples import CHINCHILLA, FLOOR, POWER, TRUE, design, log_law, noisy, sample
from tests.seeds import generator

PLANTED = {"power": {"N": 1.7}, "power_floor": {"N": 2.5}, "chinchilla": {"N": 1.6, "D": 0.7}}


def families_of(law: Law, samples: dict[str, Sample]) -> Families:
    return gather({name: fit_sample(law, one) for name, one in samples.items()})


def lines(slopes: list[float], sigma: float, seed: int, rows: int = 6) -> dict[str, Sample]:
    """Families of straight lines, their sizes not the same."""
    rng = generator(seed)
    found = {}
    for f, slope in enumerate(slopes):
        x = np.linspace(15 + 0.3 * f, 20 + 0.2 * f, rows + f)
        found[f"family{f}"] = sample(3 + 0.1 * f - slope * x + sigma * rng.normal(size=len(x)), x)
    return found


def ancova(samples: dict[str, Sample]) -> dict[str, float]:
    """Sums of squares of one line, parallel lines, and separate lines, by least squares on dummies."""
    x = np.concatenate([s.log_x[:, 0] for s in samples.values()])
    y = np.concatenate([s.log_y for s in samples.values()])
    of = np.repeat(np.arange(len(samples)), [len(s.log_y) for s in samples.values()])
    dummies = np.eye(len(samples))[of]
    designs = {"one_law": [np.ones_like(x), x], "shared_exponents": [dummies, x]}
    designs |= {"separate": [dummies, dummies * x[:, None]]}
    squares = {}
    for model, columns in designs.items():
        X = np.column_stack(columns)
        squares[model] = float(((y - X @ np.linalg.lstsq(X, y, rcond=None)[0]) ** 2).sum())
    return squares


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0.02, 0.3), min_size=2, max_size=4), st.floats(1e-3, 0.1), st.integers(0, 999))
def test_models_of_straight_lines_are_analysis_of_covariance(slopes: list[float], sigma: float, seed: int) -> None:
    samples = lines(slopes, sigma, seed)
    families = families_of(POWER, samples)
    for model, sse in ancova(samples).items():
        joint = fit_joint(families, model)
        assert joint.converged
        assert joint.sse == pytest.approx(sse, rel=1e-6)


def test_the_statistic_is_n_log_of_the_ratio_and_its_p_that_of_the_exact_f_test() -> None:
    samples = lines([0.10, 0.115, 0.11], 0.012, 3)
    families, sse = families_of(POWER, samples), ancova(samples)
    restricted, wider = fit_joint(families, "shared_exponents"), fit_joint(families, "separate")
    B = 1999
    ratio = likelihood_ratio(families, restricted, wider, B, generator())
    n = sum(len(s.log_y) for s in samples.values())
    assert ratio["statistic"] == pytest.approx(n * np.log(sse["shared_exponents"] / sse["separate"]), rel=1e-5)
    assert ratio["df"] == 2
    assert ratio["p_chi2"] == pytest.approx(stats.chi2.sf(ratio["statistic"], 2), rel=1e-6)
    f = ((sse["shared_exponents"] - sse["separate"]) / 2) / (sse["separate"] / (n - 6))
    exact = stats.f.sf(f, 2, n - 6)
    assert 0.02 < exact < 0.98
    uncalibrated = likelihood_ratio(families, restricted, wider, 0, generator())
    assert uncalibrated["p"] == pytest.approx(exact, rel=1e-4)
    # Simulated with every family's own scatter, which here is much alike.
    assert ratio["p"] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / B) + 0.05)


def test_the_calibrated_test_rejects_equal_exponents_as_often_as_it_says() -> None:
    p = []
    for seed in range(120):
        families = families_of(POWER, lines([0.1, 0.1], 0.02, seed, rows=4))
        shared, separate = fit_joint(families, "shared_exponents"), fit_joint(families, "separate")
        p.append(likelihood_ratio(families, shared, separate, 99, generator(seed)))
    assert stats.kstest([r["p"] for r in p], "uniform").pvalue > 0.01
    assert np.mean([r["p_chi2"] < 0.05 for r in p]) > 0.08  # why it is calibrated: 9 rows are no large sample


@pytest.mark.parametrize("law", [FLOOR, CHINCHILLA])
@pytest.mark.parametrize("seed", range(3))
def test_a_wider_model_never_fits_worse(law: Law, seed: int) -> None:
    samples = {f: noisy(law.name, 14, 0.01, seed=10 * seed + i) for i, f in enumerate("abc")}
    families = families_of(law, samples)
    squares = [fit_joint(families, model).sse for model in MODELS]
    alone = sum(fit_sample(law, one).sse for one in samples.values())
    assert squares[MODELS.index("separate")] == pytest.approx(alone, 1e-6)
    assert all(wider <= narrower * (1 + 1e-6) for narrower, wider in pairwise(squares))


@pytest.mark.parametrize(("law", "families", "counts"), [(FLOOR, 3, [3, 5, 7, 9]), (CHINCHILLA, 2, [5, 7, 8, 10])])
def test_parameters_of_nested_models_are_counted(law: Law, families: int, counts: list[int]) -> None:
    """Three families with a floor: E, A, alpha; then E, 3 A, alpha; then 3 E, 3 A, alpha; then all three times."""
    models = ("one_law", "efficiency", "shared_exponents", "separate")
    assert [sharing_matrices(law, families, model)[0].shape[1] for model in models] == counts


def planted(law: Law, rho: dict[str, float], sigma: float = 0.0, rows: int = 16) -> dict[str, Sample]:
    """A family, and another that uses each variable as if it were rho times as much."""
    log_x = design(law.variables, rows, seed=4)
    rng = generator(1)
    found = {}
    shift = np.log([rho.get(v, 1.0) for v in law.variables])
    for name, moved in (("reference", log_x), ("better", log_x + shift)):
        found[name] = sample(log_law(law.name, TRUE[law.name], moved) + sigma * rng.normal(size=rows), log_x)
    return found


@pytest.mark.parametrize(("law", "rho"), [*PLANTED.items(), ("kaplan_joint", {"N": 1.5, "D": 2.0})])
def test_efficiency_factors_that_were_planted_come_back(law: str, rho: dict[str, float]) -> None:
    families = families_of(get_law(law), planted(get_law(law), rho))
    joint = fit_joint(families, "efficiency")
    assert joint.converged
    assert joint.sse < 1e-12
    factors = efficiency_factors(families, joint)
    assert {f["variable"]: f["factor"] for f in factors} == pytest.approx(rho, rel=1e-4)
    assert {(f["family"], f["reference"]) for f in factors} == {("better", "reference")}


def test_rescaling_a_familys_sizes_is_exactly_the_efficiency_model() -> None:
    """Whatever the noise, the best rescaling of N by brute force reaches the model's least squares and factor."""
    samples = planted(FLOOR, {"N": 2.0}, sigma=0.004, rows=12)
    families = families_of(FLOOR, samples)
    joint = fit_joint(families, "efficiency")
    first, second = samples.values()

    def sse(log_rho: float) -> float:
        x = np.concatenate([first.log_x[:, 0], second.log_x[:, 0] + log_rho])
        y = np.concatenate([first.log_y, second.log_y])

        def residuals(p: Floats) -> Floats:
            return np.asarray(np.log(p[0] + np.exp(p[1] - p[2] * (x - 19))) - y)

        return float(2 * optimize.least_squares(residuals, [1.7, 0.0, 0.33], xtol=1e-14, ftol=1e-14, gtol=1e-14).cost)

    best = optimize.minimize_scalar(sse, bounds=(0, 1.5), method="bounded", options={"xatol": 1e-8})
    assert joint.sse == pytest.approx(best.fun, rel=1e-6)
    factor = efficiency_factors(families, joint)[0]
    assert np.log(factor["factor"]) == pytest.approx(best.x, abs=1e-4)
    # The interval against a profile of the brute force: where its F statistic reaches the quantile.
    threshold = best.fun * (1 + stats.f.ppf(0.95, 1, 24 - 4) / 20)
    low = optimize.brentq(lambda r: sse(r) - threshold, best.x - 1, best.x)
    high = optimize.brentq(lambda r: sse(r) - threshold, best.x, best.x + 1)
    assert np.log([factor["low"], factor["high"]]) == pytest.approx([low, high], abs=0.15 * (high - low))


def test_criteria_are_those_of_a_gaussian_likelihood() -> None:
    samples = lines([0.1, 0.12], 0.02, 0)
    joint = fit_joint(families_of(POWER, samples), "shared_exponents")
    n, k, sse = joint.num_rows, 4, ancova(samples)["shared_exponents"]  # two levels, a slope, a variance
    likelihood = -n / 2 * (np.log(2 * np.pi * sse / n) + 1)
    aicc, bic, *_ = joint.criteria()
    assert aicc == pytest.approx(2 * k - 2 * likelihood + 2 * k * (k + 1) / (n - k - 1))
    assert bic == pytest.approx(k * np.log(n) - 2 * likelihood)
