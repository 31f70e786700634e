"""Profile intervals against Student's t where the law is linear, and brute-force refits where it is not."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from slm.scaling.fitting import Fit, fit_sample, minimise_held
from slm.scaling.forms import Floats
from slm.scaling.intervals import uncertainty
from slm.scaling.laws import get_law
from slm.scaling.profiles import Profile, profiles
from slm.scaling.sample import Sample
from slm.scaling.starts import grid_starts
from tests.scaling.samples import FLOOR, POWER, TRUE, log_law, noisy, sample
from tests.seeds import generator


def profile(fit: Fit, name: str, **options: float) -> Profile:
    return profiles(fit, [name], **options)[name]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(4, 20), st.floats(-0.3, 0.3), st.floats(1e-3, 0.1), st.sampled_from([0.8, 0.95, 0.99]), st.integers(0)
)
def test_intervals_of_a_linear_law_are_students(rows: int, slope: float, sigma: float, level: float, seed: int) -> None:
    rng = generator(seed)
    x = np.linspace(15, 21, rows)
    y = 3 - slope * x + sigma * rng.normal(size=rows)
    found, line = fit_sample(POWER, sample(y, x)), stats.linregress(x, y)
    reach = stats.t.ppf(0.5 + level / 2, rows - 2)
    expected = {"alpha": (-line.slope, line.stderr), "A": (line.intercept, line.intercept_stderr)}
    for name, (estimate, error) in expected.items():
        one = profile(found, name, level=level)
        ends = (estimate - reach * error, estimate + reach * error)
        assert (one.low, one.high) == pytest.approx(ends, abs=1e-4 * error)
        np.testing.assert_allclose(one.t, (one.values - estimate) / error, atol=2e-4)


def brute_force(of: Sample, name: str, held: str, start: dict[str, float]) -> Callable[[float], float]:
    """t of one parameter held at a value, a coefficient at its log: scipy refits all others, coefficients in logs."""
    exponents = get_law(name).exponents
    logs = {key: value if key in exponents else np.log(value) for key, value in start.items()}
    others = [key for key in start if key != held]
    starts = [[logs[key] for key in others]]
    bounds = [(1e-3, 5.0) if key in exponents else (-12.0, 60.0) for key in others]
    tight = {"bounds": np.transpose(bounds), "x_scale": "jac", "xtol": 1e-13, "ftol": 1e-13, "gtol": 1e-13}

    def squares(value: float) -> float:
        def residuals(p: Floats) -> Floats:
            all_logs = dict(zip(others, p, strict=True)) | {held: value}
            params = {key: all_logs[key] if key in exponents else np.exp(all_logs[key]) for key in start}
            return log_law(name, params, of.log_x) - of.log_y

        fits = [optimize.least_squares(residuals, begin, **tight) for begin in (starts[0], starts[-1])]
        best = min(fits, key=lambda fit: fit.cost)
        starts.append(best.x)
        return float(2 * best.cost)

    near = sorted((0.7 * logs[held], 1.4 * logs[held]))
    least = optimize.minimize_scalar(squares, bounds=near, method="bounded", options={"xatol": 1e-7})
    df = len(of.log_y) - len(start)
    return lambda value: float(np.sqrt(max(squares(value) / least.fun - 1, 0) * df))


@pytest.mark.parametrize(
    ("name", "parameter", "rows", "sigma"),
    [
        ("power_floor", "alpha", 12, 0.004),
        ("power_floor", "alpha", 30, 0.004),
        ("power_floor", "E", 25, 0.003),
        ("power_floor", "A", 25, 0.003),
        ("chinchilla", "alpha", 30, 0.003),
        ("chinchilla", "beta", 30, 0.003),
        ("chinchilla", "E", 25, 0.003),
        ("chinchilla", "A", 25, 0.003),
    ],
)
def test_intervals_end_where_brute_force_has_the_quantile(name: str, parameter: str, rows: int, sigma: float) -> None:
    of = noisy(name, rows, sigma, seed=1)
    found = fit_sample(get_law(name), of)
    one, t = profile(found, parameter), brute_force(of, name, parameter, found.params)
    assert (t(one.low), t(one.high)) == pytest.approx((stats.t.ppf(0.975, rows - len(TRUE[name])),) * 2, rel=0.01)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_profile_misses_no_minimum_that_a_search_from_every_start_finds(seed: int) -> None:
    """Six shapes, whose tokens hardly vary per parameter, leave Kaplan's exponents in long flat valleys."""
    width, depth = np.array([128, 192, 256, 384, 512, 768]), np.array([6, 10, 14, 18, 26, 30])
    N = 12.0 * width**2 * depth + 32_000 * width
    D = N * np.array([15, 22, 30, 20, 26, 18])
    scatter = 0.0023 * np.random.default_rng(seed).standard_normal(6)
    of = sample(np.log(1.9 + 180 * N**-0.34 + 400 * D**-0.30) + scatter, np.log(np.stack([N, D], axis=1)))
    found = fit_sample(get_law("kaplan_joint"), of)
    one = profile(found, "alpha_N")
    starts = grid_starts(found.law, of)
    held, values = found.law.projection("alpha_N", of.refs)[None], np.tile(one.values, len(starts))[:, None]
    starts = np.repeat(starts, len(one.values), axis=0)
    objective = minimise_held(found, held, values, starts, tolerance=1e-9, max_steps=400)[1]
    lowest = objective.reshape(-1, len(one.values)).min(axis=0)
    t = np.sqrt(np.maximum(2 * lowest - found.sse, 0)) / found.sigma
    np.testing.assert_allclose(np.abs(one.t), t, atol=2e-3)
    assert one.low is None
    assert (one.high is None) == (t[-1] < stats.t.ppf(0.975, 2))


@pytest.mark.slow
def test_profile_intervals_cover_the_truth() -> None:
    inside = 0
    for seed in range(100):
        one = profile(fit_sample(FLOOR, noisy("power_floor", 10, 0.003, seed)), "alpha")
        low, high = one.low or -np.inf, one.high or np.inf
        inside += low <= TRUE["power_floor"]["alpha"] <= high
    assert 88 <= inside <= 99  # 95 expected; 3 standard errors below


def test_ends_that_the_data_do_not_set_are_open() -> None:
    """Four sizes, a straight line in logs: a floor of nothing fits as well, so E has no lower end."""
    x = np.log([1.24e8, 3.45e8, 6.03e8, 1.005e9])
    found = fit_sample(FLOOR, sample(np.log([2.482, 2.195, 2.078, 1.970]), x))
    assert profile(found, "E").low is None
    assert profile(found, "alpha").low is not None
    # Only the smallest size deviates: any exponent that is steep enough says the same.
    step = sample(np.array([1.08, 1.004, 0.997, 1.002, 0.998, 1.001]), np.linspace(16, 19, 6))
    steep = profile(fit_sample(FLOOR, step), "alpha")
    assert steep.low is not None
    assert steep.high is None


def test_kaplans_n_c_and_d_c_have_no_profile_and_their_intervals_contain_the_estimates() -> None:
    """Neither is a linear function of the coordinates."""
    found = fit_sample(get_law("kaplan_joint"), noisy("kaplan_joint", 30, 0.003))
    ci = uncertainty(found, replicates=200, rng=generator()).ci
    for name in ("N_c", "D_c"):
        assert not profiles(found, [name])
        assert ci[name][0] < found.params[name] < ci[name][1]
