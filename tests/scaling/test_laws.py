"""Laws, their gradients and curvatures, against the formulas as papers print them and central differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.scaling.forms import VARIABLES
from slm.scaling.laws import LAWS, get_law
from tests.scaling.samples import RANGES, TRUE, design, log_law, plain_law
from tests.seeds import generator

NAMES = tuple(LAWS)
factors = st.floats(0.4, 2.5)


def varied(name: str, times: list[float]) -> dict[str, float]:
    return {key: value * factor for (key, value), factor in zip(TRUE[name].items(), times, strict=False)}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(times=st.lists(factors, min_size=7, max_size=7), seed=st.integers(0, 1000))
def test_a_law_is_the_formula_of_its_paper(name: str, times: list[float], seed: int) -> None:
    law, params = get_law(name), varied(name, times)
    log_x = design(law.variables, 6, seed)
    refs = log_x.mean(axis=0) + 0.3
    theta = law.coordinates(params, refs)
    np.testing.assert_allclose(law.log_value(theta[None], log_x - refs)[0], log_law(name, params, log_x), 1e-10)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(times=st.lists(factors, min_size=7, max_size=7), seed=st.integers(0, 1000))
def test_gradient_and_curvature_are_central_differences(name: str, times: list[float], seed: int) -> None:
    law = get_law(name)
    log_x = design(law.variables, 5, seed)
    refs = log_x.mean(axis=0)
    x_IV, theta = log_x - refs, law.coordinates(varied(name, times), refs)
    P, weights = len(theta), generator(seed).normal(size=(1, 5))
    value, gradient, curvature = law.derivatives(theta[None], x_IV)
    step = 1e-5
    moved = theta + step * np.r_[np.eye(P), -np.eye(P)]
    values, gradients, _ = law.derivatives(moved, x_IV)
    np.testing.assert_allclose(value, law.log_value(theta[None], x_IV), rtol=1e-13)
    np.testing.assert_allclose(gradient[0], (values[:P] - values[P:]) / (2 * step), rtol=1e-5, atol=1e-7)
    second = np.einsum("i,pqi->pq", weights[0], (gradients[:P] - gradients[P:]) / (2 * step))
    scale = np.abs(second).max() + 0.01  # differences of gradients of order 1 over 2e-5 are good to 1e-9 or so
    np.testing.assert_allclose(curvature(weights, 0 * weights)[0], second, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(times=st.lists(factors, min_size=7, max_size=7), shift=st.floats(-3, 25))
def test_coordinates_are_the_inverse_of_what_is_quoted(name: str, times: list[float], shift: float) -> None:
    law, params = get_law(name), varied(name, times)
    refs = np.full(len(law.variables), shift)
    np.testing.assert_allclose(law.canonical(law.coordinates(params, refs)[None], refs)[0], [*params.values()], 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_functional_gives_the_exponent_or_the_log_of_the_coefficient(name: str) -> None:
    law, params = get_law(name), TRUE[name]
    refs = np.arange(1.0, 1 + len(law.variables)) * 7
    theta = law.coordinates(params, refs)
    for key, value in params.items():
        vector = law.projection(key, refs)
        if name == "kaplan_joint" and key not in law.exponents:
            assert vector is None  # log N_c = n / alpha_N + ref is no linear function, log D_c one plus a constant
            continue
        assert vector @ theta == pytest.approx(value if key in law.exponents else np.log(value), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_law_says_of_itself_agrees_with_its_equation(name: str) -> None:
    law = get_law(name)
    assert set(law.parameters) == set(TRUE[name])
    assert set(law.exponents) < set(law.parameters)
    assert set(law.variables) <= set(VARIABLES)
    assert all(key in law.equation for key in (*law.parameters, *law.variables))
    assert (law.floor is None) == ("E" not in law.parameters)
    x = {v: np.array([np.mean(RANGES[v])]) for v in law.variables}
    curve = [plain_law(name, TRUE[name], {v: x[v] * f for v in x}) for f in (1, 2, 4)]
    straight = np.log(curve[0]) - 2 * np.log(curve[1]) + np.log(curve[2])
    assert law.is_linear == bool(abs(straight[0]) < 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_with_given_exponents_the_basis_reproduces_the_law(name: str) -> None:
    law, params = get_law(name), TRUE[name]
    log_x = design(law.variables, 8)
    refs = log_x.mean(axis=0)
    exponents = np.array([[params[e] for e in law.exponents]])
    basis, target = law.basis(exponents, log_x - refs, log_law(name, params, log_x))
    coefficients, *_ = np.linalg.lstsq(basis[0], target[0], rcond=None)
    np.testing.assert_allclose(basis[0] @ coefficients, target[0], rtol=1e-8)
    theta = law.join(np.log(coefficients)[None], exponents)[0]
    np.testing.assert_allclose(theta, law.coordinates(params, refs), rtol=1e-6, atol=1e-6)


def test_kaplans_joint_law_tends_to_his_laws_in_n_and_in_d_alone() -> None:
    law, refs = get_law("kaplan_joint"), np.zeros(2)
    theta = law.coordinates({"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}, refs)[None]
    N, D = np.array([1e6, 1e8, 1e10]), np.array([1e8, 1e10, 1e12])
    plenty = np.log(1e40)
    of_n = law.log_value(theta, np.stack([np.log(N), np.full(3, plenty)], axis=1))[0]
    of_d = law.log_value(theta, np.stack([np.full(3, plenty), np.log(D)], axis=1))[0]
    np.testing.assert_allclose(np.exp(of_n), (8.8e13 / N) ** 0.076, rtol=1e-9)
    np.testing.assert_allclose(np.exp(of_d), (5.4e13 / D) ** 0.095, rtol=1e-9)


def test_a_law_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="chinchila") as caught:
        get_law("chinchila")
    assert all(name in str(caught.value) for name in NAMES)
