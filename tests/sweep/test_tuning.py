"""The learning rate of each shape, interpolated: exact on a parabola, one rate for all seeds, ends flagged."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.sweep.tuning import tune

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


def test_the_given_rate_is_compared_with_the_best_that_was_trained() -> None:
    """Losses are 3 + 0.2 log(lr / 0.004)^2 + 0.01 seed: at 0.008 they are 0.2 log(2)^2 above those at 0.004."""
    lowest, excess = 3.015, 0.2 * math.log(2) ** 2
    (row,) = tune(runs(0.004, seeds=(1, 2)), {"a": 0.008}).optima.to_dict("records")
    assert (row["loss_lowest"], row["loss_at_value"]) == pytest.approx((lowest, lowest + excess))
    assert row["excess_at_value"] == pytest.approx(excess / lowest)
    (line,) = tune(runs(0.004, seeds=(1, 2)), {"a": 0.008}).lines
    assert line.endswith("rate 0.004, loss 3.0150; the rate given, 0.008, came to 3.19% above the best tried")
    assert tune(runs(0.004), {"a": 0.004}).optima["excess_at_value"].tolist() == [0]
    assert tune(runs(0.004), {"a": 0.003}).optima["excess_at_value"].isna().all()  # a rate that was not tried


def test_how_far_the_bottom_lies_below_the_runs_is_said() -> None:
    wide = runs(0.0061, bend=0.3)
    tuned = tune(wide, {})
    share = 1 - tuned.optima["loss"][0] / wide["loss"].min()
    assert f" interpolated, {share:.2%} below the lowest measured" in tuned.lines[0]


@pytest.mark.parametrize("best", [0.0005, 0.05])
def test_a_best_rate_at_an_end_is_flagged_and_taken_as_it_was_measured(best: float) -> None:
    tuned = tune(runs(best), {})
    end = RATES[0] if best < 0.001 else RATES[-1]
    assert tuned.optima["at_end"].tolist() == tuned.best["lr_at_end"].tolist() == [True]
    assert (tuned.best["lr"].tolist(), tuned.best["loss"].tolist()) == (
        [end],
        runs(best).query("lr == @end")["loss"].tolist(),
    )
    assert tuned.notes[0].startswith(f"a 64x4 (tokens=1): its best learning rate {end:g} is at the end of its grid")


def test_a_rate_that_one_seed_did_not_complete_is_not_compared() -> None:
    frame = runs(0.004, seeds=(1, 2))
    tuned = tune(frame[~((frame["lr"] == 0.016) & (frame["seed"] == 2))], {})
    assert tuned.optima["lr_high"].tolist() == [0.008]
    few = tune(frame[frame["lr"] < 0.003], {})
    assert few.best.empty
    assert "2 of its learning rates completed" in few.notes[0]
