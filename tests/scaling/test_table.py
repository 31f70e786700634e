"""A table of runs is read as it was meant, or refused with a sentence that says what to correct."""

import gzip
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.scaling.tables import read_table, table_from_frame
from tests.scaling.samples import SHARED
from tests.seeds import generator

HEAD = "family,N,tokens,loss"
ROWS = ["a,1e7,1e9,3.9", "a,3e7,1e9,3.5", "a,1e8,1e9,3.1"]
FOUR_SIZES = {"N": [124635456, 345355200, 603188352, 1005461760], "tokens": [1e12] * 4}
TEXTS = st.sampled_from(["", "nan", "a", "1e8", "2.5", "-1", "1_000", "completed", "1e999", "0x10"])
LISTS = st.lists(st.integers(), max_size=2)
VALUES = st.one_of(TEXTS, st.floats(), st.integers(-10, 10**20), st.booleans(), st.none(), LISTS)
HEADERS = "family N D C loss ppl bpb status params_total vocab_size run_id x lr State diverged step run seed"


def written(folder: Path, *rows: str, head: str = HEAD, name: str = "runs.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(ValueError, match=r"^\S") as caught:
        read_table(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def frame(**columns: list) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_the_published_table_ships_with_its_figures() -> None:
    table = read_table("mobilellm_published")
    assert table.name == "mobilellm_published"
    assert table.families == ["MobileLLM"]
    assert table.sizes == ["params_total", "params_non_embedding"]
    assert table.targets == ["loss", "perplexity"]
    assert list(table.frame["params_total"]) == [124_635_456, 345_355_200, 603_188_352, 1_005_461_760]
    assert list(table.frame["params_non_embedding"]) == [106_203_456, 314_635_200, 566_324_352, 964_501_760]
    assert list(table.frame["loss"]) == [math.log(p) for p in (11.961319, 8.976614, 7.984185, 7.171037)]
    assert any("ln(perplexity)" in note for note in table.notes)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz"])
def test_a_table_is_the_same_in_every_format(suffix: str, tmp_path: Path) -> None:
    rows = frame(family=["a", "b"], N=[1e8, 2e8], D=[1e9, 2e9], loss=[3.1, 2.9], note=["x", None])
    path = tmp_path / f"runs{suffix}"
    if suffix == ".parquet":
        rows.to_parquet(path)
    elif "json" in suffix:
        rows.to_json(path, orient="records", lines=".jsonl" in suffix)
    else:
        rows.to_csv(path, index=False, sep="," if ".csv" in suffix else "\t")
    table = read_table(path)
    assert table.name == "runs"
    for name, values in {"N": [1e8, 2e8], "tokens": [1e9, 2e9], "loss": [3.1, 2.9], "family": ["a", "b"]}.items():
        assert list(table.frame[name]) == values
    assert list(table.frame["flops"]) == [6 * 1e8 * 1e9, 6 * 2e8 * 2e9]


def test_a_row_index_that_pandas_wrote_is_no_column(tmp_path: Path) -> None:
    frame(N=[1e8, 2e8], loss=[3.1, 2.9]).to_csv(tmp_path / "runs.csv")
    assert set(read_table(tmp_path / "runs.csv").frame) >= {"N", "loss"}


def test_text_of_several_lines_is_one_field(tmp_path: Path) -> None:
    path = written(tmp_path, 'a,1e7,1e9,3.9,"one\ntwo"', "a,3e7,1e9,-1,x", head=HEAD + ",remark")
    assert "row 2, column loss" in refusal(path)
    assert read_table(path, where="loss > 0").frame["remark"].item() == "one\ntwo"


def test_own_names_of_columns_are_translated(tmp_path: Path) -> None:
    path = written(tmp_path, "a,1e8,1e9,3.1,4", head="model,size,D,val_loss,loss")
    table = read_table(path, columns={"family": "model", "params_total": "size", "loss": "val_loss"})
    row = table.frame.iloc[0]
    assert (row["family"], row["params_total"], row["tokens"], row["loss"]) == ("a", 1e8, 1e9, 3.1)
    assert row["table_loss"] == 4
    assert any("own column loss is table_loss here" in note for note in table.notes)


def test_an_own_name_that_is_not_there_lists_what_is(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, *ROWS), columns={"loss": "val_loss"})
    assert "no column val_loss" in said
    assert "family, N, tokens, loss" in said


def test_a_table_without_families_or_tokens_says_so() -> None:
    table = table_from_frame(frame(params_total=[1e7, 1e8], loss=[4.0, 3.0]))
    assert table.families == ["all"]
    assert "flops" not in table.frame
    assert any("no column family" in note for note in table.notes)
    assert any("training budget of its runs is unknown" in note for note in table.notes)


def test_only_the_rows_of_the_query_are_kept_and_checked(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS, "b,oops,1e9,-3")
    table = read_table(path, where='family == "a" and tokens > 1')
    assert len(table.frame) == 3
    assert "3 of 4 rows were kept: those where" in table.notes[0]


@pytest.mark.parametrize("where", ["tokens >", "nothing > 3", "tokens > 1e99", "tokens + 1", "family = 'a'"])
def test_a_query_that_fails_or_leaves_nothing_is_refused(where: str, tmp_path: Path) -> None:
    assert f"where={where}" in refusal(written(tmp_path, *ROWS), where=where)


def test_the_worst_rows_are_left_out_by_their_numbers_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "b,1e8,1e9,3", "a,1e7,1e9,5", *ROWS[1:])
    table = read_table(path, where='family == "a"', drop_worst=1)
    assert list(table.frame["loss"]) == [3.5, 3.1]
    assert "2 (5)" in table.notes[-1]
    assert list(table.frame["cluster"]) == ["row3", "row4"]
    assert "drop_worst=4" in refusal(path, drop_worst=4)


