"""Laws between chance and one, against their formulas, central differences, and scipy's least squares."""

import numpy as np
import pytest
from scipy import optimize, stats

from slm.scaling import get_law, uncertainty
from slm.scaling.bounded import LINKS, Bounded, TaskLossLaw
from slm.scaling.fitting import Fit, fit_sample
from slm.scaling.selection import _rejected_by_richer
from tests.scaling.samples import TRUE, design, plain_law, sample
from tests.seeds import generator

CHANCE = 0.25
NAMES = ("power", "power_floor", "chinchilla", "kaplan_joint")
SIZES = np.geomspace(3e7, 9e8, 7)
LOGISTIC = Bounded(get_law("power"), "logistic", CHANCE)


def error(link: str, M: np.ndarray, chance: float = CHANCE) -> np.ndarray:
    """As docs/scaling.md prints it: accuracy = chance + (1 - chance) z."""
    z = 1 / (1 + M) if link == "logistic" else np.exp(-M)
    return 1 - (chance + (1 - chance) * z)


def angle(error: np.ndarray) -> np.ndarray:
    """The scale of residuals, on which a share of n questions scatters by 1 / (2 sqrt(n))."""
    return np.arcsin(np.sqrt(error))


def noisy_error(N: np.ndarray, seed: int, scatter: float = 0.008) -> np.ndarray:
    return error("logistic", 4e4 * N**-0.55) + scatter * generator(seed).standard_normal(len(N))


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", NAMES)
def test_value_gradient_and_curvature_are_those_of_the_formula(link: str, name: str) -> None:
    law, params = Bounded(get_law(name), link, CHANCE), TRUE[name]
    log_x = design(law.variables, 6, seed=3)
    refs = log_x.mean(axis=0)
    x_IV, theta, weights = log_x - refs, law.coordinates(params, refs), generator(4).normal(size=(1, 6))
    M = plain_law(name, params, dict(zip(law.variables, np.exp(log_x.T), strict=True)))
    value, gradient, curvature = law.derivatives(theta[None], x_IV)
    np.testing.assert_allclose(value[0], angle(error(link, M)), rtol=1e-9)
    np.testing.assert_allclose(law.from_scale(value[0]), error(link, M), rtol=1e-9)
    np.testing.assert_array_equal(value, law.log_value(theta[None], x_IV))
    step, P = 1e-5, len(theta)
    values, gradients, _ = law.derivatives(theta + step * np.r_[np.eye(P), -np.eye(P)], x_IV)
    np.testing.assert_allclose(gradient[0], (values[:P] - values[P:]) / (2 * step), rtol=1e-4, atol=1e-8)
    second = np.einsum("i,pqi->pq", weights[0], (gradients[:P] - gradients[P:]) / (2 * step))
    np.testing.assert_allclose(
        curvature(weights, 0 * weights)[0], second, rtol=1e-3, atol=1e-6 * (np.abs(second).max() + 0.01)
    )
    assert law.canonical(theta[None], refs)[0] == pytest.approx([*params.values()], rel=1e-9)


@pytest.mark.parametrize("link", LINKS)
def test_accuracy_stays_between_chance_and_the_ceiling_at_any_size(link: str) -> None:
    law = Bounded(get_law("power_floor"), link, CHANCE)
    theta = law.coordinates({"E": 0.3, "A": 5e4, "alpha": 0.5}, np.zeros(1))
    accuracy = 1 - law.from_scale(law.log_value(theta[None], np.log([[1e-300], [1e3], [1e9], [1e300]]))[0])
    assert np.all(np.diff(accuracy) >= 0)
    assert accuracy[0] == pytest.approx(CHANCE, abs=1e-9)
    assert accuracy[-1] == pytest.approx(1 - law.target_floor(0.3), abs=1e-9)
    assert law.target_floor(0.3) == pytest.approx(float(error(link, np.array(0.3))))
    assert law.target_floor(0.0) < 1e-300


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", ["power", "power_floor", "chinchilla"])
def test_noise_free_accuracies_give_back_the_law(link: str, name: str) -> None:
    params = {"E": 0.2, "A": 4e4, "alpha": 0.55, "B": 3e6, "beta": 0.7}
    law = Bounded(get_law(name), link, CHANCE)
    x = np.array(np.meshgrid(SIZES, np.geomspace(1e9, 1e11, 4))).reshape(2, -1)[: len(law.variables)]
    errors = error(link, plain_law(name, params, dict(zip("ND", x, strict=False))))
    found = fit_sample(law, sample(angle(errors), np.log(x.T)))
    assert found.certificate.converged
    assert found.params == pytest.approx({key: params[key] for key in law.parameters}, rel=1e-3)


