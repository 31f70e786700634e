"""The model of what a shape costs: known truth, coverage of intervals, and when there is no model."""

import numpy as np
import pandas as pd
import pytest

from slm.scaling.costs import CostModel, costs_by_family, fit_costs
from tests.seeds import generator

WORK = ("block_uses", "params_read", "constant", "head", "cache")
PER_BLOCK, PER_PARAMETER, FIXED = 1e-4, 1e-10, 2e-4


def shapes(rng: np.random.Generator, n: int) -> pd.DataFrame:
    depth, width = rng.integers(2, 40, n).astype(float), 64.0 * rng.integers(1, 20, n)
    params = 12 * depth * width**2 * rng.uniform(0.7, 1.3, n)
    return pd.DataFrame({"block_uses": depth, "params_read": params, "head": 512 * width})


def seconds(features: pd.DataFrame) -> np.ndarray:
    cost = PER_BLOCK * features["block_uses"] + PER_PARAMETER * features["params_read"] + FIXED
    return cost.to_numpy()


def test_costs_without_noise_give_the_true_coefficients() -> None:
    features = shapes(generator(), 12)
    model = fit_costs(features, seconds(features), WORK)
    assert model is not None
    found = dict(zip(model.terms, model.coefficients, strict=True))
    assert found["block_uses"] == pytest.approx(PER_BLOCK, rel=1e-4)
    assert found["params_read"] == pytest.approx(PER_PARAMETER, rel=1e-4)
    assert found["constant"] == pytest.approx(FIXED, rel=1e-3)
    assert model.held_out < 1e-4


@pytest.mark.parametrize("n", [7, 12])
def test_intervals_of_a_new_shape_cover(n: int) -> None:
    """300 tables with 8% noise; 95% intervals of the measured seconds of one more shape."""
    rng, hits = generator(), 0
    for _ in range(300):
        features = shapes(rng, n + 1)
        measured = np.log(seconds(features)) + 0.08 * rng.standard_normal(n + 1)
        model = fit_costs(features.iloc[:n], np.exp(measured[:n]), WORK)
        assert model is not None
        band = model.band(features.iloc[n:], 0.95)
        hits += int(band.low[0] <= measured[n] <= band.high[0])
    assert 0.9 <= hits / 300 <= 0.99


def test_the_interval_with_one_term_is_the_classical_one() -> None:
    """Costs proportional to depth: log cost / depth is a mean of n values with the prediction interval of the mean."""
    rng = generator()
    features = pd.DataFrame({"block_uses": np.geomspace(2, 50, 8)})
    logs = np.log(features["block_uses"]).to_numpy() + 0.001 * rng.standard_normal(8)
    model = fit_costs(features, np.exp(logs), ("block_uses",))
    assert model is not None
    residuals = logs - np.log(features["block_uses"].to_numpy())
    band = model.band(features, 0.95)
    half = 2.3646 * residuals.std(ddof=1) * np.sqrt(1 + 1 / 8)  # t(7)
    np.testing.assert_allclose(band.high - band.centre, half, rtol=1e-3)


def test_terms_are_no_more_than_the_shapes_can_tell() -> None:
    features = shapes(generator(), 8)
    assert fit_costs(features[:4], seconds(features)[:4], WORK) is None
    terms = [fit_costs(features[:n], seconds(features)[:n], WORK).terms for n in (5, 6, 7)]  # type: ignore[union-attr]
    assert terms == [WORK[:2], WORK[:3], WORK[:4]]
    same_depth = features.assign(block_uses=4.0)  # depth cannot be told from a constant
    model = fit_costs(same_depth, seconds(same_depth), WORK)
    assert model is not None
    assert "constant" not in model.terms


def test_small_families_share_a_model_only_if_they_cost_alike() -> None:
    """An F test at 5%: of 60 tables of equal families, few are refused; families three times apart always are."""
    rng, num_pooled = generator(), 0
    for _ in range(60):
        features = shapes(rng, 16).assign(family=["a", "b", "c", "c"] * 4)
        alike = seconds(features) * np.exp(0.01 * rng.standard_normal(16))
        models = costs_by_family(features, alike, WORK)
        num_pooled += isinstance(models["b"], CostModel)
        assert isinstance(models["c"], CostModel)
        assert not models["c"].is_pooled
        refused = costs_by_family(features, np.where(features["family"] == "b", 3, 1) * alike, WORK)
        assert isinstance(refused["c"], CostModel)
        assert "the families cost differently" in str(refused["b"])
    assert num_pooled >= 50
