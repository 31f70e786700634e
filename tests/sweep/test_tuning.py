"""The best learning rate of each shape: exact on a parabola, unbiased on noisy ones, ends flagged."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.sweep.tuning import find_optimum, pooled_noise, tune
from tests.seeds import seeded

RATES = [0.001, 0.002, 0.004, 0.008, 0.016]


def runs(best: float, *, seeds: tuple[int, ...] = (1,), floor: float = 3.0, bend: float = 0.2) -> pd.DataFrame:
    """Losses of a parabola in log lr with its bottom at `best`; seeds differ by a shift."""
    rows = [
        {"run_id": f"{lr}-{seed}", "family": "a", "params_total": 10**6, "width": 64, "depth": 4, "budget": "tokens=1"}
        | {"lr": lr, "seed": seed, "loss": floor + bend * math.log(lr / best) ** 2 + 0.01 * seed}
        for lr in RATES
        for seed in seeds
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(perplexity=np.exp(frame["loss"]), bits_per_byte=frame["loss"] / 2)


@settings(max_examples=15, deadline=None)
@given(best=st.floats(0.0015, 0.011), bend=st.floats(0.01, 1))
def test_the_bottom_of_a_parabola_is_found(best: float, bend: float) -> None:
    tuned = tune(runs(best, seeds=(1, 2), bend=bend), {})
    assert tuned.optima["lr"].tolist() == pytest.approx([best], rel=1e-5)
    assert not tuned.optima["at_end"].any()
    assert tuned.best["loss"].tolist() == pytest.approx([3.01, 3.02], abs=1e-9)
    assert tuned.best["lr"].nunique() == 1
    np.testing.assert_allclose(tuned.best["perplexity"], np.exp(tuned.best["loss"]))
    np.testing.assert_allclose(tuned.best["bits_per_byte"], tuned.best["loss"] / 2)
    assert tuned.notes == ()
    assert tuned.best["lr_tried"].tolist() == [5, 5]


def simulated(noise: float, bend: float, factors: int, seeds: int, *, skew: float = 0.0) -> pd.DataFrame:
    """1,000 shapes in families of four, whose losses are lowest, at 3, where log lr is 0.3: between two rates.

    Columns: lowest (of the runs), loss (fitted), fitted (rates).
    """
    rng = np.random.default_rng(seeded())
    x = (np.arange(factors) - factors // 2) * math.log(2)
    loss = 3 * (1 + bend * (x - 0.3) ** 2 + skew * (x - 0.3) ** 3)
    rows = []
    for _ in range(250):
        family = loss[:, None] * (1 + noise * rng.standard_normal((4, factors, seeds)))
        shapes = [pd.DataFrame(runs, index=np.exp(x)) for runs in family]
        seen = pooled_noise(shapes)
        assert seen is not None
        for shape in shapes:
            found = find_optimum(shape, seen)
            fitted = float(np.mean(list(found.losses.values())))
            rows.append({"lowest": shape.mean(axis=1).min(), "loss": fitted, "fitted": found.num_fitted})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("noise", "bend", "factors", "seeds", "lowest"),
    [
        (0.003, 0.001, 5, 1, -0.0026),  # flat: 0.2% at a factor of 4
        (0.003, 0.001, 3, 2, -0.0015),
        (0.003, 0.004, 5, 1, -0.0014),
        (0.003, 0.004, 7, 1, -0.0014),
        (0.003, 0.02, 5, 2, 0.0012),  # sharp: 4% at a factor of 4
        (0.01, 0.001, 5, 1, -0.0106),
        (0.01, 0.004, 7, 1, -0.0086),
        (0.01, 0.004, 5, 3, -0.0040),
        (0.01, 0.02, 5, 1, -0.0034),
    ],
)
def test_the_loss_at_the_optimum_of_noisy_runs_is_neither_too_low_nor_too_high(
    noise: float, bend: float, factors: int, seeds: int, lowest: float
) -> None:
    """The lowest of the runs is off by the share `lowest`, the fitted loss by a tenth of the noise or 0.05%."""
    optima = simulated(noise, bend, factors, seeds)
    assert optima["lowest"].mean() / 3 - 1 == pytest.approx(lowest, abs=0.05 * noise + 1e-4)
    assert abs(optima["loss"].mean() / 3 - 1) < max(5e-4, 0.1 * noise)


def test_a_family_of_flat_optima_gains_nothing_on_one_of_sharp_optima_nor_by_more_rates() -> None:
    flat, sharp, many = (simulated(0.005, bend, n, 1) for bend, n in ((0.001, 5), (0.02, 5), (0.001, 7)))
    assert sharp["lowest"].mean() / flat["lowest"].mean() - 1 > 3e-3
    assert flat["loss"].mean() / sharp["loss"].mean() - 1 == pytest.approx(0, abs=7e-4)
    assert flat["loss"].mean() / many["loss"].mean() - 1 == pytest.approx(0, abs=5e-4)


def test_losses_that_rise_faster_to_one_side_are_fitted_near_the_optimum_alone() -> None:
    optima = simulated(0.003, 0.05, 5, 1, skew=0.01)
    assert optima["fitted"].mean() < 3.3
    assert optima["lowest"].mean() / 3 - 1 > 3e-3
    assert abs(optima["loss"].mean() / 3 - 1) < 1e-3


def test_three_rates_of_one_seed_cannot_be_corrected_and_the_reader_is_told() -> None:
    frame = runs(0.004)
    three = tune(frame[frame["lr"].between(0.0015, 0.01)], {})
    assert three.optima["raised"].tolist() == [0]
    assert "by an unknown amount: give four rates or two seeds" in three.notes[0]
    assert tune(frame, {}).notes == ()


def test_the_given_rate_is_compared_with_the_best_that_was_trained() -> None:
    """Losses are 3 + 0.2 log(lr / 0.004)^2 + 0.01 seed: at 0.008 they are 0.2 log(2)^2 above those at 0.004."""
    lowest, excess = 3.015, 0.2 * math.log(2) ** 2
    (row,) = tune(runs(0.004, seeds=(1, 2)), {"a": 0.008}).optima.to_dict("records")
    assert (row["loss_lowest"], row["loss_at_value"]) == pytest.approx((lowest, lowest + excess))
    assert row["excess_at_value"] == pytest.approx(excess / lowest)
    (line,) = tune(runs(0.004, seeds=(1, 2)), {"a": 0.008}).lines
    assert line.endswith("rate 0.004, loss 3.0150; at the design's rate 0.008 3.19% above the lowest measured")
    assert tune(runs(0.004), {"a": 0.004}).optima["excess_at_value"].tolist() == [0]
    assert tune(runs(0.004), {"a": 0.003}).optima["excess_at_value"].isna().all()  # a rate that was not tried


def test_how_far_the_bottom_lies_below_the_runs_is_said() -> None:
    wide = runs(0.0061, bend=0.3)
    tuned = tune(wide, {})
    share = 1 - tuned.optima["loss"][0] / wide["loss"].min()
    assert f" (parabola through 3 rates; {share:.2%} below the lowest measured loss)" in tuned.lines[0]


@pytest.mark.parametrize("best", [0.0005, 0.05])
def test_a_best_rate_at_an_end_is_flagged_and_taken_as_it_was_measured(best: float) -> None:
    tuned = tune(runs(best), {})
    end = RATES[0] if best < 0.001 else RATES[-1]
    assert tuned.optima["at_end"].tolist() == tuned.best["lr_at_end"].tolist() == [True]
    assert tuned.best["lr"].tolist() == [end]
    assert tuned.best["loss"].tolist() == pytest.approx(runs(best).query("lr == @end")["loss"].tolist(), rel=1e-12)
    assert tuned.notes[0].startswith(f"a 64x4 (tokens=1): the best learning rate {end:g} is at an end of the grid")


def test_a_rate_that_one_seed_did_not_complete_is_not_compared() -> None:
    frame = runs(0.004, seeds=(1, 2))
    tuned = tune(frame[~((frame["lr"] == 0.016) & (frame["seed"] == 2))], {})
    assert tuned.optima["lr_high"].tolist() == [0.008]
    few = tune(frame[frame["lr"] < 0.003], {})
    assert few.best.empty
    assert "learning rates, not 2" in few.notes[0]
