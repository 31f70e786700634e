"""Bands and prediction intervals against the formulas of regression and repeated experiments."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slm.scaling.analysis import analyse
from slm.scaling.fitting import fit_sample
from slm.scaling.forms import Floats
from slm.scaling.laws import get_law
from slm.scaling.prediction import band, band_kind
from slm.scaling.resample import bootstrap
from slm.scaling.settings import Settings
from slm.scaling.tables import read_table, table_from_frame
from tests.scaling.samples import TRUE, noisy, plain_law, sample

POWER, FLOOR = get_law("power"), get_law("power_floor")
RNG = np.random.default_rng(0)


def textbook(x: Floats, y: Floats, at: Floats, *, new: bool, level: float) -> tuple[Floats, Floats]:
    """y_hat +- t s sqrt([1] + 1/n + (x0 - mean)^2 / Sxx)."""
    line, n = stats.linregress(x, y), len(x)
    s = np.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / (n - 2))
    error = s * np.sqrt(new + 1 / n + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    centre = line.intercept + line.slope * at
    return centre - stats.t.ppf(0.5 + level / 2, n - 2) * error, centre + stats.t.ppf(0.5 + level / 2, n - 2) * error


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_band_of_a_straight_line_is_the_textbooks(new: bool, level: float) -> None:
    of = noisy("power", ("N",), 8, 0.02)
    at = np.array([14.0, 18.0, 25.0])
    found = band(fit_sample(POWER, of), at[:, None], None, RNG, new_run=new, level=level)
    low, high = textbook(of.log_x[:, 0], of.log_y, at, new=new, level=level)
    np.testing.assert_allclose(found.low, low, rtol=1e-5)
    np.testing.assert_allclose(found.high, high, rtol=1e-5)


def test_the_published_rows_predict_a_model_of_two_billion() -> None:
    frame = read_table("mobilellm_published").frame
    x, y = np.log(frame["params_total"].to_numpy(float)), np.log(frame["perplexity"].to_numpy(float))
    run = band(fit_sample(POWER, sample(y, x)), np.log([[2e9]]), None, RNG, new_run=True)
    assert np.exp([run.centre[0], run.low[0], run.high[0]]) == pytest.approx([5.97, 5.18, 6.89], abs=0.005)


@pytest.mark.parametrize("new", [False, True])
def test_the_bootstrap_band_of_a_straight_line_would_be_the_textbooks_too(
    new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of other laws, taken by one whose answer is known."""
    of = noisy("power", ("N",), 9, 0.02)
    found, at = fit_sample(POWER, of), np.array([16.0, 18.5, 23.0])
    ensemble = bootstrap(found, "parametric", 6000, np.random.default_rng(0))
    monkeypatch.setattr("slm.scaling.prediction.is_linear", lambda law: False)
    ours = band(found, at[:, None], ensemble, np.random.default_rng(1), new_run=new)
    low, high = textbook(of.log_x[:, 0], of.log_y, at, new=new, level=0.95)
    np.testing.assert_allclose(ours.low - ours.centre, low - ours.centre, rtol=0.07)
    np.testing.assert_allclose(ours.high - ours.centre, high - ours.centre, rtol=0.07)


def test_a_studentised_bootstrap_is_close_to_the_linear_formula_when_noise_is_small() -> None:
    """Gauss-Newton band by hand: t s sqrt(g' (J'J)^-1 g), which a law approaches as its noise goes to 0."""
    of = noisy("power_floor", ("N",), 20, 0.0005, seed=3)
    found = fit_sample(FLOOR, of)
    p, ref = found.params, of.log_x[:, 0].mean()

    def gradient(log_n: Floats) -> Floats:
        value = plain_law("power_floor", p, {"N": np.exp(log_n)})
        share = 1 - p["E"] / value
        return np.stack([1 - share, share, -share * (log_n - ref)], axis=1)

    at = np.array([17.0, 20.0, 24.0])
    J, g = gradient(of.log_x[:, 0]), gradient(at)
    s = np.sqrt((found.residuals**2).sum() / 17)
    reach = stats.t.ppf(0.975, 17) * s * np.sqrt(np.einsum("mp,pq,mq->m", g, np.linalg.inv(J.T @ J), g))
    ensemble = bootstrap(found, "parametric", 4000, np.random.default_rng(0))
    ours = band(found, at[:, None], ensemble, np.random.default_rng(1))
    np.testing.assert_allclose(ours.high - ours.centre, reach, rtol=0.1)
    np.testing.assert_allclose(ours.centre - ours.low, reach, rtol=0.1)


