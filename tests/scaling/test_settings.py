"""Settings that are wrong are answered with one sentence that names the key."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.scaling.laws import LAWS
from slm.scaling.settings import Settings
from tests.composing import choice


def sentence(values: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r"^analysis\.") as caught:
        Settings.from_dict(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


WRONG = [
    ("laws", ["power", "chinchila"], "'chinchila'] must be a list of some of power"),
    ("laws", [], "must be a list"),
    ("targets", "los", "['los'] must be a list of some of loss"),
    ("sizes", ["params"], "['params'] must be a list of some of params_total"),
    ("law", "best", "best must be one of auto, power"),
    ("target", "accuracy", "accuracy needs analysis.target_kind, which must be loss or error or accuracy"),
    ("target", "a|b", "a|b must be the name of a column"),
    ("chance", 1, "1 must be at least 0 and below 1"),
    ("size", 7, "7 must be one of auto, params_total"),
    ("loss", "l1", "l1 must be one of least_squares, huber"),
    ("unit", "seed", "seed must be one of auto, run, cell"),
    ("bootstrap", 49, "49 must be 0 (none) or a whole number of at least 50"),
    ("bootstrap", -1, "-1 must be 0"),
    ("bootstrap", 100.5, "100.5 must be 0"),
    ("bootstrap", True, "true must be 0"),
    ("calibration", 10, "10 must be 0"),
    ("calibration", None, "null must be 0"),
    ("level", 1.0, "1.0 must be at least 0.5 and below 1"),
    ("level", 95, "95 must be at least 0.5"),
    ("level", "95%", "95% must be at least 0.5"),
    ("power", 0.3, "0.3 must be at least 0.5"),
    ("delta", 0, "0 must be a number above 0"),
    ("delta", "1e-3", "1e-3 must be a number above 0"),
    ("delta", -0.5, "-0.5 must be a number above 0"),
    ("delta", None, "must be a number above 0"),
    ("laws", None, "must be a list"),
    ("targets", 3, "must be a list"),
    ("target_loss", -2.0, "-2.0 must be a number above 0"),
    ("flops_per_second", float("nan"), "nan must be a number above 0"),
    ("price_per_hour", 0.0, "0.0 must be a number above 0"),
    ("predict", [2, -1], "must be multiples of the largest N, above 0"),
    ("predict", "10", "must be multiples of the largest N, above 0"),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_a_wrong_value_is_one_sentence_that_names_its_key(key: str, value: Any, words: str) -> None:
    said = sentence({key: value})
    assert said.startswith(f"analysis.{key}")
    assert words in said


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    near = {"bootstrp": "bootstrap", "target_los": "target_loss", "targt": "target", "pric_per_hour": "price_per_hour"}
    for key, name in near.items():
        assert sentence({key: 1}) == f"analysis.{key} is not a setting; did you mean {name}?"
    assert sentence({"zzz": 1}) == "analysis.zzz is not a setting"


def test_lists_may_be_a_name_or_all() -> None:
    assert Settings.from_dict({"laws": "all"}).laws == tuple(LAWS)
    assert Settings.from_dict({"laws": "power", "predict": 3}) == Settings(laws=("power",), predict=(3,))
    assert Settings.from_dict({}) == Settings()


@given(value=st.one_of(st.floats(), st.integers(-(2**63), 2**63), st.text(max_size=5), st.none(), st.booleans()))
def test_whatever_the_level_is_it_is_refused_or_a_coverage(value: Any) -> None:
    try:
        level = Settings(level=value).level
    except ValueError as error:
        assert "analysis.level" in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert 0.5 <= level < 1


def test_a_speed_may_be_a_large_whole_number() -> None:
    assert Settings(flops_per_second=10**20).flops_per_second == 10**20


def test_the_other_loss_is_the_one_that_is_not_asked_for() -> None:
    squares, huber = Settings(), Settings(loss="huber", delta=0.02)
    assert squares.fit_loss.delta == huber.other_loss.delta == np.inf
    assert squares.other_loss.delta == 1e-3
    assert huber.fit_loss.delta == 0.02


def test_the_config_file_holds_the_defaults_of_the_library() -> None:
    assert Settings.from_dict(choice("analysis", "full")) == Settings()