def test_runs_that_did_not_complete_are_left_out_before_their_numbers_are_looked_at(tmp_path: Path) -> None:
    rows = [f"{row},completed" for row in ROWS]
    path = written(tmp_path, rows[0], "a,2e7,1e9,,diverged", *rows[1:], "a,,,,interrupted", head=HEAD + ",status")
    table = read_table(path)
    assert len(table.frame) == 3
    said = "2 rows were left out because the run did not complete: 1 diverged (row 2), 1 interrupted (row 5)."
    assert table.notes[0] == said


def test_exact_duplicates_count_once_and_repeated_results_are_suspicious(tmp_path: Path) -> None:
    rows = ["a,1e7,1e9,3.9,1", "a,1e7,1e9,3.9,1", "a,1e7,1e9,3.9,2", "a,1e7,1e9,3.91,3"]
    table = read_table(written(tmp_path, *rows, head=HEAD + ",seed"))
    assert list(table.frame["seed"]) == [1, 2, 3]
    assert any("exact duplicates" in note and note.endswith(": 2.") for note in table.notes)
    assert any("Suspicious: rows 1, 3" in note for note in table.notes)


def test_seeds_share_a_cell_and_checkpoints_of_a_run_a_cluster() -> None:
    rows = frame(family=[*"aaab"], N=[1e7] * 4, tokens=[1e9, 1e9, 2e9, 1e9], loss=[3.9, 3.91, 3.8, 3.7])
    rows = rows.assign(seed=[1, 2, 1, 1], run_id=["r1", "r2", "r1", "r4"], tokens_per_second=[10, 11, 12, 13])
    table = table_from_frame(rows)
    cells = list(table.frame["cell"])
    assert cells[0] == cells[1]
    assert len(set(cells)) == 3
    assert list(table.frame["cluster"]) == ["r1", "r2", "r1", "r4"]
    assert list(table.family("b").frame["cluster"]) == ["r4"]


def test_a_missing_column_is_answered_with_the_headers_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "a,1e8,3.1", head="Family,Params Total,Val Loss")
    assert refusal(path).endswith("as in columns.loss=NAME; it has Family, Params Total, Val Loss")


def test_a_size_that_is_empty_throughout_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    path = written(tmp_path, "1e6,,3.99", "2e6,,3.98", "4e6,,3.96", head="params_total,params_non_embedding,loss")
    assert read_table(path).sizes == ["params_total"]