def test_the_interval_is_the_profile_that_scipy_finds() -> None:
    errors = noisy_error(SIZES, seed=1)
    found = fit_sample(LOGISTIC, sample(angle(errors), np.log(SIZES)))
    x = np.log(SIZES) - np.log(SIZES).mean()

    def squares(alpha: float) -> float:
        def residuals(log_level: np.ndarray) -> np.ndarray:
            return angle(errors) - angle(error("logistic", np.exp(log_level[0] - alpha * x)))

        return 2 * float(optimize.least_squares(residuals, [0.0], xtol=1e-12, ftol=1e-14).cost)

    best = optimize.minimize_scalar(squares, bounds=(0.1, 2), method="bounded", options={"xatol": 1e-9})
    critical = best.fun * (1 + stats.t.ppf(0.975, 5) ** 2 / 5)
    ends = [optimize.brentq(lambda a: squares(a) - critical, *bracket) for bracket in ((0.01, best.x), (best.x, 3))]
    assert found.params["alpha"] == pytest.approx(best.x, rel=1e-4)
    interval = uncertainty(found, replicates=0, rng=generator()).ci["alpha"]
    assert interval == pytest.approx(ends, rel=2e-3)


def test_an_accuracy_that_does_not_rise_identifies_no_exponent() -> None:
    """Accuracies scatter about chance, some below it, which no bounded law reaches."""
    errors = 1 - CHANCE + 0.01 * generator(2).standard_normal(7)
    found = fit_sample(LOGISTIC, sample(angle(errors), np.log(SIZES)))
    assert "alpha" in uncertainty(found, replicates=0, rng=generator()).reasons_not_identified


def test_a_law_is_not_rejected_by_one_behind_another_link() -> None:
    """An exponential law with a floor has all parameters of a logistic one without, and does not contain it."""
    rows = sample(
        angle(error("logistic", 0.3 + 4e4 * SIZES**-0.55)) + 1e-4 * generator(3).normal(size=7), np.log(SIZES)
    )
    laws = {
        f"{link}_{name}": Bounded(get_law(name), link, CHANCE) for link in LINKS for name in ("power", "power_floor")
    }
    fits: dict[str, list[Fit]] = {name: [fit_sample(law, rows)] for name, law in laws.items()}
    rejected = {(law, richer) for law, _, richer in _rejected_by_richer(fits)}
    assert ("logistic_power", "logistic_power_floor") in rejected
    assert all(law.partition("_")[0] == richer.partition("_")[0] for law, richer in rejected)


def test_a_sigmoid_in_the_task_loss_is_found_at_any_scale_of_it() -> None:
    """k is 13 per bit if losses span 0.3 bits, and 0.13 if they are written in hundredths."""
    T = np.linspace(0.7, 1.0, 9)
    for unit in (1.0, 100.0):
        law = TaskLossLaw("p", has_floor=False).prepared_for(-(unit * T)[:, None])
        errors = error("logistic", np.exp(13 * (T - 0.8))) + 1e-3 * generator(5).standard_normal(9)
        found = fit_sample(Bounded(law, "logistic", CHANCE), sample(angle(errors), -unit * T))
        assert found.params["k"] * unit == pytest.approx(13, rel=0.02)
        assert found.certificate.at_bound == ()
