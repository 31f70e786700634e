"""The batched Newton method and its starts against scipy's optimisers on the same objective, written out again."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from slm.scaling.fitting import fit_sample, single_block
from slm.scaling.forms import GRIDS, Floats
from slm.scaling.laws import LAWS, Law, get_law
from slm.scaling.sample import Sample
from slm.scaling.solver import Block, Loss, Optimum, minimise
from slm.scaling.starts import _non_negative, coordinate_bounds, grid_starts
from slm.scaling.step import State, newton_step
from tests.scaling.samples import FLOOR, TRUE, log_law, noisy, sample
from tests.seeds import generator


def residuals_of(law: Law, of: Sample) -> Callable[[Floats], Floats]:
    """Log residuals as a function of log coefficients and exponents as quoted, by the plain formula."""

    def residuals(p: Floats) -> Floats:
        named = zip(law.parameters, p, strict=True)
        params = {n: float(v) if n in law.exponents else float(np.exp(v)) for n, v in named}
        return log_law(law.name, params, of.log_x) - of.log_y

    return residuals


def quoted(law: Law, params: dict[str, float]) -> Floats:
    return np.array([v if n in law.exponents else np.log(v) for n, v in params.items()])


def huber(r: Floats, delta: float) -> float:
    inside = np.abs(r) <= delta
    return float(np.where(inside, r**2 / 2, delta * (np.abs(r) - delta / 2)).sum())


@pytest.mark.parametrize("name", LAWS)
def test_least_squares_ends_where_scipys_does(name: str) -> None:
    law = get_law(name)
    of = noisy(name, 40, 0.003)
    found = fit_sample(law, of)
    residuals = residuals_of(law, of)
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "x_scale": "jac", "max_nfev": 2000}
    best = optimize.least_squares(residuals, quoted(law, TRUE[name]), **tight)
    assert found.certificate.converged
    assert found.certificate.objective == pytest.approx(best.cost, rel=1e-8)
    error = np.sqrt(np.diag(np.linalg.pinv(best.jac.T @ best.jac)) * 2 * best.cost / (40 - len(best.x)))
    assert np.abs((quoted(law, found.params) - best.x) / error).max() < 1e-3


@pytest.mark.parametrize("name", ["power", "power_floor", "chinchilla", "kaplan_joint"])
def test_hubers_objective_is_as_low_as_scipys_from_good_starts(name: str) -> None:
    law, delta = get_law(name), 1e-3
    of = noisy(name, 40, 0.004)
    found = fit_sample(law, of, loss=Loss(delta))
    residuals = residuals_of(law, of)

    def objective(p: Floats) -> float:
        return huber(residuals(p), delta) * 1e4

    assert found.certificate.objective == pytest.approx(huber(residuals(quoted(law, found.params)), delta), rel=1e-9)
    starts = [quoted(law, TRUE[name]), quoted(law, fit_sample(law, of).params), quoted(law, found.params)]
    best = min(
        optimize.minimize(objective, start, method=method, options={"maxiter": 4000}).fun
        for start in starts
        for method in ("BFGS", "Nelder-Mead")
    )
    assert found.certificate.objective * 1e4 <= best * (1 + 1e-8)


ROWS = noisy("power_floor", 14, 0.004)
BOUNDS = coordinate_bounds(FLOOR, ROWS)
BLOCKS = [single_block(FLOOR, ROWS)]


@pytest.mark.parametrize("loss", [Loss(), Loss(1e-3)], ids=["squares", "huber"])
def test_a_batch_is_its_replicates_one_by_one(loss: Loss) -> None:
    rng = generator(3)
    start = np.repeat(fit_sample(FLOOR, ROWS).theta[None], 6, axis=0) + 0.05 * rng.normal(size=(6, 3))
    log_y = ROWS.log_y + 0.003 * rng.normal(size=(6, 14))
    weights = rng.integers(0, 4, (6, 14)).astype(float)
    together = minimise(BLOCKS, log_y, start, BOUNDS, loss=loss, weights=weights)
    for r in range(6):
        alone = minimise(BLOCKS, log_y[r], start[[r]], BOUNDS, loss=loss, weights=weights[[r]])
        np.testing.assert_allclose(together.phi[r], alone.phi[0], rtol=1e-7, atol=1e-9)
        assert together.objective[r] == pytest.approx(alone.objective[0], rel=1e-10)
        assert together.converged[r] == alone.converged[0]


def test_whole_weights_are_repeated_rows() -> None:
    weights, starts = generator(5).integers(1, 5, 14), grid_starts(FLOOR, ROWS)
    weighted = minimise(BLOCKS, ROWS.log_y, starts, BOUNDS, weights=np.tile(weights, (10, 1)))
    rows = np.repeat(np.arange(14), weights)
    block = Block(FLOOR, ROWS.centred[rows], np.arange(len(rows)), np.eye(3), np.zeros(3))
    repeated = minimise([block], ROWS.log_y[rows], starts, BOUNDS)
    assert weighted.objective[weighted.best] == pytest.approx(repeated.objective[repeated.best], rel=1e-9)
    np.testing.assert_allclose(weighted.phi[weighted.best], repeated.phi[repeated.best], rtol=1e-5)


def outward_slopes(of: Sample, found: Optimum, bounds: tuple[Floats, Floats]) -> list[float]:
    """Central differences of the objective, outwards, along each coordinate that ended at a bound."""
    theta, slopes = found.phi[found.best], []
    for j in range(len(theta)):
        side = -1 if theta[j] <= bounds[0][j] else 1 if theta[j] >= bounds[1][j] else 0
        if side:
            moved = theta + 1e-4 * side * np.outer([1, -1], np.eye(len(theta))[j])
            values = ((of.log_y - FLOOR.log_value(moved, of.centred)) ** 2).sum(axis=1)
            slopes.append(float(values[0] - values[1]) / 2e-4)
    return slopes


def test_bounds_are_respected_and_the_objective_falls_only_outside_of_one_that_is_active() -> None:
    x = np.linspace(16, 22, 10)
    concave = sample(np.log(8 - 0.3 * x) + 0.002 * generator().normal(size=10), x)  # no floor at all
    blocks, starts = [single_block(FLOOR, concave)], grid_starts(FLOOR, concave)
    low, high = bounds = coordinate_bounds(FLOOR, concave)
    found = minimise(blocks, concave.log_y, starts, bounds)
    assert ((low <= found.phi) & (found.phi <= high)).all()
    assert max(outward_slopes(concave, found, bounds)) < 0
    narrow = (np.array([-np.inf, -np.inf, 0.5]), np.array([np.inf, np.inf, 0.6]))
    held = minimise(blocks, concave.log_y, starts, narrow)
    assert held.phi[held.best, 2] == 0.5
    assert outward_slopes(concave, held, narrow)[0] < 0


def test_a_minimisation_that_was_cut_short_does_not_claim_to_have_converged() -> None:
    far = np.array([[-5.0, 3.0, 2.0]])
    short, long = (minimise(BLOCKS, ROWS.log_y, far, BOUNDS, **steps) for steps in ({"max_steps": 2}, {}))
    assert not short.converged[0]
    assert short.objective[0] > 1.01 * long.objective[0]
    assert long.converged[0]
    wrong = np.where(np.arange(14) == 3, np.nan, ROWS.log_y)
    assert not minimise(BLOCKS, wrong, far, BOUNDS).converged[0]


def test_a_decrement_is_what_is_left_to_gain() -> None:
    """Newton's decrement near the optimum, against the objective actually lost there."""
    best = fit_sample(FLOOR, ROWS)
    near = best.theta[None] + np.sqrt(np.diag(best.covariance)) * 0.02
    left = 0.5 * float(((ROWS.log_y - FLOOR.log_value(near, ROWS.centred)) ** 2).sum()) - best.certificate.objective
    for weight in (1.0, 3.0):
        stopped = minimise(BLOCKS, ROWS.log_y, near, BOUNDS, weights=np.full((1, 14), weight), max_steps=1)
        assert stopped.decrement[0] == pytest.approx(weight * left, rel=0.05)


