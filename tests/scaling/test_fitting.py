"""Fits give back what data were made of, say so in textbook statistics, and refuse what cannot be fitted."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from slm.scaling import LAWS, Fit, Loss, Table, fit, get_law, lack_of_fit, table_from_frame
from slm.scaling.fitting import fit_sample, refusal
from slm.scaling.likelihood import criteria
from slm.scaling.sample import Sample
from slm.scaling.starts import coordinate_bounds
from tests.scaling.samples import CHINCHILLA, FLOOR, POWER, TRUE, design, grouped, log_law, noisy, plain_law, sample
from tests.seeds import generator

LINE = np.linspace(16, 20, 8)


@pytest.mark.parametrize("name", LAWS)
@settings(max_examples=6, deadline=None)
@given(times=st.lists(st.floats(0.75, 1.3), min_size=7, max_size=7), seed=st.integers(0, 50))
def test_noise_free_data_give_back_their_parameters(name: str, times: list[float], seed: int) -> None:
    params = {key: value * factor for (key, value), factor in zip(TRUE[name].items(), times, strict=False)}
    law = get_law(name)
    log_x = design(law.variables, 24, seed)
    found = fit_sample(law, sample(log_law(name, params, log_x), log_x))
    assert found.certificate.converged
    assert found.certificate.at_bound == ()
    # Residuals below rounding: what tells parameters apart is then the condition of the problem, not the fit.
    assert np.abs(found.residuals).max() < 1e-7
    estimates = [found.params[key] for key in law.exponents]
    np.testing.assert_allclose(estimates, [params[key] for key in law.exponents], rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(4, 30), slope=st.floats(-0.4, 0.4), sigma=st.floats(1e-3, 0.3), seed=st.integers(0, 10_000))
def test_a_power_law_is_linear_regression_in_logs(rows: int, slope: float, sigma: float, seed: int) -> None:
    rng = generator(seed)
    x = rng.uniform(14, 22, rows)
    y = 3 - slope * x + sigma * rng.normal(size=rows)
    found, line = fit_sample(POWER, sample(y, x)), stats.linregress(x, y)
    assert found.params["alpha"] == pytest.approx(-line.slope, abs=1e-4 * line.stderr)
    assert np.log(found.params["A"]) == pytest.approx(line.intercept, abs=1e-4 * line.intercept_stderr)
    assert found.r2 == pytest.approx(line.rvalue**2, rel=1e-6, abs=1e-9)
    assert np.sqrt(found.covariance[1, 1]) == pytest.approx(line.stderr, rel=1e-6)
    assert found.sigma == pytest.approx(np.std(y - line.intercept - line.slope * x) * np.sqrt(rows / (rows - 2)), 1e-6)


def test_aicc_and_bic_are_those_of_a_gaussian_likelihood() -> None:
    of = noisy("power_floor", 12, 0.004)
    found = fit_sample(FLOOR, of)
    n, k = 12, 4  # E, A, alpha and the variance
    residuals = of.log_y - log_law("power_floor", found.params, of.log_x)
    likelihood = stats.norm.logpdf(residuals, scale=np.sqrt((residuals**2).mean())).sum()
    aicc, bic, *_ = criteria([found])
    assert aicc == pytest.approx(2 * k - 2 * likelihood + 2 * k * (k + 1) / (n - k - 1), rel=1e-9)
    assert bic == pytest.approx(k * np.log(n) - 2 * likelihood, rel=1e-9)


def test_hubers_criteria_are_those_of_the_density_that_its_loss_is_the_logarithm_of() -> None:
    """Normalised by quadrature, its scale by a search over a grid."""
    of, loss, k = noisy("power_floor", 12, 0.004), Loss(1e-3), 4
    found = fit_sample(FLOOR, of, loss=loss)
    grid = np.linspace(-0.2, 0.2, 400_001)
    scales = np.geomspace(1e-7, 1e-4, 400)
    normal = np.array([np.trapezoid(np.exp(-loss.value(grid) / scale), grid) for scale in scales])
    least = (2 * 12 * np.log(normal) + 2 * loss.value(found.residuals).sum() / scales).min()
    assert criteria([found]).bic == pytest.approx(least + k * np.log(12), abs=0.02)


def test_rows_of_one_cluster_count_by_their_correlation() -> None:
    """Against the multivariate normal likelihood with the same correlation within clusters, maximised over a grid."""
    y, x, runs = grouped(generator(), groups=8, each=3, shared=0.02, own=0.01)
    found = fit_sample(POWER, sample(y, x, runs))
    same = runs[:, None] == runs[None, :]
    best = np.inf
    for rho in np.linspace(0, 0.98, 99):
        shape = np.where(same, rho, 0.0) + (1 - rho) * np.eye(24)
        variance = found.residuals @ np.linalg.solve(shape, found.residuals) / 24
        best = min(best, -2 * stats.multivariate_normal(np.zeros(24), variance * shape).logpdf(found.residuals))
    assert criteria([found]).bic == pytest.approx(best + 4 * np.log(24), abs=0.01)
    assert best < criteria([found]).bic


def test_the_covariance_is_sigma_squared_times_the_inverse_of_a_hessian_by_differences() -> None:
    of = noisy("chinchilla", 40, 0.003)
    found = fit_sample(CHINCHILLA, of)

    def half_sse(theta: np.ndarray) -> float:
        return 0.5 * float(((of.log_y - CHINCHILLA.log_value(theta[None], of.centred)[0]) ** 2).sum())

    h, signs = 1e-4, ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
    differences = [
        sum(sign * half_sse(found.theta + h * (s * one + t * two)) for s, t, sign in signs)
        for one in np.eye(5)
        for two in np.eye(5)
    ]
    hessian = np.reshape(differences, (5, 5)) / (4 * h * h)
    expected = np.linalg.inv(hessian) * 2 * half_sse(found.theta) / (40 - 5)
    np.testing.assert_allclose(np.diag(found.covariance), np.diag(expected), rtol=1e-3)


@pytest.mark.parametrize(
    ("law", "columns", "words"),
    [
        ("power", [[18.0] * 5], "N has one value in all rows"),
        ("power", [[16.0, 18.0]], "2 distinct sizes for 2 parameters"),
        ("power_floor", [[16.0, 17.0, 17.0, 18.0, 18.0]], "3 distinct sizes for 3 parameters"),
        ("chinchilla", [LINE, [21.0] * 8], "D has one value in all rows"),
        ("chinchilla", [LINE, 3 + LINE], "N and D change together, so their effects cannot be separated"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_words(law: str, columns: list, words: str) -> None:
    log_x = np.transpose(columns)
    of = sample(np.linspace(1.3, 1.0, len(log_x)), log_x)
    assert words in (refusal(get_law(law), of) or "")
    with pytest.raises(ValueError, match=f"^{law} not fitted: .*{words}"):
        fit_sample(get_law(law), of)
    assert refusal(CHINCHILLA, noisy("chinchilla", 12, 0.01)) is None


def test_equal_results_have_no_exponent() -> None:
    """Seeds scatter by more than the 0.01% by which these differ at most."""
    flat = sample(np.log(3.2) + np.array([0, 9e-5, 0, 0, 2e-5, 0]), design(("N",), 6, 0))
    assert "all results are equal, to within 0.01%" in (refusal(POWER, flat) or "")
    assert refusal(POWER, sample(flat.log_y * 1.5, flat.log_x)) is None


def replicated(seed: int = 2, wobble: float = 0.0) -> Sample:
    """Three seeds of each of six sizes; `wobble` moves a whole size off the law."""
    y, x, cell = grouped(generator(seed), groups=6, each=3, shared=wobble, own=0.01)
    return sample(y, x, None, cell)


def test_lack_of_fit_is_the_f_test_of_the_textbook() -> None:
    """Draper & Smith, section 2.1: residual = lack of fit + pure error, from an analysis of variance by hand."""
    of = replicated(wobble=0.02)
    found = fit_sample(POWER, of)
    groups = [of.log_y[of.cells == c] for c in range(6)]
    x = of.log_x[:, 0]
    residual = ((of.log_y - np.polyval(np.polyfit(x, of.log_y, 1), x)) ** 2).sum()
    pure = sum(((g - g.mean()) ** 2).sum() for g in groups)
    f = ((residual - pure) / 4) / (pure / 12)
    test = lack_of_fit(found, of)
    assert (test.df, test.pure_df) == (4, 12)
    assert test.f == pytest.approx(f, rel=1e-6)
    assert test.p == pytest.approx(1 - stats.f.cdf(f, 4, 12), rel=1e-6)
    assert test.pure_sigma == pytest.approx(np.sqrt(pure / 12))
    apart = sample(of.log_y, of.log_x)
    assert lack_of_fit(fit_sample(POWER, apart), apart) is None


def test_lack_of_fit_is_the_same_by_the_means_of_equally_many_seeds() -> None:
    of = replicated(wobble=0.02)
    by_run, by_cell = (lack_of_fit(fit_sample(POWER, one), of) for one in (of, of.cell_means()))
    assert by_cell.f == pytest.approx(by_run.f, rel=1e-6)


def test_lack_of_fit_rejects_a_true_law_as_often_as_it_says() -> None:
    samples = [replicated(seed=s) for s in range(200)]
    p = [one.p for of in samples if (one := lack_of_fit(fit_sample(POWER, of), of))]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def run_table(of: Sample) -> Table:
    columns = {"N": np.exp(of.log_x[:, 0]), "loss": np.exp(of.log_y), "seed": np.arange(len(of.log_y))}
    return table_from_frame(pd.DataFrame({"family": "a"} | columns))


def test_fitting_by_cell_is_fitting_the_means_of_the_seeds() -> None:
    of = replicated()
    means = [of.log_y[of.cells == c].mean() for c in range(6)]
    line = stats.linregress(np.linspace(15, 22, 6), means)
    found = fit(run_table(of), "power", size="N", unit="cell")
    assert found.params["alpha"] == pytest.approx(-line.slope, rel=1e-9)
    assert found.degrees_of_freedom == 4
    assert np.sqrt(found.covariance[1, 1]) == pytest.approx(line.stderr, rel=1e-6)


def test_means_over_seeds_keep_checkpoints_of_the_same_runs_together() -> None:
    """Two seeds with four checkpoints at each of five sizes: 20 cells, but only five independent groups of runs."""
    cells = np.repeat(np.arange(20), 2)
    runs = 2 * (cells // 4) + np.tile([0, 1], 20)
    of = sample(np.linspace(1.3, 1.0, 40), np.repeat(np.linspace(16, 21, 20), 2), runs, cells)
    assert len(np.unique(of.cell_means().clusters)) == 5


def test_one_table_and_many_targets_and_sizes() -> None:
    table = run_table(replicated())
    ppl = fit(table, "power", size="N", target="perplexity")
    assert ppl.params["alpha"] != fit(table, "power", size="N").params["alpha"]
    line = stats.linregress(np.log(table.frame["N"]), table.frame["loss"])  # the log of a perplexity is the loss
    assert ppl.params["alpha"] == pytest.approx(-line.slope, rel=1e-6)
    with pytest.raises(ValueError, match="chinchilla of loss needs the column tokens, which the table lacks"):
        fit(table, "chinchilla", size="N")


def test_the_condition_number_is_that_of_the_scaled_information() -> None:
    of = noisy("power_floor", 20, 0.004)
    found = fit_sample(FLOOR, of)
    p, x = found.params, np.exp(of.log_x[:, 0])
    value = plain_law("power_floor", p, {"N": x})
    share = (value - p["E"]) / value
    jacobian = np.stack([1 - share, share, -share * (np.log(x) - np.log(x).mean())], axis=1)
    expected = np.linalg.cond(jacobian / np.linalg.norm(jacobian, axis=0)) ** 2
    assert found.certificate.condition_number == pytest.approx(expected, rel=1e-6)


def without_floor(E: float) -> Fit:
    x = np.linspace(16, 22, 12)
    return fit_sample(FLOOR, sample(np.log(E + 60 * np.exp(-0.13 * x)), x))


@pytest.mark.parametrize("E", [0.0, -0.5])
def test_a_floor_that_is_not_there_ends_at_its_bound_and_is_marked(E: float) -> None:
    found = without_floor(E)
    assert found.certificate.at_bound == ("E",)
    assert found.theta[0] == coordinate_bounds(FLOOR, found.sample)[0][0]
    assert found.params["E"] < 1e-4
    assert without_floor(1.0).certificate.at_bound == ()


def test_starts_that_agree_are_counted() -> None:
    """By minimising from each start with scipy: the share that comes within 1e-6 of the lowest."""
    found = fit_sample(FLOOR, noisy("power_floor", 20, 0.004))
    assert found.certificate.starts == 10
    assert found.certificate.starts_agreeing == 1.0
    assert found.certificate.gradient_norm < 1e-4
