"""Bands, predictions and gains against the formulas of regression, scipy's optimiser and repeated experiments."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from slm.scaling import Fit, Loss, Settings, analyse, get_law, read_table, table_from_frame
from slm.scaling.entries import Fitted
from slm.scaling.fitting import fit_sample
from slm.scaling.forms import Floats
from slm.scaling.prediction import Band, Doubling, band, bands, new_run_sigma
from slm.scaling.selection import assess_laws, envelopes
from tests.scaling.samples import FLOOR, POWER, TRUE, grouped, log_law, noisy, plain_law, sample
from tests.seeds import generator, seeded

WEIGHED = {"power": {"tenable": False, "why": "AIC 20 above the best"}}
WEIGHED |= {law: {"tenable": True, "why": ""} for law in ("power_floor", "chinchilla")}


def textbook(x: Floats, y: Floats, at: Floats, *, new: bool, level: float = 0.95) -> tuple[Floats, Floats]:
    """y_hat +- t s sqrt([1] + 1/n + (x0 - mean)^2 / Sxx)."""
    line, n = stats.linregress(x, y), len(x)
    s = np.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / (n - 2))
    error = s * np.sqrt(new + 1 / n + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    centre, reach = line.intercept + line.slope * at, stats.t.ppf(0.5 + level / 2, n - 2) * error
    return centre - reach, centre + reach


def of_run(found: Fit, at: Floats, **options: Any) -> Band:
    return band(found, at, None, **options).for_run(found.sigma)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_band_of_a_straight_line_is_the_textbooks(new: bool, level: float) -> None:
    rows, at = noisy("power", 8, 0.02), np.array([14.0, 18.0, 25.0])
    fit = fit_sample(POWER, rows)
    found = band(fit, at[:, None], None, level=level)
    found = found.for_run(fit.sigma) if new else found
    expected = textbook(rows.log_x[:, 0], rows.log_y, at, new=new, level=level)
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-5)


def test_the_published_rows_predict_a_model_of_two_billion() -> None:
    frame = read_table("mobilellm_published").frame
    x, y = np.log(frame["params_total"].to_numpy(float)), np.log(frame["perplexity"].to_numpy(float))
    run = of_run(fit_sample(POWER, sample(y, x)), np.log([[2e9]]))
    assert np.exp([run.centre[0], run.low[0], run.high[0]]) == pytest.approx([5.97, 5.18, 6.89], abs=0.005)


def test_the_profile_band_of_a_straight_line_would_be_the_textbooks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of other laws, taken by one whose answer is known."""
    of = noisy("power", 9, 0.02)
    found, at = fit_sample(POWER, of), np.array([16.0, 18.5, 23.0])
    monkeypatch.setattr(POWER, "is_linear", False)
    ours = band(found, at[:, None], None)
    low, high = textbook(of.log_x[:, 0], of.log_y, at, new=False)
    np.testing.assert_allclose(ours.low - ours.centre, low - ours.centre, rtol=0.004)
    np.testing.assert_allclose(ours.high - ours.centre, high - ours.centre, rtol=0.004)


@pytest.mark.parametrize("truth", ["power_floor", "power"])
def test_an_end_of_a_profile_band_is_where_a_constrained_fit_is_as_bad_as_t_allows(truth: str) -> None:
    """scipy's SLSQP minimises the squares of a law that must pass through the end, with the law written out."""
    of = noisy(truth, 7, 0.004, seed=2)
    found, at = fit_sample(FLOOR, of), np.log(2e10)
    ours = band(found, np.array([[at]]), None)
    x, ref = of.log_x[:, 0], of.log_x[:, 0].mean()

    def value(theta: Floats, log_n: Any) -> Any:  # floor, value above it at the centre (both as logs), exponent
        return np.log(np.exp(theta[0]) + np.exp(theta[1] - theta[2] * (log_n - ref)))

    def squares(theta: Floats) -> float:
        return float(((of.log_y - value(theta, x)) ** 2).sum()) * 1e5

    allowed = found.sse + stats.t.ppf(0.975, 4) ** 2 * found.sigma**2
    how = {"method": "SLSQP", "bounds": [(-10, 2), (-10, 5), (1e-3, 5)], "options": {"maxiter": 500, "ftol": 1e-10}}
    starts = [(floor, 1.0, a) for floor in (-6.0, -1.0, 0.0, 0.5) for a in (0.1, 0.3, 0.8)]
    for end in (ours.low[0], ours.high[0]):
        through = {"type": "eq", "fun": lambda theta, end=end: value(theta, at) - end}
        fits = [optimize.minimize(squares, start, constraints=[through], **how) for start in starts]
        assert min(fit.fun for fit in fits if fit.success) / 1e5 == pytest.approx(allowed, rel=0.01)


