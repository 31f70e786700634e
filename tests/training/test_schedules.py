import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.composition.schedules import check_schedule, count_common_steps, lr_factor

COSINE = {"name": "cosine", "warmup_fraction": 0.1, "final_fraction": 0.1}
LINEAR = {"name": "linear", "warmup_fraction": 0.1, "final_fraction": 0.0}
WSD = {"name": "wsd", "warmup_fraction": 0.1, "decay_fraction": 0.2, "final_fraction": 0.0}
CONSTANT = {"name": "constant", "warmup_fraction": 0.1}


@given(step=st.integers(0, 999), total=st.integers(1, 1000))
def test_every_schedule_stays_between_zero_and_the_peak(step: int, total: int) -> None:
    for schedule in (COSINE, LINEAR, WSD, CONSTANT):
        assert 0 <= lr_factor(min(step, total - 1), total, schedule) <= 1


def test_warm_up_is_a_line_to_the_peak() -> None:
    for schedule in (COSINE, LINEAR, WSD, CONSTANT):
        rates = [lr_factor(step, 1000, schedule) for step in range(101)]
        assert rates == pytest.approx([(step + 1) / 101 for step in range(101)])


def test_cosine_equals_its_closed_form() -> None:
    for step in range(100, 1000, 50):
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 100) / 900))
        assert lr_factor(step, 1000, COSINE) == pytest.approx(expected)


def test_cosine_without_warm_up_equals_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        assert lr_factor(step, 50, COSINE | {"warmup_fraction": 0.0}) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_linear_falls_in_a_line_and_wsd_over_the_last_fifth_alone() -> None:
    assert lr_factor(550, 1000, LINEAR) == pytest.approx(0.5)
    assert [lr_factor(step, 1000, WSD) for step in (101, 500, 800)] == [1, 1, 1]
    assert lr_factor(900, 1000, WSD) == pytest.approx(0.5)
    assert lr_factor(999, 1000, WSD) == pytest.approx(1 / 200)


@given(
    warmup=st.integers(0, 40),
    totals=st.lists(st.integers(100, 1000), min_size=2, max_size=2, unique=True),
    decay=st.floats(0.01, 0.6),
)
def test_budgets_under_one_warm_up_have_the_same_rates_up_to_the_shorter_ones_decay(
    warmup: int, totals: list[int], decay: float
) -> None:
    """To the last bit: a run of one budget can then go on from a checkpoint of the other."""
    schedule = WSD | {"warmup_steps": warmup, "decay_fraction": decay}
    short, long = sorted(totals)
    decay_starts = short * (1 - decay)
    shared = count_common_steps(schedule, short, schedule, long)
    assert decay_starts - 1e-9 <= shared <= decay_starts + 2
    for step in range(int(decay_starts)):
        expected = (step + 1) / (warmup + 1) if step < warmup else 1.0
        assert lr_factor(step, short, schedule) == lr_factor(step, long, schedule) == expected


def test_a_warm_up_in_steps_is_the_same_share_of_the_run_in_other_words() -> None:
    for schedule in (COSINE, LINEAR, WSD, CONSTANT):
        in_steps = schedule | {"warmup_fraction": 0.5, "warmup_steps": 100}
        assert count_common_steps(schedule, 1000, in_steps, 1000) == 1000


@pytest.mark.parametrize(
    ("schedule", "named"),
    [
        (COSINE | {"name": "cosin"}, "schedule.name=cosin must be one of cosine, linear, constant, wsd"),
        (COSINE | {"warmup_fraction": 1.0}, "leaves no step"),
        (WSD | {"decay_fraction": 0.95}, "decay_fraction=0.95"),
        (WSD | {"decay_fraction": 0.0}, "decay_fraction=0.0"),
        (COSINE | {"warmup_steps": 100}, "warmup_steps=100 leaves no step after the warm-up of a 100-step run"),
        (WSD | {"warmup_steps": 81}, "decay_fraction=0.2 .* room for schedule.warmup_steps=81 in a run of 100 steps"),
    ],
)
def test_an_impossible_schedule_is_refused(schedule: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_schedule(schedule, 100)


@pytest.mark.parametrize(("warmup", "decay", "steps"), [(8, 0.2, 10), (7, 0.3, 10), (90, 0.1, 100)])
def test_a_warmup_and_a_decay_may_fill_the_run(warmup: int, decay: float, steps: int) -> None:
    schedule = WSD | {"warmup_steps": warmup, "decay_fraction": decay}
    check_schedule(schedule, steps)
    shares = [lr_factor(step, steps, schedule) for step in range(steps)]
    assert max(shares) == shares[warmup] == pytest.approx(1)
    assert shares[:warmup] == sorted(shares[:warmup])
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)