def test_a_size_with_gaps_is_carried_but_not_offered() -> None:
    table = table_from_frame(frame(params_total=[1e7, 1e8], params_non_embedding=[8e6, None], loss=[4.0, 3.0]))
    assert table.sizes == ["params_total"]
    assert "N" not in table_from_frame(frame(params_total=[1e7], N=[9e6], loss=[4.0])).frame


BAD_ROWS = {
    "no number": (
        "a,big,1e9,3.1",
        ["row 4", "column N", "big", "not a number: write it as in 124635456, 1.2e8 or 125M"],
    ),
    "suffix of a loss": ("a,1e8,1e9,3M", ["row 4", "column loss", "3M", "not a number: write it as in 3.25"]),
    "unit": ("a,1e8,10BT,3.1", ["row 4", "column tokens", "10BT", "not a number"]),
    "wrong groups": ('a,"12,50,000",1e9,3.1', ["row 4", "column N", "12,50,000", "not a number"]),
    "comma": ('a,1e8,1e9,"3,125"', ["row 4", "column loss", "3,125 may be 3125 or 3.125: write the numbers"]),
    "missing loss": ("a,1e8,1e9,", ["row 4", "column loss", "the cell is empty"]),
    "NaN loss": ("a,1e8,1e9,nan", ["row 4", "column loss"]),
    "infinite loss": ("a,1e8,1e9,inf", ["row 4", "column loss", "inf"]),
    "negative loss": ("a,1e8,1e9,-3.1", ["row 4", "column loss", "-3.1", "above 0"]),
    "no size": ("a,,1e9,3.1", ["row 4", "column N"]),
    "size of zero": ("a,0,1e9,3.1", ["row 4", "column N", "0"]),
    "no tokens": ("a,1e8,,3.1", ["row 4", "column tokens"]),
    "negative tokens": ("a,1e8,-1,3.1", ["row 4", "column tokens", "-1"]),
    "no family": (",1e8,1e9,3.1", ["row 4", "column family: the cell is empty"]),
    "a family called none": ("None,1e8,1e9,3.1", ["row 4", "column family: None counts as an empty cell"]),
    "ragged": ("a,1e8,1e9", ["row 4", "3 fields"]),
    "a perplexity": ("a,2e8,1e9,12", ["row 4", "column loss", "12", "perplexity"]),
    "a low perplexity": ("a,2e8,1e9,22.2", ["row 4", "column loss", "22.2", "perplexity"]),
    "size in millions": ("a,125,1e9,3.1", ["row 4", "column N", "125", "1.2e8"]),
    "size in thousands of others": ("a,12500.0,1e9,3.1", ["row 4", "column N", "12500", "other units"]),
    "tokens in billions": ("a,1e8,10,3.1", ["row 4", "column tokens", "10", "other units"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_file_row_column_and_value(case: str, tmp_path: Path) -> None:
    row, named = BAD_ROWS[case]
    said = refusal(written(tmp_path, *ROWS, row))
    assert all(text in said for text in [str(tmp_path / "runs.csv"), *named]), said


def test_rows_keep_their_number_and_columns_their_own_name_in_messages(tmp_path: Path) -> None:
    path = written(tmp_path, "b,1e8,1e9,3", *ROWS, "a,1e8,1e9,-1", head="family,N,D,val_loss")
    said = refusal(path, columns={"loss": "val_loss"}, where='family == "a"')
    assert "row 5, column val_loss: -1" in said


def test_a_loss_above_that_of_guessing_is_refused_and_that_of_fresh_weights_is_not() -> None:
    rows = frame(N=[1e8, 2e8], tokens=[1e9, 1e9], loss=[5.6, 5.4], vocab_size=[260, 260])
    assert len(table_from_frame(rows).frame) == 2  # ln 260 = 5.56
    with pytest.raises(ValueError, match=r"uniform guess has ln 260 = 5\.56"):
        table_from_frame(rows.assign(loss=[6.5, 5.4]))


def test_loss_and_perplexity_of_different_evaluations_are_refused() -> None:
    rows = frame(N=[1e8, 2e8], loss=[3.0, 2.9], perplexity=[20.09, 19.5])
    with pytest.raises(ValueError, match=r"row 2, column loss: 2\.9 is not the logarithm of its perplexity 19\.5"):
        table_from_frame(rows)
    assert len(table_from_frame(rows.assign(perplexity=[20.09, 18.6])).frame) == 2  # e^2.9 = 18.17, written as 2.9


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"params_total": [1e8], "params_non_embedding": [2e8], "loss": [3.0]}, "more than params_total=100000000"),
        ({"N": [1e8], "perplexity": [0.9]}, "a perplexity is above 1"),
        ({"N": [125, 350], "loss": [3.0, 2.9]}, "row 1, column N: 125 is too small for N, as are all others"),
        ({"N": [1005, 7000], "loss": [3.0, 2.9]}, "too small for N"),
        ({"N": [125, 70000], "loss": [3.0, 2.9]}, "row 1, column N: 125 is in other units"),
        ({"N": [1e8, 2e8], "tokens": [10, 20], "loss": [3.0, 2.9]}, "too small for tokens"),
        ({"loss": [3.0]}, "no column of the size"),
        ({"N": [1e8], "val_loss": [3.0]}, "no column of the result"),
        ({"N": [], "loss": []}, "no rows"),
        ({"N": [True], "loss": [3.0]}, "not a number"),
        ({"N": [1e8], "loss": [3.0], "status": ["diverged"]}, "no row whose status is completed"),
        (FOUR_SIZES | {"loss": [11.941, 2.19, 2.08, 1.97]}, "row 1, column loss.*perplexity"),
        (FOUR_SIZES | {"loss": [2.48, 8.935, 2.08, 1.97]}, "row 2, column loss.*perplexity"),
        (FOUR_SIZES | {"loss": [2.48, 2.19, 8.004, 1.97]}, "row 3, column loss.*perplexity"),
        (FOUR_SIZES | {"loss": [2.48, 2.19, 2.08, 7.171]}, "row 4, column loss.*perplexity"),
        (FOUR_SIZES | {"loss": [10.9, 2.19, 7.98, 7.17]}, r"row 2, column loss: 2\.19 is a loss among"),
    ],
)
def test_tables_that_cannot_be_are_refused(columns: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        table_from_frame(pd.DataFrame(columns))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("runs.csv", b"", "is empty"),
        ("runs.csv", b"family;N;loss\n1\n", "separate columns by commas, semicolons or tabs"),
        ("runs.csv", b"family;N;loss\na;1e8\n", "has one column"),
        ("runs.csv", b"N,loss,loss\n1e8,3,3\n", "column loss 2 times"),
        ("runs.csv", b"\xff\xfe\x00\x01", "not UTF-8"),
        ("runs.json", b"{", "not JSON"),
        ("runs.json", b'{"N": [1]}', "list of rows"),
        ("runs.jsonl", b'{"N": 1}\n{', "line 2"),
        ("runs.parquet", b"no", "Parquet"),
        ("runs.xlsx", b"", ".parquet"),
        ("cut.csv.gz", gzip.compress(HEAD.encode() * 100, mtime=0)[:30], "cut.csv.gz is truncated or not a gzip file"),
        ("run.csv", None, "run.csv does not exist"),
        ("zzz", None, "mobilellm_published"),
        (".", None, "is a directory"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


WRITTEN = {  # header and rows -> N, tokens and loss; None: refused
    "European": (";", ["1.000.000;300.000;3,251", "2.000.000;1.300.000;3,1"], [[1e6, 2e6], [3e5, 1.3e6], [3.251, 3.1]]),
    "three decimals": (";", ["1000000;300000;3,251", "2000000;300000;3,111"], [[1e6, 2e6], [3e5] * 2, [3.251, 3.111]]),
    "points": (";", ["1e6;300,000;3.25", "2e6;1,300,000;3.111"], [[1e6, 2e6], [3e5, 1.3e6], [3.25, 3.111]]),
    "suffixes": (",", ["125M,1.5B,3.25", "300 m,0.3T,3.1"], [[125e6, 3e8], [1.5e9, 3e11], [3.25, 3.1]]),
    "comma suffixes": ("\t", ["125M\t1,5B\t3,25", "1,1b\t2,25B\t3,1"], [[125e6, 1.1e9], [1.5e9, 2.25e9], [3.25, 3.1]]),
    "spaces": (
        "|",
        ["1 234 567|3\u202f000\u202f000|3.25", "2'000'000|3e6|3.1"],
        [[1234567, 2e6], [3e6] * 2, [3.25, 3.1]],
    ),
    "American": (",", ['"1,000,000","300,000",3.251', "2e6,3e5,3.1"], [[1e6, 2e6], [3e5] * 2, [3.251, 3.1]]),
    "decimals of a count": (";", ["1000000;300.000;3,251", "2000000;300.000;3,111"], None),
    "comma in a column of points": (",", ['1e6,3e5,"3,251"', "2e6,3e5,3.1"], None),
    "point in a column of commas": (";", ["1000000;3e5;3,25", "2000000;3e5;3.111"], None),
    "comma between a count's commas": ("\t", ["1,5e6\t3e5\t3,25", "2,125\t3e5\t3,1"], None),
    "suffix of unknown mark": ("\t", ["1,125M\t3e5\t3", "2e6\t3e5\t2"], None),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_numbers_are_read_as_people_write_them_or_refused(case: str, tmp_path: Path) -> None:
    mark, lines, values = WRITTEN[case]
    path = written(tmp_path, *lines, head=mark.join(("N", "tokens", "loss")))
    if values is None:
        assert re.search(r"row [12], column \w+: \S+ may be [\d.]+ or [\d.]+: write the numbers", refusal(path))
        return
    table = read_table(path)
    np.testing.assert_allclose(table.frame[["N", "tokens", "loss"]].to_numpy().T, values)
    assert sum("were converted in the columns" in note for note in table.notes) == 1
    assert sum("are separated by" in note for note in table.notes) == (mark != ",")


def test_only_columns_of_numbers_are_rewritten(tmp_path: Path) -> None:
    lines = ["125M;125M;2,5B;3,25;0,45;64,4;2.13.0", "300M;300M;2,5B;3,1;0,5;128,8;2.13.0"]
    head = "run_id;size;tokens;loss;acc;shape;torch"
    frame = read_table(written(tmp_path, *lines, head=head), columns={"N": "size/2"}, target="acc").frame
    assert frame["run_id"].tolist() == ["125M", "300M"]
    assert frame["N"].tolist() == [62.5e6, 150e6]
    assert frame["acc"].tolist() == [0.45, 0.5]
    assert frame["torch"].tolist() == ["2.13.0"] * 2
    mixed = read_table(
        written(tmp_path, "1e8;2000000000.0;3,25;49,9;1,5", "2e8;4e9;3,1;51,2;x", head="N;D;loss;acc;y")
    ).frame
    assert mixed[["acc", "y"]].to_numpy().tolist() == [[49.9, "1,5"], [51.2, "x"]]
    names = read_table(written(tmp_path, "125M,125M,3.25", "300M,300M,3.1", head="model,N,loss")).frame["model"]
    assert names.tolist() == ["125M", "300M"]


def test_the_line_by_which_a_spreadsheet_names_its_delimiter_is_skipped(tmp_path: Path) -> None:
    frame = read_table(
        written(tmp_path, "N;loss, nats", "1e8;3,25", head="sep=;"), columns={"loss": "loss, nats"}
    ).frame
    assert frame[["N", "loss"]].to_numpy().tolist() == [[1e8, 3.25]]


REAL = {
    "early checkpoints": {"N": [1e8] * 5, "tokens": [4e5, 4e6, 4e7, 4e8, 4e9], "loss": [10.9, 7.1, 5.0, 3.9, 3.0]},
    "a first step": {"N": [1e8] * 4, "tokens": [4096, 4e6, 4e8, 4e9], "loss": [10.8, 5.0, 2.7, 2.2]},
    "few checkpoints": {"N": [1e8] * 3, "tokens": [4e6, 4e8, 4e9], "loss": [8.9, 2.6, 2.2]},
    "tiny models": {"N": [2e4, 6e4, 2e5, 7e5, 2e6], "tokens": [1e7] * 5, "loss": [4.0, 3.5, 3.0, 2.6, 2.3]},
    "bytes beside words": {"family": ["b", "w"], "N": [1e8, 1e8], "tokens": [1e9, 1e9], "loss": [0.95, 2.9]},
    "seven decades": {"N": [2e4, 2e5, 2e7, 2e9, 2e11], "tokens": [1e9] * 5, "loss": [6.0, 5.0, 3.5, 2.4, 1.9]},
}


@pytest.mark.parametrize("case", REAL)
def test_real_kinds_of_tables_are_read(case: str) -> None:
    rows = pd.DataFrame(REAL[case])
    assert len(table_from_frame(rows).frame) == len(rows)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the tables of other studies, which are not part of slm")
def test_the_tables_of_other_studies_are_read() -> None:
    assert len(read_table(SHARED / "chinchilla_epoch.csv", drop_worst=5).frame) == 240
    xlstm = read_table(SHARED / "xlstm_isoflop.csv", columns={"loss": "val_loss"})
    assert len(xlstm.frame) == 342
    assert xlstm.families == ["llama", "xlstm"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(HEADERS.split()), VALUES), max_size=4))
def test_whatever_is_given_is_read_or_refused_in_one_sentence(rows: list[dict]) -> None:
    try:
        table = table_from_frame(pd.DataFrame(rows, dtype=object))
    except ValueError as error:
        said = str(error)
    else:
        said = "table"
        numbers = table.frame[[*table.sizes, *table.targets]].to_numpy(float)
        assert (numbers > 0).all()
        assert np.isfinite(numbers).all()
    assert said.startswith("table")
    assert "\n" not in said


def test_headers_that_are_nearly_names_are_those_names_and_noted() -> None:
    columns = {"Family": ["a", "b"], "Params-Total": [1e7, 2e7], " tokens ": [1e9] * 2, "PPL": [50, 40]}
    table = table_from_frame(frame(**columns))
    assert table.families == ["a", "b"]
    assert table.sizes == ["params_total"]
    assert list(table.frame["loss"]) == [math.log(50), math.log(40)]
    assert "The column Family was read as family." in table.notes
    assert "tokens" in table.frame


def test_a_header_that_is_nearly_a_name_stays_a_column_of_its_own_where_that_name_is_there() -> None:
    table = table_from_frame(frame(N=[1e7, 2e7], loss=[4.0, 3.5], Loss=["x", "y"]))
    assert list(table.frame["Loss"]) == ["x", "y"]
    with pytest.raises(ValueError, match="columns Loss and LOSS, both of which mean loss"):
        table_from_frame(frame(N=[1e7, 2e7], Loss=[4.0, 3.5], LOSS=[4.0, 3.5]))


def suspicions(a: list[float], b: list[float]) -> list[str]:
    sizes = [1e7 * (1 + i) for i in range(len(a))]
    table = table_from_frame(frame(family=["a"] * len(a) + ["b"] * len(b), N=sizes * 2, loss=a + b))
    return [note for note in table.notes if note.startswith("Suspicious")]


def test_a_loss_of_many_digits_that_two_families_share_is_suspicious() -> None:
    (said,) = suspicions([3.9123, 3.5, 3.1], [3.9123, 3.5, 3.0])
    assert "2 rows have the loss of a row of another family" in said
    assert "rows 1 and 4 (a and b: 3.9123)" in said
    assert not suspicions([3.912, 3.5, 3.1], [3.912, 3.5, 3.0])


def test_losses_that_many_runs_share_by_chance_are_not_suspicious_and_copies_are() -> None:
    """Of losses from 3 to 3.5, written to 4 or to 8 decimals, three were copied in the last table."""
    losses = generator(1).uniform(3.0, 3.5, (2, 300))
    a, b = np.round(losses, 4).tolist()
    assert set(a) & set(b)
    assert not suspicions(a, b)
    a, b = np.round(losses, 8).tolist()
    assert not suspicions(a, b)
    (said,) = suspicions(a, [*a[:3], *b[3:]])
    assert "6 rows have the loss of a row of another family" in said


def test_a_family_that_is_not_there_lists_those_that_are() -> None:
    table = table_from_frame(frame(family=["a", "b"], N=[1e7, 2e7], loss=[4.0, 3.5]), name="runs")
    with pytest.raises(ValueError, match="runs has no family 'nope': it has a, b"):
        table.family("nope")


def test_lines_above_the_header_that_begin_with_a_hash_are_skipped_and_a_header_is_not(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, HEAD, *ROWS, head='# by me, "today\n\n# loss,of,the,test set'))
    assert any("2 lines were skipped" in note for note in table.notes)
    headed = read_table(written(tmp_path, *ROWS, head="# " + HEAD))
    assert headed.families == ["a"]
    assert list(table.frame["loss"]) == list(headed.frame["loss"]) == [3.9, 3.5, 3.1]


