"""Choices among candidates against closed forms and brute force."""

import numpy as np
import pytest
from scipy import stats

from slm.report.ship import choice_sentences
from slm.scaling.choices import DRAWS, Candidates, choose, draws_of
from tests.seeds import generator


def exact(losses: list[float], rates: list[float], **other: list[float]) -> Candidates:
    """Candidates without errors."""
    rows = {key: np.tile(values, (1 + DRAWS, 1)) for key, values in other.items()}
    seconds = np.tile(1 / np.array(rates), (1 + DRAWS, 1))
    names = [chr(ord("a") + k) for k in range(len(losses))]
    return Candidates(names, np.tile(losses, (1 + DRAWS, 1)), {"decode_tokens_per_second": seconds, **rows})


def bests(candidates: Candidates, **limits: float) -> dict[str, str | None]:
    return {choice["use"]: choice["best"] for choice in choose(candidates, limits)["choices"]}


def test_the_probability_of_the_lowest_of_two_normals_is_the_closed_form() -> None:
    rng = generator()
    losses = draws_of(np.array([3.0, 3.01]), np.array([0.01, 0.02]), rng)
    seconds = np.tile([0.1, 0.2], (1 + DRAWS, 1))
    (quality,) = [
        choice
        for choice in choose(Candidates(["a", "b"], losses, {"decode_tokens_per_second": seconds}), {})["choices"]
        if choice["use"] == "quality first"
    ]
    expected = stats.norm.cdf(0.01 / np.hypot(0.01, 0.02))
    assert quality["best"] == "a"
    assert quality["probability"] == pytest.approx(expected, abs=4 * np.sqrt(0.25 / DRAWS))
    assert not quality["sure"]
    assert [name for name, _ in quality["among"]] == ["a", "b"]


def test_the_balanced_choice_is_the_front_s_point_farthest_below_the_line_between_its_ends() -> None:
    """By hand: log2 seconds 0, 1, 2, 3 and losses 4, 3, 2.8, 2.7; the line falls by 1.3 / 3 for each doubling."""
    candidates = exact([4.0, 3.0, 2.8, 2.7, 3.9], [8, 4, 2, 1, 1.5])
    assert bests(candidates) == {"latency first": "a", "balanced": "b", "quality first": "d"}
    straight = exact([4.0, 3.0, 2.0], [4, 2, 1])
    choices = choose(straight, {})["choices"]
    assert choices[1]["best"] is None
    assert "no candidate below the line" in choices[1]["why"]


def test_limits_leave_out_candidates_and_say_so_if_none_is_left() -> None:
    candidates = exact([4.0, 3.0, 2.0], [40, 20, 10], bytes=[1e6, 2e6, 8e6])
    assert bests(candidates, bytes=2e6)["quality first"] == "b"  # a limit is met by its own value
    assert bests(candidates, decode_tokens_per_second=20)["quality first"] == "b"
    assert bests(candidates, max_loss=3.5)["latency first"] == "b"
    assert bests(candidates, max_loss=3.5)["quality first"] == "c"
    none = choose(candidates, {"bytes": 1e5})
    assert [choice["why"] for choice in none["choices"]] == ["no candidate meets the limits"] * 3
    unknown = choose(candidates, {"memory": 1e9})  # nobody was measured
    assert unknown["meets"] == [0, 0, 0]


def test_a_candidate_near_a_limit_meets_it_with_the_closed_form_probability() -> None:
    costs = np.exp(draws_of(np.log([1e6, 1e5]), np.array([0.1, 0.0]), generator()))
    chosen = choose(Candidates(["a", "b"], np.ones((1 + DRAWS, 2)), {"bytes": costs}), {"bytes": 1.05e6})
    expected = stats.norm.cdf(np.log(1.05) / 0.1)
    assert chosen["meets"][0] == pytest.approx(expected, abs=4 * np.sqrt(0.25 / DRAWS))
    assert [choice.get("why") for choice in chosen["choices"]] == ["no speed was measured"] * 2 + [None]


def test_a_single_candidate_is_no_choice() -> None:
    choices = choose(exact([3.0], [10.0]), {})["choices"]
    assert [(choice["best"], choice["why"]) for choice in choices] == [(None, "only one candidate was measured")] * 3


def test_a_limit_near_the_estimates_does_not_say_surely_that_none_meets_it() -> None:
    costs = np.exp(draws_of(np.log([1e6, 1.25e6, 9e6]), np.full(3, 0.1), generator()))
    candidates = Candidates(["a", "rarely", "never"], np.ones((1 + DRAWS, 3)), {"bytes": costs})
    choice = choose(candidates, {"bytes": 0.97e6})["choices"][2]
    met = stats.norm.cdf(np.log(0.97) / 0.1)
    assert (choice["best"], choice["sure"]) == (None, False)
    assert choice["none"] == pytest.approx(1 - met, abs=4 * np.sqrt(0.25 / DRAWS))
    assert choice["among"] == [["a", pytest.approx(met, abs=4 * np.sqrt(0.25 / DRAWS))]]
    entry = {"choices": [choice], "candidates": [], "latency": None}
    assert f"a ({choice['among'][0][1]:.2f}) and none ({choice['none']:.2f}); by the estimates none" in "".join(
        choice_sentences(entry)
    )


def test_draws_with_an_estimated_scatter_are_student_s_t() -> None:
    rng = generator()
    drawn = np.concatenate([draws_of(np.zeros(1), np.ones(1), rng, df=3)[1:, 0] for _ in range(9)])
    for share in (0.9, 0.975):  # a normal has 1.28 and 1.96, this t has 1.64 and 3.18
        assert np.quantile(drawn, share) == pytest.approx(stats.t(3).ppf(share), rel=0.08)
