"""Every reader gives the same text of the same documents, and one sentence that names what is wrong with a file."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from slm.data import local, readers
from slm.data.readers import SUFFIXES, clean, pieces, read_rows, read_texts

NOT_TEXT = [(["one"], "list"), ({"a": "b"}, "dict"), (3, "int"), (0.5, "float"), (b"caf\xe9", "")]
TEXT = st.lists(st.sampled_from(["a", "é", "語", "🙂", " ", "\n", "\n\n"]), max_size=800).map("".join)


@given(text=TEXT, limit=st.integers(8, 300), block=st.integers(1, 97))
def test_pieces_add_up_to_the_text_and_keep_to_the_limit(text, limit, block):
    data = text.encode()
    cut = list(pieces((data[i : i + block] for i in range(0, len(data), block)), limit))
    assert cut == list(pieces([data], limit))  # however the file was read
    assert b"".join(cut) == data
    assert all(len(piece) <= limit for piece in cut)
    assert "".join(piece.decode() for piece in cut) == text  # no character is cut in two


def test_pieces_end_at_a_paragraph_where_there_is_one(paragraphs):
    cut = list(pieces(["\n\n".join(paragraphs).encode()], 2_000))
    assert len(cut) > 10
    assert all(piece.endswith(b"\n\n") for piece in cut[:-1])


def read(path, limit=None, column="text"):
    return list(read_texts(path, key="data.paths", column=column, limit=limit))


def write(path: Path, texts: list) -> Path:
    """The texts in a file of whatever kind its name says, one a row where it has rows."""
    packed = gzip.compress if path.name.lower().endswith(".gz") else bytes
    if path.name.lower().endswith(".parquet"):
        parquet.write_table(pa.table({"text": texts}), path)
    elif readers.suffix_of(path) in readers.ROW_SUFFIXES:
        path.write_bytes(packed("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    else:
        path.write_bytes(packed("".join(texts).encode()))
    return path


@pytest.mark.parametrize("suffix", [*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)])
def test_every_reader_drops_a_byte_order_mark_and_windows_line_ends_and_keeps_nul(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", ["\ufeffone\r\n\r\ntwo \ufeff\x00 lone\r end\r\n"])
    assert read(path) == ["one\n\ntwo \ufeff\x00 lone\r end\n"]


@given(text=st.text(st.sampled_from("ab\r\n\ufeff"), max_size=30), block=st.integers(1, 5))
def test_line_ends_do_not_depend_on_how_the_file_was_read(text, block):
    cut = clean(text[i : i + block] for i in range(0, len(text), block))
    assert "".join(cut) == text.removeprefix("\ufeff").replace("\r\n", "\n")


def test_a_file_of_windows_is_cut_as_its_twin(tmp_path, paragraphs):
    text = "\n\n".join(paragraphs)
    (tmp_path / "unix.txt").write_bytes(text.encode())
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read(tmp_path / "windows.txt", 900) == read(tmp_path / "unix.txt", 900)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.parquet"])
def test_a_null_text_is_empty_in_every_reader_of_rows(tmp_path, name):
    assert read(write(tmp_path / name, ["one", None, "two"])) == ["one", "", "two"]


def test_a_row_without_the_column_is_empty_but_a_file_without_it_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"body": 1}\nnull\n\n{"text": "one"}\n', encoding="utf-8")
    assert read(path) == ["", "", "one"]
    assert list(read_rows(path, key="k")) == [("line 1", {"body": 1}), ("line 2", None), ("line 4", {"text": "one"})]
    with pytest.raises(ValueError, match=r"a\.jsonl has no column 'story', only body; set data\.text_column"):
        read(path, column="story")
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'story', only text; set data\.text_column"):
        read(write(tmp_path / "a.parquet", ["one"]), column="story")


def test_a_text_of_bytes_is_read_and_of_any_type_of_strings(tmp_path):
    texts = ["one", None, "zwei ü"]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        parquet.write_table(pa.table({"text": pa.array(texts).cast(kind)}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet") == ["one", "", "zwei ü"]
    encoded = pa.array([text and text.encode() for text in texts], pa.binary())
    parquet.write_table(pa.table({"text": encoded}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["one", "", "zwei ü"]


@pytest.mark.parametrize(("column", "held"), NOT_TEXT)
def test_a_column_that_is_not_text_is_named_with_the_file(tmp_path, column, held):
    parquet.write_table(pa.table({"text": [column]}), tmp_path / "a.parquet")
    said = rf"has a value of type {held} in 'text', which must be text" if held else "is not UTF-8 in 'text'"
    with pytest.raises(ValueError, match=rf"^data\.paths: .*a\.parquet row 1 {said}.*set data\.text_column"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"caf\xe9", r"is not UTF-8 \(byte 0xe9 at offset 3\); convert it"),
        ("x.txt", b"a\r\n" * 2_000_000 + b"\xff", r".*byte 0xff at offset 6000000"),
        ("x.txt", b"a" * ((4 << 20) - 1) + "é".encode()[:1] + b"x", r".*byte 0xc3 at offset 4194303"),
        ("x.jsonl", b'{"text": "a"}\n{"text": 3}', r"line 2 has a value of type int in 'text', which must be text"),
        ("x.jsonl", b"[1]", r"line 1 is not an object"),
        ("x.jsonl", b'{"text": "a"}\n{"te', r"line 2 is not JSON; give one object per line"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}', r"line 2 is not UTF-8; convert"),
        ("x.jsonl", b"[" * 100_000, r"cannot be read \(RecursionError: .*; write or download it again"),
        ("x.parquet", b"PAR1" + b"a" * 40, r"cannot be read .*; write or download it again, or leave it out$"),
        ("x.parquet", b"text, and no Parquet", r"does not begin like a \.parquet file; rename it"),
        ("x.jsonl.gz", b'{"text": "a"}\n', r"does not begin like a \.gz file; rename it"),
        (
            "x.txt",
            gzip.compress(b"a", mtime=0),
            r"begins like a \.gz file; rename it to match its contents, or leave it out$",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data\.paths: .*{name} {message}") as caught:
        read(tmp_path / name, 1 << 14)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.txt.gz"])
def test_damage_of_gzip_data_is_blamed_on_them_and_not_on_the_text(tmp_path, name, paragraphs):
    whole = write(tmp_path / name, paragraphs).read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(40, len(whole) - 8, 97)]
    for content, said in [(whole[: len(whole) * 2 // 3], "it is cut off"), *((content, ".") for content in flipped)]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} holds damaged gzip data \({said}.*\); write or download"):
            read(tmp_path / name)


def test_a_file_that_is_gone_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^data\.paths: .*gone\.txt cannot be read: No such file or directory$"):
        read(tmp_path / "gone.txt")


def test_a_lone_surrogate_in_json_does_not_stop_the_build(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a\\ud800b"}')
    assert read(tmp_path / "x.jsonl") == ["a?b"]


def test_training_and_evaluation_read_the_same_texts(tmp_path, config):
    for suffix in SUFFIXES:
        data = config("data", "local", paths=str(write(tmp_path / f"a{suffix}", ["\ufeffone\r\n"])))
        (part,) = local.parts(data)
        assert [text for text, _ in local.documents(part)] == list(local.texts_to_evaluate(data)) == ["one\n"]