@pytest.mark.parametrize("where", ["shared", "shared == True", "~other", "shared == 'true' or shared == 'TRUE'"])
def test_columns_of_true_and_false_are_booleans_in_a_query(where: str, tmp_path: Path) -> None:
    rows = ["a,1e7,3.9,true,false", "a,3e7,3.5,False,True", "a,1e8,3.1,TRUE,FALSE"]
    table = read_table(written(tmp_path, *rows, head="family,N,loss,shared,other"), where=where)
    assert list(table.frame["N"]) == [1e7, 1e8]


@pytest.mark.parametrize("header", ["status", "State", "state", "Status"])
@pytest.mark.parametrize("word", ["completed", "finished", "COMPLETED", "done", "success", "ok"])
def test_words_for_a_complete_run_count_and_all_others_are_named(header: str, word: str, tmp_path: Path) -> None:
    states = [word, "crashed", word, "OUT_OF_MEMORY", "crashed", word]
    rows = [f"run{i},{state},a,{1 + i}e7,{4 - i / 10}" for i, state in enumerate(states)]
    table = read_table(written(tmp_path, *rows, head=f"Name,{header},family,N,loss"))
    assert list(table.frame["name"]) == ["run0", "run2", "run5"]
    assert any("2 crashed (rows 2, 5), 1 out_of_memory (row 4)" in note for note in table.notes)


