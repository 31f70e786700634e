"""Differences of exponents against the pooled t test, brute force, and Holm's own example."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from slm.scaling.fitting import Fit, fit_sample
from slm.scaling.forms import Floats
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.laws import Law, get_law
from slm.scaling.pairs import Curve, Difference, curve, difference, holm, joint_p, welch_df
from slm.scaling.sample import Sample
from slm.scaling.solver import Loss
from tests.scaling.samples import noisy, sample
from tests.seeds import seeded

POWER, FLOOR, CHINCHILLA = get_law("power"), get_law("power_floor"), get_law("chinchilla")


def fitted(name: str, law: Law, of: Sample, loss: Loss = Loss()) -> tuple[str, Fit, Uncertainty]:  # noqa: B008
    found = fit_sample(law, of, loss=loss)
    return name, found, uncertainty(found, replicates=0, rng=np.random.default_rng(seeded()))


def differ(a: tuple[str, Fit, Uncertainty], b: tuple[str, Fit, Uncertainty], exponent: str = "alpha") -> Difference:
    one, two = (curve(found, of, exponent, 0.95) for _, found, of in (a, b))
    assert one is not None
    assert two is not None
    return difference(one, two)


def line(slope: float, rows: int, sigma: float, seed: int) -> Sample:
    x = np.linspace(15, 21, rows)
    return sample(3 - slope * x + sigma * np.random.default_rng(seeded(seed)).normal(size=rows), x)


@settings(max_examples=12, deadline=None)
@given(
    slopes=st.tuples(st.floats(0.05, 0.2), st.floats(0.05, 0.2)),
    rows=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    seed=st.integers(0, 999),
)
@example(slopes=(0.125, 0.15625), rows=(4, 4), seed=923)  # far out on the more exact one
def test_the_difference_of_two_straight_lines_is_welchs_t_test(
    slopes: tuple[float, float], rows: tuple[int, int], seed: int
) -> None:
    a, b = line(slopes[0], rows[0], 0.01, seed), line(slopes[1], rows[1], 0.02, seed + 1000)
    found = differ(fitted("a", POWER, a), fitted("b", POWER, b))
    fits = [stats.linregress(of.log_x[:, 0], of.log_y) for of in (a, b)]
    slope = [-fit.slope for fit in fits]
    squares = np.array([fit.stderr for fit in fits]) ** 2
    error, df = np.sqrt(squares.sum()), squares.sum() ** 2 / (squares**2 / (np.array(rows) - 2)).sum()
    t = (slope[0] - slope[1]) / error
    reach = stats.t.ppf(0.975, df) * error
    assert found.delta == pytest.approx(slope[0] - slope[1], abs=1e-3 * error)
    assert found.low == pytest.approx(slope[0] - slope[1] - reach, abs=0.01 * error)
    assert found.high == pytest.approx(slope[0] - slope[1] + reach, abs=0.01 * error)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), df), rel=0.02, abs=1e-5)


def mirrored(one: float | None) -> float | None:
    return None if one is None else -one


@pytest.mark.parametrize("seed", range(3))
def test_swapping_the_families_mirrors_the_difference(seed: int) -> None:
    """With a floor, and alpha unevenly known in the two: neither family is the one that is searched along."""
    a = fitted("a", FLOOR, noisy("power_floor", ("N",), 12, 0.003, seed))
    b = fitted("b", FLOOR, noisy("power_floor", ("N",), 9, 0.006, seed + 50))
    one, other = differ(a, b), differ(b, a)
    assert one.delta == -other.delta
    for end, opposite in ((one.low, mirrored(other.high)), (one.high, mirrored(other.low))):
        assert end == (None if opposite is None else pytest.approx(opposite, abs=0.01 * abs(opposite) + 1e-4))
    assert one.p == pytest.approx(other.p, rel=0.02)


def constrained(of: tuple[Sample, Sample], apart: float, start: float) -> float:
    """Least sum of squares, each family's in units of its own scatter, of two laws with floors and exponents `apart`.

    By scipy from several starts.
    """
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
    a, b = noisy("power_floor", ("N",), 20, 0.003, 1), noisy("power_floor", ("N",), 16, 0.003, 2)
    one, two = fitted("a", FLOOR, a), fitted("b", FLOOR, b)
    found = differ(one, two)
    assert found.low is not None
    assert found.high is not None
    best = constrained((a, b), found.delta, two[1].params["alpha"])
    assert best == pytest.approx(17 + 13, rel=1e-6)  # the degrees of freedom: each scatter is the family's own
    errors = [of.error(fit, "alpha", 0.95) for _, fit, of in (one, two)]
    assert found.df == pytest.approx(welch_df(errors, [17, 13]))
    assert 13 < found.df < 30
    critical = stats.t.ppf(0.975, found.df)
    for end in (found.low, found.high):
        t = np.sqrt(constrained((a, b), end, two[1].params["alpha"]) - best)
        assert t == pytest.approx(critical, rel=0.01)
    t_zero = np.sqrt(constrained((a, b), 0.0, two[1].params["alpha"]) - best)
    assert found.p == pytest.approx(2 * stats.t.sf(t_zero, found.df), rel=0.02)


def test_a_law_in_two_variables_is_compared_by_either_exponent() -> None:
    a, b = (fitted(n, CHINCHILLA, noisy("chinchilla", ("N", "D"), 30, 0.003, s)) for n, s in (("a", 1), ("b", 2)))
    for exponent in ("alpha", "beta"):
        found = differ(a, b, exponent)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.delta < found.high
        # Errors by the delta method are a first approximation of the same interval.
        error = np.hypot(a[2].bootstrap_se["delta"][exponent], b[2].bootstrap_se["delta"][exponent])
        assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 50) * error, rel=0.3)


def test_hubers_fits_are_compared_by_their_bootstrap_errors() -> None:
    a, b = line(0.1, 20, 0.01, 1), line(0.12, 25, 0.01, 2)
    one, two = fitted("a", POWER, a, Loss(1e-3)), fitted("b", POWER, b, Loss(1e-3))
    found = differ(one, two)
    # Each scaled up for its two parameters, as its own interval is.
    errors = [of.se["alpha"] * np.sqrt(n / (n - 2)) for (_, _, of), n in ((one, len(a.log_y)), (two, len(b.log_y)))]
    error, df = np.hypot(*errors), welch_df(errors, [18, 23])
    assert found.low == pytest.approx(found.delta - stats.t.ppf(0.975, df) * error, rel=1e-3)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.delta) / error, df), rel=1e-2)


def test_the_difference_of_an_exponent_without_an_upper_end_has_none_either() -> None:
    """In `a` only the smallest size deviates, so every exponent that is steep enough fits it alike."""
    step = sample(np.array([1.08, 1.004, 0.997, 1.002, 0.998, 1.001]), np.linspace(16, 19, 6))
    a, b = fitted("a", FLOOR, step), fitted("b", FLOOR, noisy("power_floor", ("N",), 12, 0.003))
    assert a[2].ci["alpha"][1] is None
    assert differ(a, b).high is None


def straight(estimate: float, error: float, df: float) -> Curve:
    steps = np.linspace(-50, 50, 201)
    return Curve(estimate + error * steps, steps, df, estimate, error, False, False)


def test_the_joint_test_of_two_families_is_welchs_t_and_its_statistic_a_weighted_sum_of_squares() -> None:
    a, b = straight(0.10, 0.004, 5), straight(0.12, 0.006, 9)
    statistic, p = joint_p([a, b], np.random.default_rng(seeded()))
    assert statistic == pytest.approx(0.02**2 / (0.004**2 + 0.006**2), rel=1e-4)
    welch = 2 * stats.t.sf(np.sqrt(statistic), welch_df([0.004, 0.006], [5, 9]))
    assert p == pytest.approx(welch, abs=4 * np.sqrt(welch / 9999) + 0.003)
    values, weights = np.array([0.10, 0.12, 0.13]), 1 / np.array([0.004, 0.006, 0.01]) ** 2
    three = joint_p([a, b, straight(0.13, 0.01, 4)], np.random.default_rng(seeded()))[0]
    mean = (weights * values).sum() / weights.sum()
    assert three == pytest.approx((weights * (values - mean) ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize(("scales", "df"), [((4.0, 1.0, 1.0), (2, 6, 6)), ((1.0, 1.0, 1.0, 4.0), (2, 2, 2, 2))])
def test_the_joint_test_keeps_its_level_where_a_noisy_family_has_few_sizes(
    scales: tuple[float, ...], df: tuple[int, ...]
) -> None:
    """1,000 tables of equal exponents; the pooled F test rejects in more than 10% of the first kind."""
    rng, low, pooled = np.random.default_rng(seeded(1)), 0, 0
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
