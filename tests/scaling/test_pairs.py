"""Differences of exponents against the pooled t test, brute force, and Holm's own example."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from slm.scaling import Fit, Loss, Uncertainty, uncertainty
from slm.scaling.fitting import fit_sample
from slm.scaling.forms import Floats
from slm.scaling.laws import Law
from slm.scaling.pairs import Curve, Difference, curve, difference, holm, joint_p, welch_df
from slm.scaling.sample import Sample
from tests.scaling.samples import CHINCHILLA, FLOOR, POWER, noisy, sample
from tests.seeds import generator

Fitted = tuple[Fit, Uncertainty]


def fitted(law: Law, rows: Sample, loss: Loss = Loss()) -> Fitted:  # noqa: B008
    found = fit_sample(law, rows, loss=loss)
    return found, uncertainty(found, replicates=0, rng=generator())


def differ(a: Fitted, b: Fitted, exponent: str = "alpha") -> Difference:
    return difference(*(curve(fit, uncertain, exponent, 0.95) for fit, uncertain in (a, b)))


def line(slope: float, rows: int, sigma: float, seed: int) -> Sample:
    x = np.linspace(15, 21, rows)
    return sample(3 - slope * x + sigma * generator(seed).normal(size=rows), x)


@settings(max_examples=12, deadline=None)
@given(st.tuples(*[st.floats(0.05, 0.2)] * 2), st.tuples(*[st.integers(4, 12)] * 2), st.integers(0, 999))
@example(slopes=(0.125, 0.15625), rows=(4, 4), seed=923)  # far out on the more exact one
def test_two_lines_are_compared_by_welchs_t_test(slopes: tuple[float, float], rows: tuple[int, int], seed: int) -> None:
    a, b = line(slopes[0], rows[0], 0.01, seed), line(slopes[1], rows[1], 0.02, seed + 1000)
    found = differ(fitted(POWER, a), fitted(POWER, b))
    fits = [stats.linregress(of.log_x[:, 0], of.log_y) for of in (a, b)]
    squares = np.array([fit.stderr for fit in fits]) ** 2
    error, df = np.sqrt(squares.sum()), squares.sum() ** 2 / (squares**2 / (np.array(rows) - 2)).sum()
    delta, reach = fits[1].slope - fits[0].slope, stats.t.ppf(0.975, df) * error
    assert found.delta == pytest.approx(delta, abs=1e-3 * error)
    assert (found.ci_low, found.ci_high) == pytest.approx((delta - reach, delta + reach), abs=0.01 * error)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(delta / error), df), rel=0.02, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_swapping_the_families_mirrors_the_difference(seed: int) -> None:
    """With a floor, and alpha unevenly known in the two: neither family is the one that is searched along."""
    a = fitted(FLOOR, noisy("power_floor", 12, 0.003, seed))
    b = fitted(FLOOR, noisy("power_floor", 9, 0.006, seed + 50))
    one, other = differ(a, b), differ(b, a)
    assert one.delta == -other.delta
    for end, opposite in ((one.ci_low, other.ci_high), (one.ci_high, other.ci_low)):
        assert end == (None if opposite is None else pytest.approx(-opposite, abs=0.01 * abs(opposite) + 1e-4))
    assert one.p == pytest.approx(other.p, rel=0.02)


def constrained(of: tuple[Sample, Sample], apart: float, start: float) -> float:
    """Least squares, by scipy, of two laws with floors and exponents `apart`, each in units of its family's scatter."""
    scatter = [fit_sample(FLOOR, one).sigma for one in of]

    def residuals(p: Floats) -> Floats:
        parts = []
        both = zip(of, ((p[0], p[1]), (p[2], p[3])), (p[4] + apart, p[4]), scatter, strict=True)
        for one, (e, a), alpha, sigma in both:
            x = one.log_x[:, 0] - 19
            parts.append((np.logaddexp(e, a - alpha * x) - one.log_y) / sigma)
        return np.concatenate(parts)

    fits = [
        optimize.least_squares(residuals, [0.5, -0.5, 0.5, -0.5, s], x_scale="jac", xtol=1e-13, ftol=1e-13, gtol=1e-13)
        for s in (start, 0.7 * start, 1.4 * start)
    ]
    return 2 * float(min(fit.cost for fit in fits))


def test_an_interval_ends_where_a_constrained_joint_fit_reaches_the_t_quantile() -> None:
    a, b = noisy("power_floor", 20, 0.003, 1), noisy("power_floor", 16, 0.003, 2)
    one, two = fitted(FLOOR, a), fitted(FLOOR, b)
    found, alpha = differ(one, two), two[0].params["alpha"]
    best = constrained((a, b), found.delta, alpha)
    assert best == pytest.approx(17 + 13, rel=1e-6)  # the degrees of freedom: each scatter is the family's own
    errors = [uncertain.error(fit, "alpha", 0.95) for fit, uncertain in (one, two)]
    assert found.df == pytest.approx(welch_df(errors, [17, 13]))
    assert 13 < found.df < 30
    t_low, t_high, t_zero = (np.sqrt(constrained((a, b), at, alpha) - best) for at in (found.ci_low, found.ci_high, 0))
    assert (t_low, t_high) == pytest.approx((stats.t.ppf(0.975, found.df),) * 2, rel=0.01)
    assert found.p == pytest.approx(2 * stats.t.sf(t_zero, found.df), rel=0.02)


