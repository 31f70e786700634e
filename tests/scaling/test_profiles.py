"""Profile intervals against Student's t where the law is linear, and brute-force refits where it is not."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from slm.scaling.fitting import fit_sample
from slm.scaling.forms import Floats
from slm.scaling.intervals import uncertainty
from slm.scaling.laws import get_law
from slm.scaling.profiles import profile
from slm.scaling.sample import Sample
from tests.scaling.samples import TRUE, noisy, plain_law, sample
from tests.seeds import seeded


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(4, 20),
    slope=st.floats(-0.3, 0.3),
    sigma=st.floats(1e-3, 0.1),
    level=st.sampled_from([0.8, 0.95, 0.99]),
    seed=st.integers(0, 1000),
)
def test_the_interval_of_a_linear_law_is_students(
    rows: int, slope: float, sigma: float, level: float, seed: int
) -> None:
    rng = np.random.default_rng(seeded(seed))
    x = np.linspace(15, 21, rows)
    y = 3 - slope * x + sigma * rng.normal(size=rows)
    found, line = fit_sample(get_law("power"), sample(y, x)), stats.linregress(x, y)
    reach = stats.t.ppf(0.5 + level / 2, rows - 2)
    for name, estimate, error in (
        ("alpha", -line.slope, line.stderr),
        ("A", line.intercept, line.intercept_stderr),
    ):
        one = profile(found, name, level=level)
        assert one is not None
        assert one.low == pytest.approx(estimate - reach * error, abs=1e-4 * error)
        assert one.high == pytest.approx(estimate + reach * error, abs=1e-4 * error)
        np.testing.assert_allclose(one.root, (one.values - estimate) / error, atol=2e-4)


def brute_force(of: Sample, name: str, held: str, start: dict[str, float]) -> Callable[[float], float]:
    """t of one exponent held at a value: all others refitted by scipy from several starts, E and A, B in logs."""
    x = {v: np.exp(of.log_x[:, j]) for j, v in enumerate(get_law(name).variables)}
    others = [key for key in start if key != held]
    exponents = get_law(name).exponents
    starts = [np.array([start[k] if k in exponents else np.log(start[k]) for k in others])]
    bounds = [(1e-3, 5.0) if k in exponents else (-12.0, 60.0) for k in others]

    def sse(value: float) -> float:
        def residuals(p: Floats) -> Floats:
            free = dict(zip(others, p, strict=True))
            params = {k: v if k in exponents else float(np.exp(v)) for k, v in free.items()} | {held: value}
            return np.asarray(np.log(plain_law(name, params, x)) - of.log_y)

        best = np.inf
        for begin in (starts[0], starts[-1]):
            found = optimize.least_squares(
                residuals, begin, bounds=np.transpose(bounds), x_scale="jac", xtol=1e-13, ftol=1e-13, gtol=1e-13
            )
            if 2 * found.cost < best:
                best, latest = 2 * found.cost, found.x
        starts.append(latest)
        return float(best)

    least = optimize.minimize_scalar(
        sse, bounds=(0.7 * start[held], 1.4 * start[held]), method="bounded", options={"xatol": 1e-7}
    )
    df = len(of.log_y) - len(start)
    return lambda value: float(np.sqrt(max(sse(value) / least.fun - 1, 0) * df))


CASES = [
    ("power_floor", "alpha", 12, 0.004),
    ("power_floor", "alpha", 30, 0.004),
    ("chinchilla", "alpha", 30, 0.003),
    ("chinchilla", "beta", 30, 0.003),
]


@pytest.mark.parametrize(("name", "exponent", "rows", "sigma"), CASES)
def test_the_ends_of_an_interval_are_where_brute_force_reaches_the_f_quantile(
    name: str, exponent: str, rows: int, sigma: float
) -> None:
    law = get_law(name)
    of = noisy(name, law.variables, rows, sigma, seed=1)
    found = fit_sample(law, of)
    one = profile(found, exponent)
    assert one is not None
    assert one.low is not None
    assert one.high is not None
    t = brute_force(of, name, exponent, found.params)
    critical = np.sqrt(stats.f.ppf(0.95, 1, rows - len(TRUE[name])))
    assert t(one.low) == pytest.approx(critical, rel=0.01)
    assert t(one.high) == pytest.approx(critical, rel=0.01)


@pytest.mark.parametrize("name", ["power_floor", "chinchilla"])
def test_the_root_of_a_coefficients_profile_is_that_of_brute_force_too(name: str) -> None:
    law = get_law(name)
    of = noisy(name, law.variables, 25, 0.003, seed=2)
    found = fit_sample(law, of)
    for key in ("E", "A"):
        one = profile(found, key)
        assert one is not None
        for value in (one.low, one.high):
            assert value is not None
            x = {v: np.exp(of.log_x[:, j]) for j, v in enumerate(law.variables)}
            others = [k for k in found.params if k != key]

            def residuals(p: Floats, key: str = key, value: float = value, others: list[str] = others) -> Floats:
                free = {k: v if k in law.exponents else float(np.exp(v)) for k, v in zip(others, p, strict=True)}
                return np.asarray(np.log(plain_law(name, free | {key: np.exp(value)}, x)) - of.log_y)  # noqa: B023

            begin = [found.params[k] if k in law.exponents else np.log(found.params[k]) for k in others]
            best = optimize.least_squares(residuals, begin, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14)
            df = 25 - len(found.params)
            t = np.sqrt((2 * best.cost / found.sse - 1) * df)
            assert t == pytest.approx(stats.t.ppf(0.975, df), rel=0.01)


@pytest.mark.slow
def test_profile_intervals_cover_the_truth() -> None:
    inside = 0
    for seed in range(100):
        one = profile(fit_sample(get_law("power_floor"), noisy("power_floor", ("N",), 10, 0.003, seed)), "alpha")
        assert one is not None
        low, high = one.low or -np.inf, one.high or np.inf
        inside += low <= TRUE["power_floor"]["alpha"] <= high
    assert 88 <= inside <= 99  # 95 expected; 3 standard errors below


def test_ends_that_the_data_do_not_set_are_open() -> None:
    """Four sizes, a straight line in logs: a floor of nothing fits as well, so E has no lower end."""
    x = np.log([1.24e8, 3.45e8, 6.03e8, 1.005e9])
    of = sample(np.log([2.482, 2.195, 2.078, 1.970]), x)
    found = fit_sample(get_law("power_floor"), of)
    floor, alpha = profile(found, "E"), profile(found, "alpha")
    assert floor is not None
    assert floor.low is None
    assert alpha is not None
    assert alpha.low is not None
    # Only the smallest size deviates: any exponent that is steep enough says the same.
    step = sample(np.array([1.08, 1.004, 0.997, 1.002, 0.998, 1.001]), np.linspace(16, 19, 6))
    steep = profile(fit_sample(get_law("power_floor"), step), "alpha")
    assert steep is not None
    assert steep.low is not None
    assert steep.high is None


def test_a_parameter_that_is_no_linear_function_of_the_coordinates_has_no_profile() -> None:
    of = noisy("kaplan_joint", ("N", "D"), 12, 0.003)
    assert profile(fit_sample(get_law("kaplan_joint"), of), "N_c") is None


def test_the_intervals_of_kaplans_n_c_and_d_c_contain_their_estimates() -> None:
    found = fit_sample(get_law("kaplan_joint"), noisy("kaplan_joint", ("N", "D"), 30, 0.003))
    ci = uncertainty(found, replicates=200, rng=np.random.default_rng(seeded())).ci
    for name in ("N_c", "D_c"):
        assert profile(found, name) is None
        low, high = ci[name]
        assert low is not None
        assert high is not None
        assert low < found.params[name] < high