def test_the_band_at_several_sets_of_points_is_the_band_at_each() -> None:
    found = fit_sample(FLOOR, noisy("power_floor", 9, 0.01))
    sets = [found.sample.log_x[:3], found.sample.log_x[-1:] + np.array([[0.7], [2.3]]), found.sample.log_x[:0]]
    for log_x, together in zip(sets, bands(found, sets, None), strict=True):
        alone = band(found, log_x, None)
        for name in ("centre", "low", "high", "t"):
            np.testing.assert_allclose(getattr(together, name), getattr(alone, name), rtol=1e-6)


def test_a_profile_band_is_close_to_the_linear_formula_when_noise_is_small() -> None:
    """Gauss-Newton band by hand: t s sqrt(g' (J'J)^-1 g), which a law approaches as its noise goes to 0."""
    of = noisy("power_floor", 20, 0.0005, seed=3)
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
    ours = band(found, at[:, None], None)
    np.testing.assert_allclose((ours.high - ours.centre, ours.centre - ours.low), (reach, reach), rtol=0.03)


@pytest.mark.slow
def test_a_prediction_interval_beyond_the_data_covers_new_runs() -> None:
    """60 experiments: fit six sizes over a factor of 30, predict a run at ten times the largest."""
    inside, x, at = 0, np.linspace(np.log(1e7), np.log(3e8), 6), np.log([[3e9]])
    truth = log_law("power_floor", TRUE["power_floor"], np.append(x, at)[:, None])
    for seed in range(60):
        y = truth + 0.005 * generator(seed).standard_normal(7)
        run = of_run(fit_sample(FLOOR, sample(y[:6], x)), at)
        inside += run.low[0] <= y[6] <= run.high[0]
    assert 52 <= inside <= 60


def test_a_band_of_hubers_loss_needs_its_bootstrap() -> None:
    with pytest.raises(ValueError, match="needs a bootstrap"):
        band(fit_sample(POWER, noisy("power", 9, 0.004), loss=Loss(1e-3)), np.array([[18.0]]), None)


@pytest.mark.parametrize("new", [False, True])
def test_bands_cover_where_several_rows_come_from_one_run(new: bool) -> None:
    """Twelve runs with four rows each that share nearly all their error, 200 times over."""
    inside = 0
    for seed in range(200):
        rng, at = generator(seed), np.array([[25.0]])
        found = fit_sample(POWER, sample(*grouped(rng, groups=12, each=4, shared=0.02, own=0.001)))
        ours = of_run(found, at) if new else band(found, at, None)
        inside += ours.low[0] <= 0.5 + new * 0.02 * rng.normal() <= ours.high[0]
    assert 181 <= inside <= 199


@pytest.mark.parametrize(("shared", "own"), [(0.0, 0.02), (0.014, 0.014)])
def test_a_new_runs_interval_has_the_degrees_of_its_scatter_and_not_those_of_the_clusters(
    shared: float, own: float
) -> None:
    """Five shapes with five rows each, 400 times over; the t of three clusters alone would cover 99% and more."""
    inside = 0
    for seed in range(400):
        rng = generator(seed)
        run = of_run(fit_sample(POWER, sample(*grouped(rng, groups=5, each=5, shared=shared, own=own))), [[23.0]])
        inside += run.low[0] <= 0.7 + np.hypot(shared, own) * rng.normal() <= run.high[0]
    assert 0.92 <= inside / 400 <= 0.98


def test_a_new_run_scatters_by_misfit_and_by_all_of_its_own_noise() -> None:
    """Means over three seeds know a third of the seeds' variance: 0.01^2 + 0.02^2 is that of one run."""
    variances = []
    for seed in range(300):
        y, x, cell = grouped(generator(seed), groups=8, each=3, shared=0.01, own=0.02)
        runs = sample(y, x, None, cell)
        variances.append(new_run_sigma(fit_sample(POWER, runs.cell_means()), runs) ** 2)
    assert np.mean(variances) == pytest.approx(5e-4, rel=0.06)


def test_without_repeated_seeds_a_new_run_scatters_as_the_rows_do() -> None:
    runs = noisy("power", 9, 0.004)
    found = fit_sample(POWER, runs)
    assert new_run_sigma(found, runs) == pytest.approx(np.sqrt((found.residuals**2).sum() / 7))


