import gzip
import json
import os

import pandas as pd
import pytest

from slm.data import local


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_bytes("\ufeffplain\r\ntext é".encode())
    (tmp_path / "sub" / "a.md").write_text("# mark\n\ndown")
    (tmp_path / "c.jsonl").write_text('{"text": "one", "body": "uno"}\n\n{"text": "two", "body": "dos"}\n')
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "zipped", "body": "x"}))
    pd.DataFrame({"text": ["p", "q"], "body": ["r", "s"]}).to_parquet(tmp_path / "e.parquet")
    return tmp_path


def texts(data):
    return [text for text, _ in local.documents(data)]


def test_files_of_all_kinds_are_read_in_the_order_of_their_names(folder, config):
    everything = ["plain\ntext é", "one", "two", "zipped", "p", "q", "# mark\n\ndown"]
    assert texts(config("data", "local", paths="**/*.*")) == everything
    assert texts(config("data", "local", paths=["sub/*.md", "*.txt", "[cde].*"])) == everything


def test_the_text_column_is_configurable(folder, config):
    assert texts(config("data", "local", paths="[ce].*", text_column="body")) == ["uno", "dos", "r", "s"]


def test_validation_files_are_the_validation_split(folder, config):
    documents = local.documents(config("data", "local", paths="b.txt", val_paths="sub/*"))
    assert list(documents) == [
        ("# mark\n\ndown", "val"),
        ("plain\ntext é", "train"),
    ]


def test_the_key_follows_contents_and_options(folder, config):
    data = config("data", "local", paths="*.txt")
    key = local.key(data)
    assert local.key(data) == key
    assert local.key({**data, "max_document_bytes": None}) != key
    os.utime("b.txt", ns=(1, 1))
    assert local.key(data) != key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paths": "no/*.txt"}, r"^data\.paths='no/\*\.txt' matches no file in "),
        ({"paths": ["b.txt", "nothing.md"]}, r"^data\.paths='nothing\.md' matches no file"),
        ({"paths": "???"}, r"^data\.paths is not set; give"),
        ({"paths": []}, r"^data\.paths is not set; give"),
        ({"paths": "b.txt", "val_paths": "x.txt"}, r"^data\.val_paths='x\.txt' matches no file"),
        (
            {"paths": "table.csv"},
            r"^data\.paths: table\.csv is of an unknown kind; its name must end in one of \.txt, ",
        ),
        ({"paths": "b.txt", "max_document_bytes": 3}, r"^data\.max_document_bytes=3 must be at least 256"),
    ],
)
def test_options_that_cannot_work_are_refused_before_work(folder, config, changes, message):
    (folder / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match=message):
        local.key(config("data", "local", **changes))
