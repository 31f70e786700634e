"""Which files a path, folder or glob stands for, and the documents in them."""

import gzip
import json
import os

import pandas as pd
import pytest

from slm.data import local
from slm.data.local import text_files
from slm.data.readers import ROW_SUFFIXES


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
    return [text for part in local.parts(data) for text, _ in local.documents(part)]


def test_files_of_all_kinds_are_read_in_the_order_of_their_names(folder, config):
    everything = ["plain\ntext é", "one", "two", "zipped", "p", "q", "# mark\n\ndown"]
    assert texts(config("data", "local", paths="**/*.*")) == everything
    assert texts(config("data", "local", paths=["sub/*.md", "*.txt", "[cde].*"])) == everything


def test_the_text_column_is_configurable(folder, config):
    assert texts(config("data", "local", paths="[ce].*", text_column="body")) == ["uno", "dos", "r", "s"]


def test_validation_files_are_the_validation_split(folder, config):
    data = config("data", "local", paths="b.txt", val_paths="sub/*")
    documents = [document for part in local.parts(data) for document in local.documents(part)]
    assert documents == [("# mark\n\ndown", "val"), ("plain\ntext é", "train")]


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
        ({"paths": ["b.txt", "nothing.md"]}, r"^data\.paths='nothing\.md' matches no file"),
        ({"paths": "b.txt", "val_paths": "x.txt"}, r"^data\.val_paths='x\.txt' matches no file"),
        ({"paths": "b.txt", "max_document_bytes": 3}, r"^data\.max_document_bytes=3 must be at least 256"),
    ],
)
def test_options_that_cannot_work_are_refused_before_work(folder, config, changes, message):
    with pytest.raises(ValueError, match=message):
        local.key(config("data", "local", **changes))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("[2024] notes/sub/b.md", "[2024] notes/a.TXT", "[2024] notes/.git/c.txt", "2 notes/wrong.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "[2024] notes" / "scan.pdf").write_bytes(b"%PDF")
    (tmp_path / "[2024] notes" / "empty.md").touch()
    return tmp_path


def names(given, **options):
    return [str(path) for path in text_files(given, "data.paths", **options).paths]


@pytest.mark.parametrize("name", ["book[1].txt", "a*.txt", "what?.txt", "~draft.txt", "[!a].txt"])
def test_a_file_that_exists_is_that_file_whatever_a_glob_would_match(tree, name):
    for other in ("book1.txt", "ab.txt", "whatx.txt", "b.txt", name):
        (tree / other).write_text(other)
    assert text_files(name, "data.paths") == ([tree.joinpath(name).relative_to(tree)], "")


def test_a_folder_is_every_file_under_it_that_can_be_read_and_says_how_many(tree):
    files, note = text_files("[2024] notes", "data.paths")
    assert [str(file) for file in files] == ["[2024] notes/a.TXT", "[2024] notes/sub/b.md"]
    assert note.startswith("data.paths: 2 files; skipped 2 more in folders (empty, or not ending in .txt")
    refusal = r"the folder \[2024\] notes has no file that can be read; give one with \.json"
    with pytest.raises(ValueError, match=refusal):
        text_files("[2024] notes", "task_files.x", suffixes=ROW_SUFFIXES)


def test_a_folder_that_links_to_itself_is_read_once_and_linked_folders_are_read(tree):
    (tree / "[2024] notes" / "loop").symlink_to(tree / "[2024] notes")
    (tree / "[2024] notes" / "more").symlink_to(tree / "2 notes")
    assert names("[2024] notes") == ["[2024] notes/a.TXT", "[2024] notes/more/wrong.txt", "[2024] notes/sub/b.md"]


def test_what_does_not_exist_is_a_glob_of_files_and_folders(tree):
    assert names("2*/*.txt") == ["2 notes/wrong.txt"]
    assert names("*2*notes") == ["2 notes/wrong.txt", "[2024] notes/a.TXT", "[2024] notes/sub/b.md"]
    assert text_files("**/*.[tT]*", "x").note == "x: 2 files"


def test_a_file_is_read_once_however_often_it_is_named(tree):
    os.link("2 notes/wrong.txt", "hard.txt")
    os.symlink("2 notes/wrong.txt", "soft.txt")
    assert names(["2 notes/wrong.txt", f"{tree}/2 notes/*.txt", "soft.txt", "./2 notes"]) == ["2 notes/wrong.txt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no/*.txt", r"^data\.paths='no/\*\.txt' matches no file in .*; give an existing file, folder or glob$"),
        (["2 notes", ""], r"^data\.paths='' matches no file"),
        ("???", r"^data\.paths is not set; give"),
        ([], r"^data\.paths is not set; give"),
        ("[2024] notes/scan.pdf", r"^data\.paths: .*/scan\.pdf is of an unknown kind; its name must end in one of "),
        ("*notes/*.md", r"^data\.paths: .*/empty\.md is empty \(0 bytes\); write it again, or leave it out$"),
    ],
)
def test_paths_without_text_are_refused_in_one_sentence(tree, given, message):
    with pytest.raises(ValueError, match=message):
        text_files(given, "data.paths")