@pytest.mark.parametrize("law", ["power", "power_floor", "chinchilla", "kaplan_joint"])
def test_the_gain_of_doubling_has_the_derivatives_of_finite_differences(law: str) -> None:
    of = noisy(law, 9, 0.01)
    gain = Doubling(get_law(law))
    theta, x = get_law(law).coordinates(TRUE[law], of.refs), of.centred
    value, slope, curvature = gain.derivatives(theta[None], x)
    twice = of.log_x + np.log(2) * (np.arange(of.log_x.shape[1]) == 0)
    near, far = (np.exp(log_law(law, TRUE[law], at)) for at in (of.log_x, twice))
    np.testing.assert_allclose(value[0], near - far, rtol=1e-9)
    weights, step = np.linspace(1, 2, 9)[None], 1e-5
    for j, unit in enumerate(np.eye(len(theta))):
        ends = [gain.derivatives((theta + sign * step * unit)[None], x) for sign in (1, -1)]
        np.testing.assert_allclose(slope[0, j], (ends[0][0] - ends[1][0])[0] / (2 * step), rtol=1e-5, atol=1e-8)
        second = ((ends[0][1] - ends[1][1])[0] @ weights[0]) / (2 * step)
        np.testing.assert_allclose(curvature(weights, 0 * weights)[0, j], second, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_interval_of_a_gain_of_doubling_covers_it() -> None:
    """A N^-alpha (1 - 2^-alpha), where noise is not small: 150 experiments of five sizes."""
    x = np.linspace(np.log(1e7), np.log(3e8), 5)
    truth = np.array([20 * n**-0.1 * (1 - 2**-0.1) for n in np.exp(x)])
    inside = np.zeros(5)
    for seed in range(150):
        y = np.log(20.0) - 0.1 * x + 0.03 * generator(seed).standard_normal(5)
        ours = band(fit_sample(POWER, sample(y, x)), x[:, None], None, curve=Doubling(POWER))
        inside += (ours.low <= truth) & (truth <= ours.high)
    assert (inside >= 135).all()  # 90%: three standard errors below 95%
    assert (inside <= 149).all()


def frame(sizes: Floats, noise: float, *, seed: int = 4) -> pd.DataFrame:
    loss = 20 * sizes**-0.1 * np.exp(noise * generator(seed).standard_normal(len(sizes)))
    return pd.DataFrame({"family": "a", "params_total": sizes, "tokens": 1e9, "loss": loss})


def analysed_power(data: pd.DataFrame) -> dict[str, Any]:
    fits = analyse(table_from_frame(data), Settings(laws=("power",), targets=("loss",), bootstrap=100)).fits
    return next(entry for entry in fits if entry["loss"] == "least_squares")


@pytest.mark.parametrize("noise", [0.004, 0.4])
def test_gains_of_doubling_are_those_of_the_law_and_as_uncertain_as_its_exponent(noise: float) -> None:
    data = frame(1e5 * 2.0 ** np.arange(8), noise)
    fit = analysed_power(data)
    gain, low = fit["doubling"], fit["ci95"]["alpha"][0]
    assert gain["x"] == pytest.approx(data["params_total"])
    assert gain["beyond"] == [False] * 7 + [True]
    loss = data["loss"].to_numpy()
    assert gain["measured"][:7] == pytest.approx(loss[:-1] - loss[1:])
    assert gain["measured"][7] is None
    p = fit["params"]
    expected = [p["A"] * n ** -p["alpha"] * (1 - 2 ** -p["alpha"]) for n in gain["x"]]
    assert gain["gain"] == pytest.approx(expected, rel=1e-6)
    assert (low < 0) == (noise > 0.05) == (min(gain["low"]) < 0)
    assert max(gain["high"]) < loss.max()  # no gain is more than the whole loss


def test_held_out_sizes_are_predicted_with_the_textbooks_intervals() -> None:
    data = frame(np.geomspace(1e5, 1e8, 8), 0.02)
    x, y = np.log(data["params_total"].to_numpy()), np.log(data["loss"].to_numpy())
    found = analysed_power(data)["extrapolation"]
    assert [(step["sizes_ahead"], round(np.log(step["held_out"]), 6)) for step in found["steps"]] == [
        (ahead, round(x[8 - held + ahead - 1], 6)) for held in (1, 2, 3) for ahead in range(1, held + 1)
    ]
    for step in found["steps"]:
        fitted = x < np.log(step["largest_fitted"]) + 1e-6
        place = int(np.argmin(abs(x - np.log(step["held_out"]))))
        low, high = textbook(x[fitted], y[fitted], x[[place]], new=True)
        assert step["low_log"] == pytest.approx(low - y[place], rel=1e-5)
        assert step["high_log"] == pytest.approx(high - y[place], rel=1e-5)
        assert step["n_inside"] == int(low[0] <= y[place] <= high[0])
    assert found["rms_error_log"] == pytest.approx(abs(found["steps"][0]["errors_log"][0]))
    assert found["inside_interval"] == bool(found["steps"][0]["n_inside"])


def stub(low: float, high: float, *, fitted: bool = True, **at: float) -> Fitted:
    rows = [{**at, "value": (low + high) / 2, "low": low, "high": high}] if fitted else []
    entry = {"fitted": fitted, "converged": fitted, "predictions": rows, "notes": ["not fitted"]}
    return Fitted(entry | {"variables": list(at), "range": {v: [1, 2] for v in at}})


def test_an_envelope_is_the_union_of_the_tenable_laws_intervals_at_the_point() -> None:
    fitted = {
        "power": {"a": stub(1.0, 1.1, N=1e9)},
        "power_floor": {"a": stub(2.0, 2.4, N=1e9)},
        "chinchilla": {"a": stub(2.2, 2.5, N=1e9, D=2e10)},
        "power_D": {"a": stub(0.1, 9.0, D=2e10)},  # not among the laws weighed
    }
    (row,) = envelopes(fitted, WEIGHED, "power_floor")
    assert (row["family"], row["at"], row["low"], row["high"]) == ("a", {"N": 1e9, "D": 2e10}, 2.0, 2.5)
    assert (row["laws"], row["excluded"]) == (["power_floor", "chinchilla"], {"power": "AIC 20 above the best"})


def test_an_envelope_is_open_where_a_tenable_law_is_and_leaves_out_what_was_not_fitted() -> None:
    fitted = {
        "power_floor": {"a": stub(2.0, np.nan, N=1e9), "b": stub(2.0, 2.1, N=3e9)},
        "chinchilla": {"a": stub(2.2, 2.5, N=1e9, D=2e10), "b": stub(0, 0, fitted=False, N=3e9, D=2e10)},
    }
    a, b = envelopes(fitted, WEIGHED, "power_floor")
    assert (a["low"], a["high"], a["laws"]) == (2.0, None, ["power_floor", "chinchilla"])
    assert (b["low"], b["high"], b["laws"]) == (2.0, 2.1, ["power_floor"])
    assert b["excluded"] == {"chinchilla": "not fitted"}


def test_without_a_tenable_law_there_is_no_envelope() -> None:
    fitted = {"power": {"a": stub(1.0, 1.1, N=1e9)}}
    (row,) = envelopes(fitted, WEIGHED, "power")
    assert (row["low"], row["high"], row["laws"]) == (None, None, [])


@pytest.mark.slow
@pytest.mark.parametrize("truth", ["power", "power_floor"])
def test_the_envelope_covers_new_runs_far_beyond_the_data_where_a_rejected_law_does_not(truth: str) -> None:
    """20 experiments of six sizes over a factor of 30 and 0.5% noise, predictions at ten times the largest."""
    x, at, inside = np.linspace(np.log(1e7), np.log(3e8), 6), np.log(3e9), {"power": 0, "envelope": 0}
    mean = log_law(truth, TRUE[truth], np.append(x, at)[:, None])
    for seed in range(20):
        y = mean + 0.005 * np.random.default_rng([seeded(5), seed]).standard_normal(7)
        fitted = {}
        for law in (POWER, FLOOR):
            found = fit_sample(law, sample(y[:6], x))
            run = of_run(found, np.array([[at]]))
            low, high = np.exp([run.low[0], run.high[0]])
            fitted[law.name] = {"a": Fitted(stub(low, high, N=np.exp(at)).entry, found)}
            if law is POWER:
                inside["power"] += low <= np.exp(y[6]) <= high
        (row,) = envelopes(fitted, assess_laws(fitted), "power")
        assert row["laws"]
        inside["envelope"] += row["low"] <= np.exp(y[6]) <= row["high"]
    assert inside["envelope"] >= 17  # 93% of 20, less one standard error and a half
    assert inside["power"] <= 4 or truth == "power"