@pytest.mark.parametrize("exponent", ["alpha", "beta"])
def test_a_law_in_two_variables_is_compared_by_either_exponent(exponent: str) -> None:
    a, b = (fitted(CHINCHILLA, noisy("chinchilla", 30, 0.003, seed)) for seed in (1, 2))
    found = differ(a, b, exponent)
    assert found.ci_low < found.delta < found.ci_high
    # Errors by the delta method are a first approximation of the same interval.
    error = np.hypot(*(uncertain.bootstrap_se["delta"][exponent] for _, uncertain in (a, b)))
    assert found.ci_high - found.ci_low == pytest.approx(2 * stats.t.ppf(0.975, 50) * error, rel=0.3)


def test_hubers_fits_are_compared_by_their_bootstrap_errors() -> None:
    one, two = fitted(POWER, line(0.1, 20, 0.01, 1), Loss(1e-3)), fitted(POWER, line(0.12, 25, 0.01, 2), Loss(1e-3))
    found = differ(one, two)
    # Each scaled up for its two parameters, as its own interval is.
    errors = [uncertain.se["alpha"] * np.sqrt(n / (n - 2)) for (_, uncertain), n in ((one, 20), (two, 25))]
    error, df = np.hypot(*errors), welch_df(errors, [18, 23])
    assert found.ci_low == pytest.approx(found.delta - stats.t.ppf(0.975, df) * error, rel=1e-3)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.delta) / error, df), rel=1e-2)


def test_the_difference_of_an_exponent_without_an_upper_end_has_none_either() -> None:
    """In `a` only the smallest size deviates, so every exponent that is steep enough fits it alike."""
    step = sample(np.array([1.08, 1.004, 0.997, 1.002, 0.998, 1.001]), np.linspace(16, 19, 6))
    a, b = fitted(FLOOR, step), fitted(FLOOR, noisy("power_floor", 12, 0.003))
    assert a[1].ci["alpha"][1] is None
    assert differ(a, b).ci_high is None


def straight(estimate: float, error: float, df: float) -> Curve:
    steps = np.linspace(-50, 50, 201)
    return Curve(estimate + error * steps, steps, df, estimate, error, False, False)


def test_the_joint_test_of_two_families_is_welchs_t_and_its_statistic_a_weighted_sum_of_squares() -> None:
    a, b = straight(0.10, 0.004, 5), straight(0.12, 0.006, 9)
    statistic, p = joint_p([a, b], generator())
    assert statistic == pytest.approx(0.02**2 / (0.004**2 + 0.006**2), rel=1e-4)
    welch = 2 * stats.t.sf(np.sqrt(statistic), welch_df([0.004, 0.006], [5, 9]))
    assert p == pytest.approx(welch, abs=4 * np.sqrt(welch / 9999) + 0.003)
    values, weights = np.array([0.10, 0.12, 0.13]), 1 / np.array([0.004, 0.006, 0.01]) ** 2
    three = joint_p([a, b, straight(0.13, 0.01, 4)], generator())[0]
    mean = (weights * values).sum() / weights.sum()
    assert three == pytest.approx((weights * (values - mean) ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize(("scales", "df"), [((4.0, 1.0, 1.0), (2, 6, 6)), ((1.0, 1.0, 1.0, 4.0), (2, 2, 2, 2))])
def test_the_joint_test_keeps_its_level_where_a_noisy_family_has_few_sizes(scales: tuple, df: tuple) -> None:
    """1,000 tables of equal exponents; the pooled F test rejects in more than 10% of the first kind."""
    rng, low, pooled = generator(1), 0, 0
    sigma, n = np.array(scales), np.array(df)
    for _ in range(1000):
        estimates, squares = sigma * rng.standard_normal(len(n)), sigma**2 * rng.chisquare(n) / n
        curves = [straight(e, s, d) for e, s, d in zip(estimates, np.sqrt(squares), n, strict=True)]
        low += joint_p(curves, rng)[1] < 0.05
        variance = (squares * n).sum() / n.sum()
        pooled += stats.f.sf(estimates.var(ddof=1) / variance, len(n) - 1, n.sum()) < 0.05
    assert 25 <= low <= 80  # 2.9% and 7.3% are what two degrees of freedom allow
    assert pooled > 80


def test_holm_by_hand() -> None:
    """Four p: 4 x .005, 3 x .01, 2 x .03, 1 x .04 and then never less than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.5, 0.02]) == [None, pytest.approx(0.5), pytest.approx(0.04)]
    assert holm([0.6, 0.9]) == [1.0, 1.0]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_holm_keeps_the_order_and_never_lowers_a_p(p_values: list[float | None]) -> None:
    adjusted = holm(p_values)
    known = [(p, q) for p, q in zip(p_values, adjusted, strict=True) if p is not None and q is not None]
    assert [p is None for p in p_values] == [q is None for q in adjusted]
    assert all(p <= q <= 1 for p, q in known)
    ordered = sorted(known)
    assert [q for _, q in ordered] == sorted(q for _, q in known)
    bonferroni = [min(1.0, len(known) * p) for p, _ in known]
    assert all(q <= b for (_, q), b in zip(known, bonferroni, strict=True))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_going_down_the_sorted_list_rejects(p_values: list[float]) -> None:
    """Holm 1979: reject, smallest first, while p <= level / (number not yet rejected)."""
    for level in (0.01, 0.05, 0.3):
        rejected, left = set(), len(p_values)
        for p, place in sorted((p, place) for place, p in enumerate(p_values)):
            if p * left > level:
                break
            rejected.add(place)
            left -= 1
        assert {place for place, p in enumerate(holm(p_values)) if p is not None and p <= level} == rejected
