"""The mixed-effects summary against closed forms, a grid, and an example worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from slm.scaling.forms import Floats
from slm.scaling.pooling import pool
from tests.seeds import generator


def reml(y: Floats, variance: Floats) -> float:
    """tau by brute force: the restricted likelihood, from the determinant of Harville 1974, on a fine grid."""
    grid = np.r_[0, np.geomspace(1e-6, 10, 20001)] * (np.var(y) + variance.max())
    V = variance + grid[:, None]
    mean = (y / V).sum(axis=1) / (1 / V).sum(axis=1)
    loss = np.log(V).sum(axis=1) + np.log((1 / V).sum(axis=1)) + ((y - mean[:, None]) ** 2 / V).sum(axis=1)
    return float(np.sqrt(grid[np.argmin(loss)]))


def test_equal_errors_have_a_closed_form() -> None:
    """REML is then the variance of the estimates less that of the errors, and the mean is the plain mean."""
    y, se = np.array([0.10, 0.14, 0.11, 0.19]), 0.015
    found = pool(y.tolist(), [se] * 4)
    tau2 = y.var(ddof=1) - se**2
    error = np.sqrt(y.var(ddof=1) / 4)
    assert found.mean == pytest.approx(y.mean())
    assert found.tau == pytest.approx(np.sqrt(tau2), rel=1e-4)
    reach = stats.t.ppf(0.975, 3) * error
    assert (found.low, found.high) == pytest.approx((y.mean() - reach, y.mean() + reach), rel=1e-6)
    assert found.q == pytest.approx(((y - y.mean()) ** 2).sum() / se**2)
    ahead = stats.t.ppf(0.975, 2) * np.sqrt(tau2 + error**2)
    assert found.next_high - found.mean == pytest.approx(ahead, rel=1e-4)
    # tau's upper end: Q at it is the 5% quantile of chi squared.
    high2 = ((y - y.mean()) ** 2).sum() / stats.chi2.ppf(0.05, 3) - se**2
    assert found.tau_high == pytest.approx(np.sqrt(high2), rel=1e-6)
    shrunk = y.mean() + tau2 / (tau2 + se**2) * (y - y.mean())
    assert found.shrunken == pytest.approx(tuple(shrunk), rel=1e-4)


def test_an_example_worked_by_hand() -> None:
    """y = 0.1, 0.2, 0.3 with errors 0.02, 0.04, 0.05, and tau from a grid of the restricted likelihood."""
    y, se = np.array([0.1, 0.2, 0.3]), np.array([0.02, 0.04, 0.05])
    found = pool(y.tolist(), se.tolist())
    tau = reml(y, se**2)
    assert found.tau == pytest.approx(tau, rel=1e-3)
    # Fixed-effects weights 2500, 625, 400: mean (250 + 125 + 120) / 3525 = 0.140426.
    assert found.q == pytest.approx((np.array([2500, 625, 400]) * (y - 0.140426) ** 2).sum(), rel=1e-4)
    w = 1 / (se**2 + tau**2)
    mean = (w * y).sum() / w.sum()
    knapp = np.sqrt(max(1, (w * (y - mean) ** 2).sum() / 2) / w.sum())
    assert found.mean == pytest.approx(mean, rel=1e-4)
    assert found.high == pytest.approx(mean + stats.t.ppf(0.975, 2) * knapp, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.02, 0.6), st.floats(0.003, 0.2)), min_size=2, max_size=6))
def test_tau_is_the_most_likely_of_a_grid(families: list[tuple[float, float]]) -> None:
    estimates, errors = np.transpose(families)
    variance, found = errors**2, pool(estimates.tolist(), errors.tolist())

    def loss(tau: float) -> float:
        V = variance + tau**2
        mean = (estimates / V).sum() / (1 / V).sum()
        return float(np.log(V).sum() + np.log((1 / V).sum()) + ((estimates - mean) ** 2 / V).sum())

    assert loss(found.tau) <= loss(reml(estimates, variance)) + 1e-6
    assert found.low < found.mean < found.high
    assert found.next_low <= found.mean <= found.next_high
    assert (np.abs(np.subtract(found.shrunken, found.mean)) <= np.abs(estimates - found.mean) + 1e-12).all()


def test_families_that_agree_are_one_population_without_spread() -> None:
    found = pool([0.2, 0.2, 0.2], [0.01, 0.02, 0.03])
    assert found.tau == 0
    assert found.mean == pytest.approx(0.2)
    assert found.shrunken == pytest.approx((0.2, 0.2, 0.2))
    assert found.q == pytest.approx(0)
    # No less wide than with the known errors: weights 10000, 2500, 1111.
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 2) / np.sqrt(10000 + 2500 + 10000 / 9))


def test_there_is_nothing_to_pool_of_one_family_or_of_unknown_errors() -> None:
    assert pool([0.2], [0.01]) is None
    assert pool([0.2, 0.3], [0.01, float("nan")]) is None
    assert pool([0.2, 0.3], [0.01, 0.0]) is None


def test_the_interval_of_the_mean_covers_it() -> None:
    rng, inside = generator(), 0
    for _ in range(400):
        se = rng.uniform(0.01, 0.04, 4)
        found = pool((0.2 + 0.03 * rng.normal(size=4) + se * rng.normal(size=4)).tolist(), se.tolist())
        inside += found.low <= 0.2 <= found.high
    assert 0.92 * 400 <= inside <= 0.99 * 400
