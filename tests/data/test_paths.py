"""A path that exists is that file or folder; a folder is every file under it that can be read."""

import os

import pytest

from slm.data.local import text_files
from slm.data.readers import ROW_SUFFIXES


@pytest.fixture
def folder(tmp_path, monkeypatch):
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
def test_a_file_that_exists_is_that_file_whatever_a_glob_would_match(folder, name):
    for other in ("book1.txt", "ab.txt", "whatx.txt", "b.txt", name):
        (folder / other).write_text(other)
    assert text_files(name, "data.paths") == ([folder.joinpath(name).relative_to(folder)], "")


def test_a_folder_is_every_file_under_it_that_can_be_read_and_says_how_many(folder):
    files, note = text_files("[2024] notes", "data.paths")
    assert [str(file) for file in files] == ["[2024] notes/a.TXT", "[2024] notes/sub/b.md"]
    assert note.startswith("data.paths: 2 files; 2 more in folders left out, which are empty or end in none of .txt")
    with pytest.raises(
        ValueError, match=r"the folder \[2024\] notes has no file that can be read; give one with \.json"
    ):
        text_files("[2024] notes", "task_files.x", suffixes=ROW_SUFFIXES)


def test_a_folder_that_links_to_itself_is_read_once_and_linked_folders_are_read(folder):
    (folder / "[2024] notes" / "loop").symlink_to(folder / "[2024] notes")
    (folder / "[2024] notes" / "more").symlink_to(folder / "2 notes")
    assert names("[2024] notes") == ["[2024] notes/a.TXT", "[2024] notes/more/wrong.txt", "[2024] notes/sub/b.md"]


def test_what_does_not_exist_is_a_glob_of_files_and_folders(folder):
    assert names("2*/*.txt") == ["2 notes/wrong.txt"]
    assert names("*2*notes") == ["2 notes/wrong.txt", "[2024] notes/a.TXT", "[2024] notes/sub/b.md"]
    assert text_files("**/*.[tT]*", "x").note == "x: 2 files"


def test_a_file_is_read_once_however_often_it_is_named(folder):
    os.link("2 notes/wrong.txt", "hard.txt")
    os.symlink("2 notes/wrong.txt", "soft.txt")
    assert names(["2 notes/wrong.txt", f"{folder}/2 notes/*.txt", "soft.txt", "./2 notes"]) == ["2 notes/wrong.txt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no/*.txt", r"^data\.paths='no/\*\.txt' matches no file in .*; give an existing file, folder or glob$"),
        (["2 notes", ""], r"^data\.paths='' matches no file"),
        ("???", r"^data\.paths is not set; give"),
        ([], r"^data\.paths is not set; give"),
        (
            "[2024] notes/scan.pdf",
            r"^data\.paths: \[2024\] notes/scan\.pdf is of an unknown kind; its name must end in one of \.txt, ",
        ),
        (
            "*notes/*.md",
            r"^data\.paths: \[2024\] notes/empty\.md is empty \(0 bytes\); write it again, or leave it out$",
        ),
    ],
)
def test_what_names_no_text_is_refused_in_one_sentence(folder, given, message):
    with pytest.raises(ValueError, match=message):
        text_files(given, "data.paths")
