import gzip
import json
import os

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.data import local
from slm.data.local import pieces

TEXT = st.lists(st.sampled_from(["a", "é", "語", "🙂", " ", "\n", "\n\n"]), max_size=800).map("".join)


@given(text=TEXT, limit=st.integers(8, 300), block=st.integers(1, 97))
def test_pieces_add_up_to_the_text_and_keep_to_the_limit(text, limit, block):
    data = text.encode()
    cut = list(pieces((data[i : i + block] for i in range(0, len(data), block)), limit))
    assert b"".join(cut) == data
    assert all(len(piece) <= limit for piece in cut)
    assert "".join(piece.decode() for piece in cut) == text  # no character is cut in two


def test_pieces_end_at_a_paragraph_where_there_is_one(paragraphs):
    cut = list(pieces(["\n\n".join(paragraphs).encode()], 2_000))
    assert len(cut) > 10
    assert all(piece.endswith(b"\n\n") for piece in cut[:-1])


def test_pieces_do_not_depend_on_how_the_file_was_read(paragraphs):
    text = "\n\n".join(paragraphs).encode()
    assert list(pieces([text], 900)) == list(pieces([text[:5_000], text[5_000:]], 900))


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
    return [document.text for document in local.documents(data)]


def test_files_of_all_kinds_are_read_in_the_order_of_their_names(folder, config):
    everything = ["plain\ntext é", "one", "two", "zipped", "p", "q", "# mark\n\ndown"]
    assert texts(config("data", "local", paths="**/*.*")) == everything
    assert texts(config("data", "local", paths=["sub/*.md", "*.txt", "[cde].*"])) == everything


def test_the_text_column_is_configurable(folder, config):
    assert texts(config("data", "local", paths="[ce].*", text_column="body")) == ["uno", "dos", "r", "s"]


def test_validation_files_are_the_validation_split(folder, config):
    documents = local.documents(config("data", "local", paths="b.txt", val_paths="sub/*"))
    assert [document.split for document in documents] == ["train", "val"]


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
        ({"paths": "table.csv"}, r"^data\.paths: table\.csv is of no known kind; wants \.txt, \.md, "),
        ({"paths": "b.txt", "max_document_bytes": 3}, r"^data\.max_document_bytes=3 wants to be at least 256"),
    ],
)
def test_options_that_cannot_work_are_refused_before_work(folder, config, changes, message):
    (folder / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match=message):
        local.key(config("data", "local", **changes))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"caf\xe9", r"data\.paths: x\.txt is not UTF-8.*byte 0xe9 at offset 3"),
        ("x.txt", b"a" * 40_000 + b"\xff", r"byte 0xff at offset 40000"),
        ("x.jsonl", b'{"text": "a"}\n{"body": "b"}', r"data\.text_column='text' .* x\.jsonl line 2, which has body"),
        ("x.jsonl", b'{"text": 3}', r"data\.text_column='text' names no text in x\.jsonl line 1"),
        ("x.jsonl", b"[1]", r"x\.jsonl line 1, which is no object"),
        ("x.jsonl", b'{"text": "a"}\n{"te', r"data\.paths: x\.jsonl line 2 is not JSON"),
        ("x.jsonl", b'{"text": "caf\xe9"}', r"data\.paths: x\.jsonl line 1 is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path, monkeypatch, config, name, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts(config("data", "local", paths=name))


def test_a_parquet_file_without_the_column_is_named(folder, config):
    with pytest.raises(ValueError, match=r"data\.text_column='words' is not in e\.parquet, which has text, body"):
        texts(config("data", "local", paths="e.parquet", text_column="words"))


def test_a_lone_surrogate_in_json_does_not_stop_the_build(tmp_path, config):
    (tmp_path / "x.jsonl").write_text('{"text": "a\\ud800b"}')
    assert texts(config("data", "local", paths=str(tmp_path / "x.jsonl"))) == ["a?b"]
