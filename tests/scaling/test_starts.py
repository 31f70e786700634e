"""Starts are non-negative least squares at every exponent of the grid, and lie within bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from slm.scaling.forms import GRIDS
from slm.scaling.laws import LAWS, get_law
from slm.scaling.starts import _non_negative, coordinate_bounds, grid_starts
from tests.scaling.samples import FLOOR, TRUE, noisy
from tests.seeds import generator


@settings(max_examples=40, deadline=None)
@given(columns=st.integers(1, 4), rows=st.integers(5, 12), seed=st.integers(0, 10_000), lift=st.floats(-1, 2))
def test_subsets_of_columns_are_lawson_and_hansons_least_squares(
    columns: int, rows: int, seed: int, lift: float
) -> None:
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
