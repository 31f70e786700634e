"""Which method an interval is by, what it is worth, and what is called not identified."""

import numpy as np
import pytest
from scipy import stats

from slm.scaling import Fit, Loss, Uncertainty, read_table, uncertainty
from slm.scaling.clusters import cluster_error
from slm.scaling.fitting import fit_sample
from tests.scaling.samples import FLOOR, POWER, grouped, noisy, sample
from tests.seeds import generator


def of(found: Fit, replicates: int = 0) -> Uncertainty:
    return uncertainty(found, replicates=replicates, rng=generator())


def test_the_method_follows_from_law_loss_and_clusters() -> None:
    line, curve = noisy("power", 12, 0.01), noisy("power_floor", 12, 0.004)
    pairs = np.repeat(np.arange(6), 2)
    shared = sample(curve.log_y, curve.log_x, pairs)
    assert of(fit_sample(POWER, line)).method == "ols_t"
    assert of(fit_sample(FLOOR, curve)).method == "profile_t"
    assert of(fit_sample(FLOOR, curve, loss=Loss(1e-3))).method == "cluster_bootstrap"
    assert of(fit_sample(POWER, line, loss=Loss(1e-3))).method == "cluster_bootstrap"
    assert of(fit_sample(FLOOR, shared)).method == "cluster_t"
    assert of(fit_sample(POWER, sample(line.log_y, line.log_x, pairs))).method == "cluster_t"


def test_errors_and_interval_of_a_straight_line_are_those_of_regression() -> None:
    rows = noisy("power", 9, 0.02)
    found, line = of(fit_sample(POWER, rows)), stats.linregress(rows.log_x[:, 0], rows.log_y)
    reach = stats.t.ppf(0.975, 7)
    assert found.se["alpha"] == pytest.approx(line.stderr, rel=1e-4)
    assert found.se["A"] == pytest.approx(np.exp(line.intercept) * line.intercept_stderr, rel=1e-3)  # delta method
    ends = np.exp(line.intercept + reach * line.intercept_stderr * np.array([-1, 1]))
    assert found.ci["A"] == pytest.approx(tuple(ends), rel=1e-3)
    assert found.reasons_not_identified == {}


def test_the_published_rows_have_the_intervals_of_facts() -> None:
    ppl, loss, x = np.log(read_table("mobilellm_published").frame[["perplexity", "loss", "params_total"]].to_numpy().T)
    ppl, loss = fit_sample(POWER, sample(ppl, x)), fit_sample(POWER, sample(loss, x))
    assert of(ppl).ci["alpha"] == pytest.approx((0.185, 0.306), abs=5e-4)
    assert of(loss).ci["alpha"] == pytest.approx((0.094, 0.127), abs=5e-4)
    assert loss.params["alpha"] == pytest.approx(0.1105, abs=5e-5)


def test_rows_of_one_run_with_all_error_shared_have_the_interval_of_the_runs_means() -> None:
    """Thirty runs with two rows each: a regression on the thirty means, to the small-sample corrections."""
    y, x, run = grouped(generator(1), groups=30, each=2, shared=0.02, own=0.0)
    line = stats.linregress(x[::2], y[::2])
    reach = stats.t.ppf(0.975, 28) * line.stderr
    ci = of(fit_sample(POWER, sample(y, x, run))).ci["alpha"]
    assert ci == pytest.approx((-line.slope - reach, -line.slope + reach), abs=0.15 * reach)


def test_hubers_bootstrap_interval_is_scaled_up_for_the_parameters() -> None:
    """Six runs, two parameters: t with 4 degrees of freedom, and sqrt(6 / 4) for what the residuals lack."""
    of_runs = sample(*grouped(generator(2), groups=6, each=2, shared=0.02, own=0.0))
    found = of(fit_sample(POWER, of_runs, loss=Loss(1e-3)), replicates=300)
    low, high = found.ci["alpha"]
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 4) * np.sqrt(6 / 4) * found.se["alpha"], rel=1e-6)


@pytest.mark.parametrize(("shapes", "rows", "own"), [(6, 4, 0.005), (8, 10, 0.001), (15, 3, 0.0)])
def test_intervals_of_rows_that_share_shapes_cover_the_truth(shapes: int, rows: int, own: float) -> None:
    """Monte Carlo of 300 data sets; Student's t, which takes rows for independent, covers 60 to 85% of these."""
    inside = plain = 0
    for seed in range(300):
        y, x, shape = grouped(generator(seed), shapes, rows, 0.02, own)
        low, high = of(fit_sample(POWER, sample(y, x, shape))).ci["alpha"]
        inside += low <= 0.1 <= high
        line = stats.linregress(x, y)
        plain += abs(-line.slope - 0.1) <= stats.t.ppf(0.975, len(x) - 2) * line.stderr
    assert 0.925 * 300 <= inside <= 0.985 * 300
    assert plain < 0.87 * 300


def test_four_sizes_do_not_identify_three_parameters() -> None:
    frame = read_table("mobilellm_published").frame
    result = of(fit_sample(FLOOR, sample(*np.log(frame[["loss", "params_total"]].to_numpy(float).T))))
    assert set(result.reasons_not_identified) >= {"E", "alpha"}
    assert any("4 distinct sizes and 4 values for 3 parameters" in note for note in result.notes)


