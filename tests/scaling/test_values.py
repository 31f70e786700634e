"""Columns that are computed of others: arithmetic of columns and numbers, and nothing else."""

import math

import pandas as pd
import pytest

from slm.scaling.tables import table_from_frame

ROWS = pd.DataFrame({"params": [3e7, 1e8], "vocab": ["32000", "32_000"], "width": [256, 512], "val loss": [3.5, 3.0]})


def test_a_size_is_computed_as_it_says() -> None:
    rows = ROWS.assign(bits=[5.0, 4.5])
    table = table_from_frame(rows, columns={"N": "params - vocab*width", "loss": "bits * log(2)"})
    assert list(table.frame["N"]) == [3e7 - 32000 * 256, 1e8 - 32000 * 512]
    assert list(table.frame["loss"]) == pytest.approx([5 * math.log(2), 4.5 * math.log(2)], rel=1e-15)
    assert "The column N was computed as params - vocab*width." in table.notes


def test_powers_signs_and_names_in_backticks() -> None:
    table = table_from_frame(ROWS, columns={"N": "-(-params)**1.0/2 + 1", "loss": "sqrt(`val loss`**2)"})
    assert list(table.frame["N"]) == [3e7 / 2 + 1, 1e8 / 2 + 1]
    assert list(table.frame["loss"]) == [3.5, 3.0]


def test_a_column_whose_name_is_an_expression_is_that_column() -> None:
    rows = ROWS.assign(**{"val-loss": [3.1, 2.9], "val": 1.0, "loss": 9.0})
    assert list(table_from_frame(rows, columns={"N": "params", "loss": "val-loss"}).frame["loss"]) == [3.1, 2.9]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("__import__('os').system('true')", "not arithmetic of columns"),
        ("params.__class__", "not arithmetic of columns"),
        ("params if vocab else 1", "not arithmetic of columns"),
        ("params and vocab", "not arithmetic of columns"),
        ("[params][0]", "not arithmetic of columns"),
        ("True*params", "it has True"),
        ("'a'*params", "it has 'a'"),
        ("log(params, 2)", "not arithmetic of columns"),
        ("max(params)", "not arithmetic of columns"),
        ("params -", "it cannot be read"),
        ("params*" * 60 + "1", "more than 200 characters"),
        ("2*3", "it names no column"),
        ("params*depth", "no column depth to compute it with"),
        ("9**9**9**9*params", "inf must be a finite number above 0"),
        ("params/0", "inf must be a finite number above 0"),
        ("-params", "-30000000 must be a finite number above 0"),
        ("log(-params)", "inf must be a finite number above 0"),
    ],
)
def test_whatever_else_is_given_is_refused_in_one_sentence(expression: str, said: str) -> None:
    with pytest.raises(ValueError, match="table") as caught:
        table_from_frame(ROWS, columns={"N": expression, "loss": "val loss"})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_row_that_holds_no_number_is_refused_unless_a_query_leaves_it_out() -> None:
    rows = ROWS.assign(params=[3e7, "many"])
    columns = {"N": "params*2", "loss": "val loss"}
    assert list(table_from_frame(rows, columns=columns, where="width < 500").frame["N"]) == [6e7]
    with pytest.raises(ValueError, match=r"row 2, column params\*2: many is not a number"):
        table_from_frame(rows, columns=columns)
