"""What a design can tell, against simulated experiments."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from slm.scaling.compare import design_power
from slm.scaling.fitting import fit_sample
from slm.scaling.forms import Floats
from slm.scaling.intervals import uncertainty
from slm.scaling.laws import get_law
from slm.scaling.power import Design, plan, seeds_needed, span_needed
from slm.scaling.settings import Settings
from tests.scaling.samples import TRUE, design, plain_law, sample

SIZES = np.geomspace(1e6, 1e8, 6)
LINE = {"A": 20.0, "alpha": 0.1}


def line(sigma: float = 0.01, seeds: int = 1, sizes: Floats = SIZES) -> Design:
    return plan({"N": sizes.tolist()}, params=LINE, sigma=sigma, seeds=seeds)


def rejections(sizes: Floats, sigma: float, seeds: int, difference: float, level: float, count: int) -> Floats:
    """Pairs of simulated families, each a regression in logs, and a pooled t test of their slopes."""
    rng = np.random.default_rng(0)
    x = np.repeat(np.log(sizes), seeds)
    z, n = x - x.mean(), len(x)
    slopes, sse = [], []
    for slope in (0.1, 0.1 + difference):
        y = -slope * x + sigma * rng.normal(size=(count, n))
        b = y @ z / (z @ z)
        slopes.append(b)
        sse.append(((y - y.mean(axis=1, keepdims=True) - b[:, None] * z) ** 2).sum(axis=1))
    df = 2 * n - 4
    t = (slopes[0] - slopes[1]) / np.sqrt((sse[0] + sse[1]) / df * 2 / (z @ z))
    return np.asarray(np.abs(t) > stats.t.ppf(1 - level / 2, df))


@pytest.mark.parametrize(("difference", "seeds", "pairs"), [(0.0, 1, 1), (0.01, 1, 1), (0.008, 3, 3), (0.02, 1, 6)])
def test_power_is_the_share_of_simulated_pairs_that_are_told_apart(difference: float, seeds: int, pairs: int) -> None:
    count = 20_000
    share = rejections(SIZES, 0.01, seeds, difference, 0.05 / pairs, count).mean()
    expected = line(seeds=seeds).power(difference, pairs=pairs)
    assert share == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / count))


@settings(max_examples=15, deadline=None)
@given(
    cells=st.integers(3, 8),
    seeds=st.integers(1, 5),
    sigma=st.floats(1e-3, 0.1),
    power=st.sampled_from([0.5, 0.8, 0.95]),
)
def test_what_is_detectable_is_detected_with_just_that_power(
    cells: int, seeds: int, sigma: float, power: float
) -> None:
    of = line(sigma, seeds, np.geomspace(1e6, 3e8, cells))
    smallest = of.detectable(power=power, pairs=3)
    assert smallest is not None
    assert of.power(smallest, pairs=3) == pytest.approx(power, abs=1e-5)
    assert of.power(1.5 * smallest, pairs=3) > power


def test_the_error_of_an_exponent_is_that_of_regression() -> None:
    x = np.repeat(np.log(SIZES), 3)
    assert line(sigma=0.02, seeds=3).error() == pytest.approx(0.02 / np.sqrt(((x - x.mean()) ** 2).sum()))


@pytest.mark.parametrize("name", ["power_floor", "chinchilla"])
def test_the_error_of_other_laws_is_the_inverse_information_by_differences(name: str) -> None:
    variables = {"power_floor": ("N",), "chinchilla": ("N", "D")}[name]
    log_x = design(variables, 12)
    sizes = {v: np.exp(log_x[:, j]).tolist() for j, v in enumerate(variables)}
    x = {v: np.array(sizes[v]) for v in variables}
    params = TRUE[name]
    jacobian = np.stack(
        [
            (
                np.log(plain_law(name, params | {k: v * 1.0001}, x))
                - np.log(plain_law(name, params | {k: v * 0.9999}, x))
            )
            / (2e-4 * v)
            for k, v in params.items()
        ],
        axis=1,
    )
    scale = np.linalg.norm(jacobian, axis=0)
    covariance = np.linalg.inv((jacobian / scale).T @ (jacobian / scale)) / np.outer(scale, scale)
    of = plan(sizes, law=name, params=params, sigma=0.01, seeds=2)
    for exponent in ("alpha", "beta") if name == "chinchilla" else ("alpha",):
        place = list(params).index(exponent)
        assert of.error(exponent) == pytest.approx(0.01 * np.sqrt(covariance[place, place] / 2), rel=1e-4)


@pytest.mark.parametrize("difference", [0.006, 0.008, 0.01, 0.012, 0.015, 0.02])
def test_seeds_needed_are_the_fewest(difference: float) -> None:
    needed = seeds_needed(line(0.02), difference, pairs=3)
    assert needed is not None
    assert needed > 1
    assert line(0.02, needed).power(difference, pairs=3) >= 0.8
    assert line(0.02, needed - 1).power(difference, pairs=3) < 0.8


def test_one_seed_may_do_and_many_may_not() -> None:
    assert seeds_needed(line(0.001), 0.1) == 1
    assert seeds_needed(line(0.1), 1e-4, most=50) is None


def test_the_span_needed_is_just_enough() -> None:
    span = span_needed(line(0.02), 0.01)
    assert span is not None
    middle = np.sqrt(1e6 * 1e8)
    for times, enough in ((1.0001, True), (0.98, False)):
        half = np.sqrt(span * times)
        of = line(0.02, sizes=np.geomspace(middle / half, middle * half, 6))
        assert (of.power(0.01) >= 0.8) == enough
    assert span_needed(line(10.0), 0.01) is None


def test_a_design_that_identifies_nothing_detects_nothing() -> None:
    same = line(sizes=np.full(5, 1e7))
    assert same.error() == np.inf
    assert same.detectable() is None
    assert same.power(0.5) == 0
    two = plan({"N": [1e6, 1e8]}, params=LINE, sigma=0.01)
    assert two.detectable() is None  # a line through two points leaves no scatter
    step = {"N": SIZES.tolist(), "D": (20 * SIZES).tolist()}
    in_step = plan(step, law="chinchilla", params=TRUE["chinchilla"] | {"beta": 0.35}, sigma=0.01, seeds=3)
    assert in_step.detectable() is None
    assert seeds_needed(in_step, 0.1) is None


@pytest.mark.parametrize(
    ("sizes", "law", "sigma", "words"),
    [
        ({"N": [1e6]}, "chinchilla", 0.01, "a design for chinchilla needs sizes for N, D; D is missing"),
        ({"N": [1e6, 2e6], "D": [1e9]}, "chinchilla", 0.01, "same number of cells"),
        ({"N": [1e6, 2e6]}, "power", 0.0, "sigma=0.0 must be above 0"),
        ({"N": [1e6, 2e6]}, "powr", 0.01, "law 'powr' is none of power"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(sizes: dict[str, list[float]], law: str, sigma: float, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        plan(sizes, law=law, params=LINE, sigma=sigma)


@pytest.mark.filterwarnings("error")
def test_a_span_can_be_asked_of_a_design_of_one_size() -> None:
    assert span_needed(line(sizes=np.full(5, 1e7)), 0.01) is None


def test_reading_a_run_four_times_does_not_make_a_design_more_powerful() -> None:
    def detectable(rows: int) -> float:
        of = {}
        for seed, name in enumerate("ab"):
            rng = np.random.default_rng(seed)
            run = np.repeat(np.arange(10), rows)
            x = np.linspace(15, 22, 10)[run]
            y = 3 - 0.1 * x + 0.02 * rng.normal(size=10)[run] + 1e-5 * rng.normal(size=10 * rows)
            found = fit_sample(get_law("power"), sample(y, x, run))
            of[name] = (found, uncertainty(found, replicates=100, rng=rng))
        return float(design_power(of, Settings())["detectable"])

    # A factor of 2 off if rows were runs; the cluster bootstrap's error with ten runs is good to a quarter.
    assert detectable(4) == pytest.approx(detectable(1), rel=0.25)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"params": {"A": 20.0}}, "needs params A, alpha; alpha missing"),
        ({"params": {"A": -1.0, "alpha": 0.1}}, "params A=-1.0"),
        ({"sizes": {"N": [1e6, 0.0]}}, "above 0, and 0 is among them"),
        ({"sizes": {"N": [1e6, np.inf]}}, "above 0, and inf is among them"),
        ({"sizes": {"N": []}}, "at least one cell"),
        ({"seeds": 0}, "seeds=0 must be a whole number"),
    ],
)
def test_a_plan_without_cells_seeds_or_parameters_is_refused_without_warnings(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        plan(**{"sizes": {"N": [1e6, 2e6]}, "params": LINE, "sigma": 0.01} | changes)
