"""A column of the user's own as the target: what is refused in one sentence, and what its kind means."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from slm.scaling import Settings, analyse, table_from_frame
from slm.scaling.targets import with_target
from tests.seeds import generator

QUICK: dict[str, Any] = {"laws": ("power", "power_floor"), "bootstrap": 0, "calibration": 0}
ACCURACY: dict[str, Any] = {"target": "acc", "target_kind": "accuracy", "chance": 0.25}


def frame(sizes: int = 7) -> pd.DataFrame:
    """Two families of tasks; `acc` is a sigmoid in log N, between 0.25 and 1."""
    N = np.geomspace(1e7, 1e9, sizes)
    families = []
    for index, family in enumerate(("a", "b")):
        accuracy = 0.25 + 0.75 / (1 + np.exp(9 - 0.1 * index - 0.48 * np.log(N)))
        scatter = np.exp(0.01 * generator(index).standard_normal(sizes))
        columns = {"params_total": N, "tokens": 1e10, "acc": 1 - (1 - accuracy) * scatter}
        families.append(pd.DataFrame({"family": family, **columns}))
    whole = pd.concat(families, ignore_index=True)
    return whole.assign(loss=5 - whole["acc"], err=1 - whole["acc"], bits=2 - whole["acc"])


def sentence(settings: dict[str, Any], **columns: Any) -> str:
    with pytest.raises(ValueError, match=r"^analysis\.") as caught:
        with_target(table_from_frame(frame().assign(**columns)), Settings(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_settings_that_contradict_each_other_are_refused() -> None:
    wrong = {
        "target=acc needs analysis.target_kind, which must be loss or error": {"target": "acc"},
        "target_kind=error needs a column of your own": {"target": "loss", "target_kind": "error"},
        "target_kind=loss needs a column of your own": {"target_kind": "loss"},
        "needs analysis.chance, the accuracy of guessing": {"target": "acc", "target_kind": "accuracy"},
        "analysis.chance needs analysis.target_kind=accuracy": {"target": "x", "target_kind": "error", "chance": 0.5},
        "analysis.task_loss needs analysis.target_kind=accuracy": {"task_loss": "bits"},
        "task_loss=acc is the target itself": {**ACCURACY, "task_loss": "acc"},
        "law=power must be one of auto, logistic_power": {**ACCURACY, "law": "power"},
        "law=logistic_power must be one of auto, power": {"law": "logistic_power"},
    }
    for words, settings in wrong.items():
        with pytest.raises(ValueError, match=r"^analysis\.") as caught:
            Settings(**settings)
        assert words in str(caught.value)


def test_values_that_contradict_the_kind_are_refused() -> None:
    acc = frame()["acc"]
    assert "in percent: write fractions, such as 0.8" in sentence(ACCURACY, acc=acc * 100)
    assert "has the value -0.1000: an accuracy must be at least 0" in sentence(ACCURACY, acc=[-0.1, *acc[1:]])
    assert "has the value 1.000: an accuracy must be" in sentence(ACCURACY, acc=[1.0, *acc[1:]])
    assert "never above analysis.chance=0.95" in sentence({**ACCURACY, "chance": 0.95})
    assert "value of a row of a with params_total=1.000×10⁷ is empty" in sentence(ACCURACY, acc=[None, *acc[1:]])
    assert "is 'high'" in sentence(ACCURACY, acc=["high", *acc[1:]])
    error = {"target": "err", "target_kind": "error"}
    assert "an error must be above 0 and at most 1" in sentence(error, err=[0, *acc[1:]])
    assert "bits per byte must be above 0 and at most 16" in sentence(
        {"target": "bits", "target_kind": "bits_per_byte"}, bits=[17, *acc[1:]]
    )
    assert "target=ac is not a column" in sentence({**ACCURACY, "target": "ac"})
    assert "did you mean acc?" in sentence({**ACCURACY, "target": "ac"})
    assert "target=tokens is not a result" in sentence({"target": "tokens", "target_kind": "loss"})
    assert "task_loss=bit is not a column" in sentence({**ACCURACY, "task_loss": "bit"})


def test_a_column_that_goes_the_wrong_way_is_noted_once() -> None:
    table, settings = table_from_frame(frame()), Settings(**{**ACCURACY, "target": "err"})
    once = with_target(table, settings)
    assert with_target(once, settings).notes == once.notes
    assert once.notes[0] == ("Suspicious: err falls with params_total: is analysis.target_kind error and not accuracy?")
    assert with_target(table, Settings(**ACCURACY)).notes == table.notes


def test_a_column_that_falls_with_size_is_analysed_as_if_it_were_the_loss() -> None:
    columns, column, kind = frame(), "err", "error"
    as_loss = table_from_frame(columns[["family", "params_total", "tokens"]].assign(loss=columns[column]))
    own = table_from_frame(columns.rename(columns={column: "mine"})[["family", "params_total", "tokens", "mine"]],
                           target="mine")  # fmt: skip
    expected = analyse(as_loss, Settings(**QUICK, targets=("loss",)), verdict_only=True)
    found = analyse(own, Settings(**QUICK, target="mine", target_kind=kind), verdict_only=True)
    assert [entry["params"] for entry in found.fits] == [entry["params"] for entry in expected.fits]
    assert {(entry["target"], entry["kind"]) for entry in found.fits} == {("mine", kind)}
    said, usual = (a.comparison["verdict"]["headline"] for a in (found, expected))
    assert said == usual.replace("lower loss", "lower mine").replace("the loss", "the mine").replace(
        "its loss", "its mine"
    ).replace("in loss", "in mine")


def test_an_accuracy_needs_no_loss_and_its_laws_are_bounded() -> None:
    table = table_from_frame(frame().drop(columns="loss"), target="acc")
    found = analyse(table, Settings(**QUICK, **ACCURACY), verdict_only=True)
    assert {entry["law"] for entry in found.fits} == {
        f"{link}_{law}" for link in ("logistic", "exponential") for law in QUICK["laws"]
    }
    assert {(e["target"], e["kind"], e["chance"]) for e in found.fits} == {("error of acc", "accuracy", 0.25)}
    for entry in found.fits:
        low, high = entry["ci95"]["alpha"]
        if entry["law"] == "logistic_power" and entry["loss"] == "least_squares":
            assert low < 0.48 < high
        if entry["law"] == "logistic_power_floor" and entry["floor_value"] is not None:
            E = entry["params"]["E"]
            assert entry["floor_value"] == pytest.approx(0.75 * E / (1 + E))
    assert "lower error of acc" in found.comparison["verdict"]["headline"]
    assert all(pair["above_floor"] is None for pair in found.comparison["paired"]["pairs"])