def test_a_column_state_of_other_things_is_no_status() -> None:
    table = table_from_frame(frame(N=[1e7, 3e7], state=[16, 64], loss=[3.9, 3.5]))
    assert list(table.frame["state"]) == [16, 64]
    assert "status" not in table.frame


def test_a_family_is_kept_beside_the_column_that_is_compared() -> None:
    rows = frame(family=["x", "y", "x"], arch=["a", "a", "b"], N=[1e7, 3e7, 1e7], loss=[3.9, 3.5, 3.8])
    table = table_from_frame(rows, columns={"family": "arch"}, where='table_family == "x"')
    assert list(table.frame["family"]) == ["a", "b"]
    assert list(table.frame["table_family"]) == ["x", "x"]


def test_lists_in_notes_and_refusals_are_cut() -> None:
    many = pd.DataFrame({"N": np.geomspace(1e6, 1e9, 500), "loss": np.linspace(4, 2, 500), "status": "completed"})
    many.loc[100:, "status"] = "crashed"
    table = table_from_frame(many)
    assert max(map(len, table.notes)) < 300
    assert any("400 crashed (rows 101, 102, 103, 104, 105, 106 and 394 more)" in note for note in table.notes)
    wide = pd.DataFrame({f"column_{i}": [1] for i in range(200)} | {"N": ["x" * 14_000], "loss": [3.0]})
    for options in ({}, {"where": "nope > 1"}, {"columns": {"loss": "nope"}}):
        with pytest.raises(ValueError, match="table") as caught:
            table_from_frame(wide, **options)
        assert len(str(caught.value)) < 300
