"""A device's table: what is read, which runs its rows belong to, and what is refused in one sentence."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from slm.scaling import table_from_frame
from slm.scaling.device import Device, match, measures_only_depth, median_error, read_device
from slm.scaling.published import published_rows
from slm.scaling.ship import check_limits, read_shipping
from tests.seeds import generator

RUNS = pd.DataFrame(
    {"family": ["a", "a", "b"], "width": [64, 128, 64], "depth": [4, 8, 2], "params_total": [1e5, 1e6, 1.2e5],
     "tokens": 1e8, "loss": [4.0, 3.0, 3.9]}
)  # fmt: skip


def device(tmp_path: Path, text: str) -> Device:
    (tmp_path / "phone.csv").write_text(text)
    return read_device(str(tmp_path / "phone.csv"))


def test_units_and_other_names_are_read_and_rows_of_one_shape_are_merged(tmp_path: Path) -> None:
    found = device(tmp_path, "Family,width,Depth,tok/s,peak memory MB\na,64,4,40,2\na,64,4,10,2\na,128,8,5,8\n").frame
    assert found["decode_tokens_per_second"].tolist() == pytest.approx([20, 5])  # geometric mean
    assert found["peak_memory_bytes"].tolist() == pytest.approx([2e6, 8e6])
    pooled = np.log(40 / 10) / np.sqrt(2)  # standard deviation of the two logs, from one degree of freedom
    errors = found["error of decode_tokens_per_second"]
    assert errors.tolist() == pytest.approx([pooled / np.sqrt(2), pooled])


def test_a_shape_without_one_of_the_measures_has_no_error_of_it(tmp_path: Path) -> None:
    text = "width,depth,tok/s,peak memory MB\n64,4,40,2\n64,4,10,2\n128,8,,8\n128,8,,9\n"
    found = device(tmp_path, text)
    errors = found.frame["error of decode_tokens_per_second"]
    assert errors.tolist() == pytest.approx([np.log(4) / 2, np.nan], nan_ok=True)
    assert [note for note in found.notes if "%" in note] == [
        "Speeds of one shape scatter: their standard error is up to 69%. Measure on an idle device."
    ]


def test_a_european_table_is_read_and_misspelt_columns_are_named(tmp_path: Path) -> None:
    found = device(
        tmp_path, "params_total;model bytes;tok/s;wdth;battery\n125M;1.048.576;38,5;64;9\n2B;2.000;7,25;64;9\n"
    )
    assert found.frame["params_total"].tolist() == [125e6, 2e9]
    assert found.frame["model_bytes"].tolist() == pytest.approx([1048576, 2000])
    assert found.frame["decode_tokens_per_second"].tolist() == pytest.approx([38.5, 7.25])
    notes = " ".join(found.notes)
    assert "Nothing reads the column wdth of" in notes
    assert "did you mean width?" in notes
    assert "Nothing reads the column battery of" in notes


def test_an_own_name_wins_over_an_alias(tmp_path: Path) -> None:
    found = device(tmp_path, "tokens_per_second,decode_tokens_per_second,params_total\n7,9,1e5\n")
    assert found.frame["decode_tokens_per_second"].tolist() == pytest.approx([9])


def test_rounded_weights_are_left_out_and_mixed_conditions_are_said(tmp_path: Path) -> None:
    text = "width,depth,tok/s,quantize,device_name,cache\n64,4,5,,x,true\n64,4,9,int4,x,true\n128,8,2,,y,false\n"
    found = device(tmp_path, text)
    assert found.frame["decode_tokens_per_second"].tolist() == pytest.approx([5, 2])
    notes = " ".join(found.notes)
    assert "rounded weights are left out" in notes
    assert "several conditions (device_name and cache)" in notes
    assert "without a KV cache" in notes


def test_the_error_of_a_median_follows_from_the_range() -> None:
    """Against 20,000 simulated medians of five."""
    logs = 0.05 * generator().standard_normal((20_000, 5))
    estimated = np.mean([median_error(low, high, 5) for low, high in np.exp([logs.min(1), logs.max(1)]).T])
    assert estimated == pytest.approx(np.median(logs, axis=1).std(), rel=0.15)


def test_rows_belong_to_runs_by_family_and_shape_or_by_size(tmp_path: Path) -> None:
    table = table_from_frame(RUNS)
    by_shape = match(
        device(tmp_path, "family,width,depth,tok/s\na,128,8,5\nb,64,2,9\nc,1,1,3\n"), table, "params_total"
    )
    assert by_shape.frame["N"].tolist()[:2] == [1e6, 1.2e5]
    assert "1 measured shape" in by_shape.notes[-1]
    by_size = match(device(tmp_path, "params_total,tok/s\n1.2e5,5\n"), table, "params_total").frame
    assert by_size[["family", "width", "depth"]].to_numpy().tolist() == [["b", 64, 2]]


def test_a_row_without_a_family_that_several_families_have_is_refused(tmp_path: Path) -> None:
    table = table_from_frame(RUNS.assign(width=64, depth=4).drop_duplicates("family"))
    with pytest.raises(ValueError, match=r"a and b have the same shape\): add the column family"):
        match(device(tmp_path, "width,depth,tok/s\n64,4,5\n"), table, "params_total")


def test_speed_that_only_measures_depth_is_recognised() -> None:
    published = table_from_frame(pd.DataFrame(published_rows()))
    found = match(read_device("mobilellm_published"), published, "params_total")
    assert "694 to 719" in str(measures_only_depth(found))
    found.frame["decode_tokens_per_second"] = 1e10 / found.frame["N"]
    assert measures_only_depth(found) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("family,width,depth\na,64,4\n", "has no measurement: give it one or more of model_bytes"),
        ("family,tok/s\na,4\n", "does not say which shapes were measured: give it width and depth"),
        ("width,depth,tok/s\n64,4,-3\n", "row 1, column tok/s: -3 must be a number above 0"),
        ("width,depth,tok/s\n64,4,fast\n", "row 1, column tok/s: fast must be a number above 0"),
        ('width,depth,tok/s\n64,4,"38,567"\n', "row 1, column tok/s: 38,567 may be 38567 or 38.567"),
        ("width,depth,tok/s\n", "has no rows"),
        ("width,depth,tok/s\n64,4,\n", "has no measurement"),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^device=.*phone\.csv") as refusal:
        device(tmp_path, text)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_no_common_shape_and_a_limit_without_its_column_are_refused(tmp_path: Path) -> None:
    device(tmp_path, "family,width,depth,tok/s\na,999,9,5\n")
    with pytest.raises(ValueError, match="has none of the shapes of the runs"):
        read_shipping(str(tmp_path / "phone.csv"), {}, table_from_frame(RUNS))
    with pytest.raises(ValueError, match=r"ship\.joules=2 needs the column joules_per_token; device=phone has"):
        check_limits({"joules": 2.0, "bytes": None}, ["decode_tokens_per_second"], "device=phone")
