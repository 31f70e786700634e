"""Texts as evaluation reads them."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from slm.data import hub
from slm.data.sources import SOURCES, Source
from slm.evaluation.texts import cached_folder, read_text
from slm.runtime.address import local_folder
from tests.composing import choice

config = partial(choice, "data")
ARTICLES = " = Valkyria = \n", " First . \n", "", " = = Story = = \n", " = Tower = \n", " Other . \n"


def local(*paths: Path, **changes: Any) -> dict[str, Any]:
    return config("local", paths=[str(path) for path in paths], **changes)


@pytest.mark.parametrize("name", ["book.txt", "wiki.test.raw", "README.MD"])
def test_a_plain_file_is_one_text_byte_for_byte(tmp_path: Path, name: str) -> None:
    content = "One\ntwo \r 🙂\n\n".encode() * 4000  # above 16 KiB
    (tmp_path / name).write_bytes(content)
    text = read_text(local(tmp_path / name), cache_dir=tmp_path)
    assert [document.encode() for document in text.documents] == [content]
    assert (text.name, text.separate) == (name, False)
    assert hashlib.sha256(content).hexdigest().startswith(text.fingerprint)


def test_rows_and_files_are_separate_documents_and_stay_whole(tmp_path: Path) -> None:
    long = "word " * 10_000
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["one", " \n", long]))
    pd.DataFrame({"text": ["p", "q"]}).to_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("plain")
    (tmp_path / "one.jsonl").write_text('{"text": "alone"}\n')
    rows = read_text(local(tmp_path / "a.jsonl"), cache_dir=tmp_path)
    assert (rows.documents, rows.separate, rows.name) == (("one", long), True, "a.jsonl")
    every = read_text(local(*(tmp_path / name for name in ("a.jsonl", "b.parquet", "c.txt"))), cache_dir=tmp_path)
    assert (every.documents, every.separate) == (("one", long, "p", "q", "plain"), True)
    assert read_text(local(tmp_path / "one.jsonl"), cache_dir=tmp_path).separate


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.jsonl"])
def test_a_file_is_of_the_kind_that_its_name_ends_in_whatever_its_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "one"}\n{"text": null}\n{"body": "two"}\n{"text": "three"}\n')
    text = read_text(local(tmp_path / name), cache_dir=tmp_path)
    assert text.documents == ("one", "three")
    assert text.notes == ("left out 2 documents without text (blank, null or missing).",)


def test_a_folder_is_its_files_and_says_how_many(tmp_path: Path) -> None:
    (tmp_path / "[2024] notes").mkdir()
    for name in ("a.txt", "b.md", "c.pdf"):
        (tmp_path / "[2024] notes" / name).write_text(name)
    text = read_text(local(tmp_path / "[2024] notes"), cache_dir=tmp_path)
    assert (text.documents, text.separate, text.name) == (("a.txt", "b.md"), True, "2 files")
    assert text.notes[0].startswith("data.paths: 2 files; skipped 1 more in folders")


def test_validation_files_of_ones_own_are_what_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("seen")
    (tmp_path / "held.txt").write_text("unseen")
    text = read_text(local(tmp_path / "train.txt", val_paths=str(tmp_path / "held.txt")), cache_dir=tmp_path)
    assert text.documents == ("unseen",)


def test_fingerprints_tell_documents_from_their_sum(tmp_path: Path) -> None:
    for name, rows in {"a": ["xy", "z"], "b": ["x", "yz"]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    prints = {read_text(local(tmp_path / f"{n}.jsonl"), cache_dir=tmp_path).fingerprint for n in "ab"}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", r"^data\.paths: .*text\.txt is not UTF-8 .*byte 0xe9 at offset 3"),
        (b"", r"^data\.paths: .*text\.txt is empty \(0 bytes\); write it again, or leave it out$"),
        (b" \n\t\n", r"^data=local: text\.txt has no text to score"),
    ],
)
def test_a_file_without_text_is_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_text(local(tmp_path / "text.txt"), cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "start", "message"),
    [
        (config("local", paths="no/such.txt"), None, r"^data\.paths='no/such\.txt' matches no file"),
        (config("local", paths=__file__), None, r"^data\.paths: .*test_texts\.py is of an unknown kind"),
        (config("local", source="ftp"), None, r"^data\.source='ftp' is not one of"),
        (config("local", paths="x"), "(", r"^document_start='\(' is not a regular expression"),
    ],
)
def test_settings_without_a_text_are_refused(tmp_path: Path, data: dict, start: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_text(data, document_start=start, cache_dir=tmp_path)


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set on disk, which `datasets` streams as it does one of the hub."""
    monkeypatch.setattr(hub, "require_network", lambda purpose: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    splits = {"train": ["seen", "again"], "validation": ["known", "held"], "test": ARTICLES}
    for split, texts in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def test_wikitext_is_its_test_split_with_rows_joined_by_a_blank_line(data_set: Path, tmp_path: Path) -> None:
    data = config("wikitext2", repo=str(data_set), config=None, max_documents=1)
    text = read_text(data, cache_dir=tmp_path)
    assert text.documents == ("\n\n".join(ARTICLES),)
    assert (text.name, text.separate, text.document_start) == ("wikitext2", False, data["document_start"])


def test_a_split_is_fetched_once(data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config("wikitext2", repo=str(data_set), config=None)
    first = read_text(data, cache_dir=tmp_path)
    monkeypatch.setattr(hub, "rows", None)
    assert read_text(data, cache_dir=tmp_path) == first


def test_a_set_of_documents_is_its_validation_split_within_its_limits(data_set: Path, tmp_path: Path) -> None:
    data = config("tinystories", repo=str(data_set))
    whole = read_text(data, cache_dir=tmp_path)
    assert (whole.documents, whole.separate) == (("known", "held"), True)
    assert read_text({**data, "max_documents": 1}, cache_dir=tmp_path).documents == ("known",)


def test_without_a_split_it_is_what_training_keeps_for_validation(data_set: Path, tmp_path: Path) -> None:
    data = config("fineweb_edu", repo=str(data_set), config=None, val_fraction=0.5)
    kept = [text for text in ("seen", "again") if hashlib.sha256(text.encode()).digest()[0] < 128]
    assert read_text(data, cache_dir=tmp_path).documents == tuple(kept)


def test_conversations_of_a_source_of_ones_own_are_those_kept_for_validation(tmp_path: Path, monkeypatch: Any) -> None:
    talks = [json.dumps({"messages": [{"role": "assistant", "content": text}]}) for text in ("learned", "kept")]
    split = list(zip(talks, ("train", "val"), strict=True))
    mine = Source(key=lambda data: 1, documents=lambda part: iter(split), holds_conversations=True)
    monkeypatch.setitem(SOURCES, "mine", mine)
    text = read_text(config("chat", source="mine"), cache_dir=tmp_path)
    assert (text.documents, text.template) == ((talks[1],), "")


def test_a_damaged_manifest_beside_the_text_of_a_run_is_passed_over(tmp_path: Path) -> None:
    config = {"data": {"name": "mine"}, "cache_dir": str(tmp_path / "own")}
    for folder, content in (("mine-a", "{"), ("mine-b", "[]"), ("mine-c", '{"fingerprint": "f00d"}')):
        (tmp_path / "documents" / folder).mkdir(parents=True)
        (tmp_path / "documents" / folder / "manifest.json").write_text(content)
    assert cached_folder(config, "f00d", tmp_path) == tmp_path / "documents" / "mine-c"
    assert cached_folder(config, "beef", tmp_path) is None


@pytest.mark.parametrize("given", ["~nobody-of-that-name", "~nobody/of/that/name"])
def test_a_name_that_begins_with_a_tilde_and_is_nobodys_home_is_a_name(given: str) -> None:
    with pytest.raises(ValueError, match=r"does not exist: give a run directory"):
        local_folder(given, None)