def test_a_prediction_interval_beyond_the_data_covers_new_runs() -> None:
    """100 experiments: fit ten sizes, predict a run at four times the largest."""
    inside, at = 0, np.log([[8e9]])
    truth = float(np.log(plain_law("power_floor", TRUE["power_floor"], {"N": np.array([8e9])}))[0])
    for seed in range(100):
        found = fit_sample(FLOOR, noisy("power_floor", ("N",), 10, 0.004, seed))
        ensemble = bootstrap(found, "parametric", 200, np.random.default_rng(seed))
        run = band(found, at, ensemble, np.random.default_rng(seed + 1000), new_run=True)
        inside += run.low[0] <= truth + 0.004 * np.random.default_rng([seed, 2]).standard_normal() <= run.high[0]
    assert 87 <= inside <= 99


def test_a_band_needs_its_bootstrap_and_degrees_of_freedom() -> None:
    with pytest.raises(ValueError, match="needs a bootstrap"):
        band(fit_sample(FLOOR, noisy("power_floor", ("N",), 9, 0.004)), np.array([[18.0]]), None, RNG)


@pytest.mark.parametrize("new", [False, True])
def test_bands_cover_where_several_rows_come_from_one_run(new: bool) -> None:
    """Twelve runs with four rows each that share nearly all their error, 100 times over."""
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        run = np.repeat(np.arange(12), 4)
        x = np.linspace(15, 22, 12)[run]
        y = 3 - 0.1 * x + 0.02 * rng.normal(size=12)[run] + 0.001 * rng.normal(size=48)
        found = fit_sample(POWER, sample(y, x, run))
        kind = band_kind(found)
        assert kind == "cluster"
        ours = band(found, np.array([[25.0]]), bootstrap(found, kind, 100, rng), rng, new_run=new)
        inside += ours.low[0] <= 0.5 + new * 0.02 * rng.normal() <= ours.high[0]
    assert inside >= 87


@pytest.mark.parametrize("noise", [0.004, 0.4])
def test_the_gain_of_a_parameter_is_as_uncertain_as_the_exponent(noise: float) -> None:
    """-dL/dN is alpha L / N: where the interval of alpha holds 0, so does that of the gain."""
    sizes = np.geomspace(1e5, 1e7, 12)
    loss = 20 * sizes**-0.1 * np.exp(noise * np.random.default_rng(4).standard_normal(12))
    frame = pd.DataFrame({"family": "a", "params_total": sizes, "tokens": 1e9, "loss": loss})
    settings = Settings(laws=("power",), targets=("loss",), bootstrap=2000)
    fit = next(one for one in analyse(table_from_frame(frame), settings).fits if one["loss"] == settings.loss)
    low, high = fit["ci95"]["alpha"]
    assert (low < 0) == (noise > 0.05)
    gain, middle = fit["marginal"], 15
    at = gain["x"][middle]
    loss_there = fit["params"]["A"] * at ** -fit["params"]["alpha"]
    assert gain["gain"][middle] == pytest.approx(fit["params"]["alpha"] * loss_there / at, rel=1e-3)
    width = (high - low) * loss_there / at
    assert gain["low"][middle] == pytest.approx(low * loss_there / at, abs=0.06 * width)
    assert gain["high"][middle] == pytest.approx(high * loss_there / at, abs=0.06 * width)