def test_exponents_of_noise_are_not_identified() -> None:
    x = np.linspace(16, 21, 9)
    flat = sample(1.1 + 0.02 * generator(4).normal(size=9), x)
    assert "alpha" in of(fit_sample(FLOOR, flat)).reasons_not_identified
    line = of(fit_sample(POWER, flat))
    assert line.reasons_not_identified == {}  # a slope of about nothing is a finding
    assert "the interval of alpha includes 0" in line.notes


def test_a_floor_that_the_data_do_not_show_is_marked() -> None:
    x = np.linspace(16, 21, 12)
    noise = 0.002 * generator().normal(size=12)
    found = fit_sample(FLOOR, sample(np.log(8 - 0.25 * x) + noise, x))
    assert found.certificate.at_bound == ("E",)
    result = of(found)
    assert "E" in result.reasons_not_identified
    assert any("E ended at 0" in note for note in result.notes)
    assert of(fit_sample(FLOOR, noisy("power_floor", 25, 0.001))).reasons_not_identified == {}


def test_an_exponent_whose_coefficient_is_at_its_bound_is_not_identified() -> None:
    """Only the smallest of eight sizes (over a factor of 400) deviates: every steep enough exponent fits alike."""
    x = np.linspace(16, 22, 8)
    y = 1 + 0.003 * generator().standard_normal(8) + 0.08 * (np.arange(8) == 0)
    found = fit_sample(FLOOR, sample(y, x))
    assert found.sse > 1.0001 * 7 * y[1:].var()  # alpha towards infinity is better still
    assert "alpha" in of(found).reasons_not_identified


def test_replicates_are_optional_where_they_are_a_cross_check() -> None:
    found = fit_sample(FLOOR, noisy("power_floor", 12, 0.003))
    without, with_ = of(found), of(found, 300)
    assert without.ensembles == {}
    assert without.ci == with_.ci
    assert set(with_.bootstrap_se) == {"cluster", "wild", "delta"}
    delta, wild = with_.bootstrap_se["delta"]["alpha"], with_.bootstrap_se["wild"]["alpha"]
    assert delta == pytest.approx(np.sqrt(found.covariance[2, 2]), rel=1e-6)
    assert wild == pytest.approx(delta, rel=0.35)


def test_the_delta_method_of_a_coefficient_is_its_gradient_times_the_covariance() -> None:
    found = fit_sample(FLOOR, noisy("power_floor", 25, 0.002))
    gradient = found.params["A"] * np.array([0.0, 1.0, found.sample.refs[0]])  # A = exp(a + alpha ref)
    assert of(found).se["A"] == pytest.approx(np.sqrt(gradient @ found.covariance @ gradient), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_error_of_a_mean_is_that_of_the_means_of_equally_large_clusters(rows: int) -> None:
    """With one cluster, one value: the textbook's s / sqrt(G) with G - 1 degrees of freedom (Bell & McCaffrey 2002)."""
    rng = generator()
    clusters = np.repeat(np.arange(7), rows)
    y = rng.normal(size=7)[clusters] + 0.3 * rng.normal(size=7 * rows)
    error, df = cluster_error(np.ones((len(y), 1)), y - y.mean(), clusters, np.ones(1))
    means = y.reshape(7, rows).mean(axis=1)
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(7))
    assert df == pytest.approx(6)


def test_clusters_of_one_row_are_the_heteroscedastic_estimator_hc2() -> None:
    """MacKinnon & White 1985: squared residuals over 1 - leverage."""
    rng = generator(1)
    X = np.stack([np.ones(12), rng.normal(size=12)], axis=1)
    y = X @ [1.0, 2.0] + rng.normal(size=12) * (1 + np.abs(X[:, 1]))
    bread = np.linalg.inv(X.T @ X)
    residuals = y - X @ bread @ X.T @ y
    leverage = np.einsum("ij,jk,ik->i", X, bread, X)
    meat = (X.T * (residuals**2 / (1 - leverage))) @ X
    error, _ = cluster_error(X, residuals, np.arange(12), np.array([0.0, 1.0]))
    assert error == pytest.approx(np.sqrt((bread @ meat @ bread)[1, 1]))


def test_its_degrees_of_freedom_are_those_of_the_variance_that_is_estimated() -> None:
    """Satterthwaite's: twice the squared mean over the variance of the estimate, by simulation of independent noise."""
    rng = generator(2)
    clusters = np.repeat(np.arange(6), [2, 3, 4, 5, 2, 6])
    X = np.stack([np.ones(len(clusters)), rng.normal(size=6)[clusters]], axis=1)
    maker = np.eye(len(X)) - X @ np.linalg.pinv(X)  # of residuals
    found = [cluster_error(X, maker @ rng.normal(size=len(X)), clusters, np.array([0.0, 1.0])) for _ in range(4000)]
    squares = np.array([error**2 for error, _ in found])
    assert found[0][1] == pytest.approx(2 * squares.mean() ** 2 / squares.var(), rel=0.1)
    truth = np.linalg.inv(X.T @ X)[1, 1]
    assert squares.mean() == pytest.approx(truth, rel=0.05)  # and it is unbiased for such noise
