"""Bootstraps keep together what belongs together, and spread as the estimates really do."""

import numpy as np
import pytest

from slm.scaling.clusters import _cluster_weights, _wild_factors, bootstrap, refit, scatter_df
from slm.scaling.fitting import Fit, fit_sample
from slm.scaling.laws import get_law
from tests.scaling.samples import FLOOR, POWER, grouped, noisy, sample
from tests.seeds import generator


def clustered(seed: int, *, shared: float, own: float, groups: int = 30, each: int = 4) -> Fit:
    return fit_sample(POWER, sample(*grouped(generator(seed), groups, each, shared, own)))


def ols_error(found: Fit) -> float:
    x, df = found.sample.log_x[:, 0], found.degrees_of_freedom
    return float(np.sqrt((found.residuals**2).sum() / df / ((x - x.mean()) ** 2).sum()))


def test_clusters_are_drawn_whole_and_as_many_as_there_are() -> None:
    clusters = np.array([7, 7, 2, 2, 2, 5])  # numbers of clusters need not be 0, 1, 2
    weights = _cluster_weights(clusters, 2000, generator())
    assert (weights[:, [1, 3, 4]] == weights[:, [0, 2, 2]]).all()
    assert (weights[:, [0, 2, 5]].sum(axis=1) == 3).all()
    # Of a multinomial with three equal chances: mean 1, variance 2/3, and 6/27 draws hold every cluster once.
    assert weights[:, 0].mean() == pytest.approx(1, abs=4 * np.sqrt(2 / 3 / 2000))
    assert (weights[:, [0, 2, 5]] == 1).all(axis=1).mean() == pytest.approx(6 / 27, abs=0.04)


def test_on_independent_rows_the_bootstraps_agree_with_least_squares() -> None:
    rng = generator(1)
    x = rng.uniform(15, 22, 200)
    found = fit_sample(POWER, sample(3 - 0.1 * x + 0.02 * rng.normal(size=200), x))
    for kind in ("cluster", "wild"):
        ensemble = bootstrap(found, kind, 1000, generator(2))
        assert ensemble.failed == 0
        assert ensemble.theta[:, 1].std(ddof=1) == pytest.approx(ols_error(found), rel=0.12)
        assert ensemble.theta[:, 1].mean() == pytest.approx(found.theta[1], abs=0.1 * ols_error(found))


def test_rows_that_move_together_have_the_error_of_their_groups() -> None:
    """With shared errors only, 4 rows are worth one: the error is that of the 30 group means, twice the naive one."""
    found = clustered(3, shared=0.02, own=0.0)
    naive = ols_error(found)
    for kind in ("cluster", "wild"):
        error = bootstrap(found, kind, 800, generator(4)).theta[:, 1].std(ddof=1)
        assert error == pytest.approx(2 * naive, rel=0.25)
        alone = fit_sample(POWER, sample(found.sample.log_y, found.sample.log_x))
        assert error > 1.5 * bootstrap(alone, kind, 800, generator(4)).theta[:, 1].std(ddof=1)


def test_the_degrees_of_freedom_of_the_scatter_are_those_of_rows_or_of_groups() -> None:
    """Of a line through 5 groups of 4 rows: 20 - 2 if errors of a group cancel, 5 - 2 if a group has one error."""
    log_y, x, group = grouped(generator(5), 5, 4, shared=0.02, own=0.0)
    assert scatter_df(fit_sample(POWER, sample(log_y, x, group))) == pytest.approx(3)
    opposed = 3 - 0.1 * x + 0.02 * np.tile([1, -1, 2, -2], 5)
    assert scatter_df(fit_sample(POWER, sample(opposed, x, group))) == pytest.approx(18)
    assert scatter_df(fit_sample(POWER, sample(log_y, x))) == 18


def test_the_cluster_bootstrap_finds_the_scatter_of_repeated_experiments() -> None:
    """Monte Carlo: the spread of the estimate over 400 new data sets, against the mean bootstrap error of 20."""
    fits = [clustered(seed, shared=0.02, own=0.01) for seed in range(400)]
    resampled = [bootstrap(fit, "cluster", 200, generator(seed)).theta[:, 1] for seed, fit in enumerate(fits[:20])]
    slopes = [fit.theta[1] for fit in fits]
    assert np.mean([slope.std(ddof=1) for slope in resampled]) == pytest.approx(np.std(slopes, ddof=1), rel=0.15)


def test_wild_factors_are_shared_within_a_cluster_and_have_mean_0_and_variance_1() -> None:
    for groups, values in ((6, 6), (20, 2)):
        clusters = np.repeat(np.arange(groups), 2)
        factors = _wild_factors(clusters, 4000, generator())
        assert (factors[:, ::2] == factors[:, 1::2]).all()
        assert len(np.unique(factors)) == values
        assert abs(factors.mean()) < 4 / np.sqrt(4000 * groups)
        assert factors.var() == pytest.approx(1, abs=0.03)
        assert len(np.unique(factors, axis=0)) > 1000  # two signs for six clusters would leave 64


@pytest.mark.parametrize("each", [1, 2])
def test_the_wild_bootstraps_error_of_few_rows_is_known_exactly(each: int) -> None:
    """Of a line: sum over clusters of (sum z r)^2 / Szz^2, residuals r scaled up by sqrt(n / (n - 2))."""
    found = clustered(8, shared=0.02, own=0.01, groups=5, each=each)
    x, run, n = found.sample.log_x[:, 0], found.sample.clusters, 5 * each
    z = x - x.mean()
    scores = np.bincount(run, z * (found.sample.log_y - np.polyval(np.polyfit(x, found.sample.log_y, 1), x)))
    expected = np.sqrt(n / (n - 2) * (scores**2).sum()) / (z @ z)
    error = bootstrap(found, "wild", 6000, generator()).theta[:, 1].std()
    assert error == pytest.approx(expected, rel=0.04)


def test_the_wild_bootstrap_keeps_every_row_and_so_never_fails_on_few_sizes() -> None:
    found = fit_sample(FLOOR, noisy("power_floor", 5, 0.003))
    cluster, wild = (bootstrap(found, kind, 200, generator()) for kind in ("cluster", "wild"))
    # Drawing 5 rows of 5: only draws with 4 or 5 distinct rows hold 3 parameters, (5! + 10 x 5!)/5^5 of 1.
    chance = (120 + 1200) / 3125
    assert 1 - cluster.failed == pytest.approx(chance, abs=0.12)
    assert wild.failed < 0.1


def test_refits_in_chunks_are_refits_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fit_sample(FLOOR, noisy("power_floor", 10, 0.004))
    rng = generator()
    log_y = found.sample.log_y + 0.003 * rng.normal(size=(7, 10))
    weights = rng.integers(1, 3, (7, 10)).astype(float)
    start = np.repeat(found.theta[None], 7, axis=0)
    whole = refit(found, log_y, weights, start)
    monkeypatch.setattr("slm.scaling.clusters.MAX_BATCH_NUMBERS", 60)
    for one, other in zip(whole, refit(found, log_y, weights, start), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)


def test_a_design_whose_resamples_all_lack_sizes_gives_an_empty_ensemble() -> None:
    """8 sizes for 7 parameters: one draw in 416 holds all of them, so 20 draws mostly hold none that can be fitted."""
    found = fit_sample(get_law("width_depth"), noisy("width_depth", 8, 0.003))
    ensemble = bootstrap(found, "cluster", 20, generator())
    assert ensemble.failed == 1
    assert len(ensemble.theta) == 0