@pytest.mark.parametrize(("coordinate", "side"), [(0, 0), (2, 0), (2, 1)])
def test_a_start_at_a_bound_leaves_it_where_the_objective_falls_inwards(coordinate: int, side: int) -> None:
    best = fit_sample(FLOOR, ROWS)
    start = best.theta[None].copy()
    start[0, coordinate] = BOUNDS[side][coordinate]
    found = minimise(BLOCKS, ROWS.log_y, start, BOUNDS)
    assert found.objective[0] == pytest.approx(best.certificate.objective, rel=1e-8)


@pytest.mark.parametrize("delta", [1e-3, 0.05, np.inf])
def test_hubers_loss_its_slope_and_its_curvature(delta: float) -> None:
    loss, r = Loss(delta), np.array([-0.2, -1e-2, -5e-4, 3e-4, 2e-3, 0.4])
    step = 1e-7
    assert loss.value(r).sum() == pytest.approx(huber(r, delta) if np.isfinite(delta) else (r**2).sum() / 2)
    np.testing.assert_allclose(
        loss.first_derivative(r), (loss.value(r + step) - loss.value(r - step)) / (2 * step), rtol=1e-4
    )
    np.testing.assert_allclose(
        loss.second_derivative(r),
        (loss.first_derivative(r + step) - loss.first_derivative(r - step)) / (2 * step),
        atol=1e-6,
    )
    np.testing.assert_allclose(loss.scale(r) * r, loss.first_derivative(r), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(columns=st.integers(1, 4), rows=st.integers(5, 12), seed=st.integers(0, 10_000), lift=st.floats(-1, 2))
def test_non_negative_least_squares_are_lawson_and_hansons(columns: int, rows: int, seed: int, lift: float) -> None:
    rng = generator(seed)
    basis, target = rng.normal(size=(3, rows, columns)) + lift, rng.normal(size=(3, rows)) + 1
    ours = _non_negative(basis, target)
    for r in range(3):
        expected, _ = optimize.nnls(basis[r], target[r])
        np.testing.assert_allclose(ours[r], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LAWS)
def test_starts_cover_the_grid_and_hold_to_the_bounds(name: str) -> None:
    law = get_law(name)
    of = noisy(name, 12, 0.01)
    starts, (low, high) = grid_starts(law, of), coordinate_bounds(law, of)
    assert len(starts) == len(GRIDS[len(law.exponents)]) ** len(law.exponents)
    assert ((low <= starts) & (starts <= high) & np.isfinite(starts)).all()
    theta = law.coordinates(TRUE[name], of.refs)
    assert ((low < theta) & (theta < high)).all()


def test_the_start_at_the_true_exponents_is_the_true_law() -> None:
    """Relative residuals of exact data are zero there, so nothing is left to search for."""
    of, exponents = noisy("power_floor", 9, 0.0), np.array([[TRUE["power_floor"]["alpha"]]])
    coefficients = _non_negative(*FLOOR.basis(exponents, of.centred, of.log_y))
    theta = FLOOR.join(np.log(coefficients), exponents)
    np.testing.assert_allclose(FLOOR.canonical(theta, of.refs)[0], list(TRUE["power_floor"].values()), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_step_on_a_quadratic_that_a_bound_stops_is_the_best_of_those_at_that_bound(seed: int) -> None:
    """The first coordinate would leave the bounds: the others are then solved for again, not kept."""
    rng = generator(seed)
    root, target = rng.normal(size=(6, 3)), np.array([3.0, 0.2, -0.1])
    hessian, gradient, zero = root.T @ root, -(root.T @ root) @ target, np.zeros((1, 3))
    state = State(zero, np.array([1.0]), gradient[None], hessian[None], np.diag(hessian)[None])
    bounds = np.array([[-10.0, -100.0, -100.0], [1.0, 100.0, 100.0]])
    step = newton_step(state, np.zeros(1), bounds[:, None], np.zeros((1, 3), dtype=bool))
    best = optimize.lsq_linear(root, root @ target, (bounds[0], bounds[1])).x
    np.testing.assert_allclose(step.change[0], best, atol=1e-6)
    assert best[0] == pytest.approx(1.0)
