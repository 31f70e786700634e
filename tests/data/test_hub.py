import json
import time

import pytest

from slm.data import hub, prepare
from slm.data.hub import join_rows, limited

UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the discard port: nothing listens


@pytest.mark.parametrize("choice", ["fineweb_edu", "tinystories", "wikitext2", "wikitext103"])
def test_no_network_is_said_within_seconds(preparing, tmp_path, config, choice):
    data, start = config("data", choice), time.monotonic()
    process = preparing(data, config("tokenizer", "bytes"), tmp_path, **UNREACHABLE)
    message, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 15
    assert message.startswith(f"data={choice} must download {data['repo']}, but http://127.0.0.1:9 cannot be reached")
    assert message.count("\n") == 1, errors


def test_no_network_for_a_tokenizer_is_said_before_the_documents_are_read(preparing, tmp_path, config, book):
    data, tokenizer = config("data", "local", paths=str(book)), config("tokenizer", "file", path="some/model")
    process = preparing(data, tokenizer, tmp_path / "cache", HF_HOME=str(tmp_path), **UNREACHABLE)
    message, errors = process.communicate(timeout=60)
    said = "tokenizer.path='some/model' does not exist locally and must be downloaded from the hub"
    assert message.startswith(said), errors
    assert not (tmp_path / "cache").exists()


def test_articles_of_wikitext_are_put_together_from_its_lines(config):
    first = [" = Valkyria = \n", "", " First . \n", " = = Story = = \n", " More . \n"]
    second = [" = Tower = \n", " Other . \n"]
    rows, start = ["", *first, *second], config("data", "wikitext2")["document_start"]
    assert list(join_rows(rows, start)) == ["", "".join(first), "".join(second)]
    assert list(join_rows(rows, None)) == rows


def test_limits_stop_the_stream():
    def texts():
        yield from ["four", "five5", "six666"]
        raise AssertionError("read too far")

    assert list(limited(texts(), 2, None)) == ["four", "five5"]
    assert list(limited(texts(), 3, None)) == ["four", "five5", "six666"]
    assert list(limited(texts(), None, 5)) == ["four", "five5"]
    assert list(limited(["a", "b"], None, None)) == ["a", "b"]


@pytest.fixture
def data_set(tmp_path, config, monkeypatch):
    """A data set on disk, which `datasets` streams as it does one of the hub."""
    monkeypatch.setattr(hub, "require_network", lambda purpose: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    for split, texts in {"train": ["one", "two", "three"], "validation": ["four", "five"]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return config("data", "tinystories", repo=str(folder))


def documents(data):
    return [document for part in hub.parts(data) for document in hub.documents(part)]


def test_a_data_set_is_streamed_with_its_own_validation_split(data_set):
    split = {"four": "val", "five": "val", "one": "train", "two": "train", "three": "train"}
    assert documents(data_set) == [*split.items()]


def test_another_split_to_train_on_is_another_corpus(data_set):
    chosen = {**data_set, "split": "validation", "val_split": None}
    assert documents(chosen) == [("four", None), ("five", None)]
    assert hub.key(chosen) != hub.key({**chosen, "split": "train"})


def test_keys_of_corpora_that_older_versions_cached_are_unchanged(config):
    """With the names of the keys from before they were renamed."""
    older = {"path": "Salesforce/wikitext", "subset": "wikitext-2-raw-v1", "revision": None, "val_split": "validation"}
    older |= {"text_column": "text", "document_start": "^ = [^=].* = $", "max_documents": None, "max_bytes": None}
    assert hub.key(config("data", "wikitext2")) == older


def test_a_data_set_with_a_script_is_refused_with_the_way_around_it(data_set, monkeypatch):
    def load_dataset(*arguments, **options):
        raise RuntimeError("Dataset scripts are no longer supported, but found set.py")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        ValueError, match=r"^data\.repo=.* scripts .*; data\.revision=refs/convert/parquet data\.config=null"
    ):
        documents(data_set)


def test_without_a_validation_split_the_hash_decides(data_set):
    assert documents({**data_set, "val_split": None, "max_documents": 2}) == [("one", None), ("two", None)]


def test_files_of_a_data_set_are_parts_unless_a_limit_counts_over_them(data_set, tmp_path):
    for number in range(5):
        (tmp_path / "set" / f"train-{number}.jsonl").write_text(f'{{"text": "file {number}"}}\n')
    (tmp_path / "set" / "train.jsonl").unlink()
    alone = {**data_set, "val_split": None}
    assert [list(hub.documents(part)) for part in hub.parts(alone)] == [[(f"file {i}", None)] for i in range(5)]
    assert [len(hub.parts({**alone, name: 9})) for name in ("max_documents", "max_bytes")] == [1, 1]


def test_a_column_or_a_split_that_is_not_there_is_named(data_set):
    with pytest.raises(ValueError, match=r"^data\.text_column='story' is not in .* which has text"):
        documents({**data_set, "text_column": "story"})
    with pytest.raises(ValueError, match=r"^data\.repo=.* cannot be read from the hub: .*dev"):
        documents({**data_set, "val_split": "dev"})


def test_rows_of_a_data_set_are_read_as_those_of_files_are(data_set, tmp_path):
    rows = [{"text": "\ufeffone\r\n"}, {"text": None}, {"text": "two"}]
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = {**data_set, "val_split": None}
    assert [text for text, _ in documents(alone)] == ["one\n", "", "two"]


LISTS = ('{"text": ["one"]}\n', "row 1 has a value of type list in 'text', which must be text")


@pytest.mark.parametrize(("content", "said"), [LISTS, ('{"text": "one"}\n{"text": ', "")])
def test_rows_without_text_and_damaged_files_are_one_sentence(data_set, tmp_path, content, said):
    for split in ("train", "validation"):
        (tmp_path / "set" / f"{split}.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"^data\.repo=.* cannot be read: {said}") as caught:
        documents(data_set)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["max_documents", "max_bytes"])
def test_limits_must_be_positive(config, name):
    with pytest.raises(ValueError, match=rf"^data\.{name}=0 must be positive"):
        hub.key(config("data", "fineweb_edu", **{name: 0}))


@pytest.mark.hub
@pytest.mark.parametrize("name", ["wikitext2", "wikitext103", "tinystories", "fineweb_edu"])
def test_a_data_set_of_the_real_hub_becomes_a_corpus(name, config, tmp_path):
    corpus = prepare(config("data", name, max_bytes=300_000), config("tokenizer", "bytes"), cache_dir=tmp_path)
    assert 0 < corpus.train.num_bytes <= 400_000
    assert corpus.val.num_bytes > 0


@pytest.mark.hub
def test_a_tokenizer_of_the_real_hub_is_fetched(config, tmp_path):
    (tmp_path / "text.txt").write_text("Once upon a time.\n\n" * 2000)
    data = config("data", "local", paths=str(tmp_path / "text.txt"), max_document_bytes=1000)
    corpus = prepare(data, config("tokenizer", "file", path="HuggingFaceTB/SmolLM2-135M"), cache_dir=tmp_path)
    assert corpus.tokenizer.vocab_size == 49152
