import hashlib
import json
import signal

import numpy as np
import pytest

from slm.data import corpus as module
from slm.data import load_tokenizer, prepare
from slm.data.corpus import prepare_documents
from slm.data.local import documents, parts
from slm.data.sources import source_of
from slm.data.vocabulary import plan_tokenizer
from tests.data.foreign import FOREIGN, KEEP_TEXT, byte_level, save, save_as

TRAIN = """
from slm.data import train_loader
corpus.tokenizer.encode_batch(["a b", "c d"])
options = dict(sequence_length=16, batch_size=4, micro_batch_size=4, seed=0, start_step=0, end_step=3, num_workers=2)
print(len(list(train_loader(corpus.train, **options))))
"""


@pytest.fixture
def data(config, book):
    return config("data", "local", paths=str(book), max_document_bytes=2000)


@pytest.fixture
def bpe(config):
    return config("tokenizer", "bpe", vocab_size=400)


@pytest.fixture
def byte(config):
    return config("tokenizer", "bytes")


def tokens_of(stream):
    return stream.read(0, stream.num_tokens).tolist()


def texts_of(data, split):
    def split_of(text):
        position = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12
        return "val" if position < data["val_fraction"] else "train"

    return [text for part in parts(data) for text, _ in documents(part) if split_of(text) == split]


@pytest.mark.parametrize("split", ["train", "val"])
def test_documents_stand_between_ends_of_text(data, byte, tmp_path, split):
    stream = getattr(prepare(data, byte, cache_dir=tmp_path), split)
    texts = texts_of(data, split)
    expected = [256]
    for text in texts:
        expected += [*text.encode(), 256]
    assert tokens_of(stream) == expected
    assert (stream.num_documents, stream.num_bytes) == (len(texts), len("".join(texts).encode()))


def test_documents_stand_between_begin_and_end_where_a_tokenizer_has_both(data, config, tmp_path):
    path = save_as(byte_level(), tmp_path / "theirs", "<s>", "</s>", bos_token="<s>", eos_token="</s>")
    corpus = prepare(data, config("tokenizer", "file", path=str(path)), cache_dir=tmp_path / "cache")
    theirs = load_tokenizer(path)
    expected = []
    for text in texts_of(data, "val"):
        expected += [theirs.bos_id, *theirs.encode(text), theirs.eos_id]
    assert theirs.bos_id != theirs.eos_id
    assert tokens_of(corpus.val) == expected


def test_all_bytes_of_the_text_are_scored(data, bpe, tmp_path):
    corpus = prepare(data, bpe, cache_dir=tmp_path)
    sizes = corpus.tokenizer.token_bytes
    for stream in (corpus.train, corpus.val):
        assert sizes[tokens_of(stream)[1:]].sum() == stream.num_bytes
        assert tokens_of(stream)[0] == corpus.tokenizer.eos_id
    assert "".join(texts_of(data, "val")) == corpus.tokenizer.decode(tokens_of(corpus.val))


@pytest.mark.parametrize("name", FOREIGN)
def test_the_bytes_of_the_validation_tokens_are_those_of_its_text(data, config, tmp_path, name):
    options = config("tokenizer", "file", path=str(save(name, tmp_path / name)))
    corpus = prepare(data, options, cache_dir=tmp_path)
    length = len("".join(texts_of(data, "val")).encode())
    assert corpus.val_bytes[tokens_of(corpus.val)[1:]].sum() == pytest.approx(length, rel=1e-12)
    assert corpus.keeps_text == (name in KEEP_TEXT)


def test_the_fingerprint_is_that_of_the_text_and_not_of_the_tokenizer(data, bpe, byte, book, tmp_path):
    ours, bytewise = prepare(data, bpe, cache_dir=tmp_path), prepare(data, byte, cache_dir=tmp_path)
    assert ours.fingerprint == bytewise.fingerprint
    assert ours.tokenizer.fingerprint != bytewise.tokenizer.fingerprint
    book.write_text(book.read_text().replace("number 7.", "number seven."))
    assert prepare(data, bpe, cache_dir=tmp_path).fingerprint != ours.fingerprint


def test_the_tokenizer_never_sees_validation_text(data, bpe, tmp_path):
    corpus = prepare(data, bpe, cache_dir=tmp_path)
    alone = plan_tokenizer(bpe).make(lambda: iter([texts_of(data, "train")]))
    assert corpus.tokenizer.fingerprint == alone.fingerprint


def test_a_second_vocabulary_does_not_read_the_source_again(data, bpe, byte, book, tmp_path, monkeypatch):
    first = prepare(data, bpe, cache_dir=tmp_path)
    monkeypatch.setattr(module, "write_documents", None)
    assert prepare(data, byte, cache_dir=tmp_path).fingerprint == first.fingerprint
    monkeypatch.setattr(module, "write_tokens", None)
    assert np.array_equal(tokens_of(prepare(data, bpe, cache_dir=tmp_path).train), tokens_of(first.train))


@pytest.mark.parametrize("kind", ["tokens", "documents"])
def test_a_corrupt_file_is_noticed_and_built_again(data, bpe, byte, tmp_path, kind):
    first = tokens_of(prepare(data, bpe, cache_dir=tmp_path).train)
    pattern = "tokens/*/train-00000-000.bin" if kind == "tokens" else "documents/*/train-00000-000.parquet"
    (file,) = tmp_path.glob(pattern)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{file.name} does not have its checksum; it is built again"):
        prepare(data, bpe if kind == "tokens" else byte, cache_dir=tmp_path)  # bytes: read from the documents again
    assert tokens_of(prepare(data, bpe, cache_dir=tmp_path).train) == first


def test_a_build_killed_before_its_end_is_not_used_and_the_next_one_succeeds(preparing, data, bpe, tmp_path):
    kill = "import os; from slm.data import encoding; encoding.split_facts = lambda *_: os.kill(os.getpid(), 9)"
    process = preparing(data, bpe, tmp_path, before=kill)
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("tokens/*/train-*.bin")]  # it was nearly done
    answer, errors = preparing(data, bpe, tmp_path).communicate(timeout=100)
    untouched = prepare(data, bpe, cache_dir=tmp_path / "other")
    assert answer == f"{untouched.fingerprint} {untouched.tokenizer.fingerprint} {untouched.train.num_tokens}\n", errors
    assert not list(tmp_path.glob("tokens/*.partial"))


def test_two_processes_at_once_give_one_good_cache(preparing, data, bpe, tmp_path):
    running = [preparing(data, bpe, tmp_path) for _ in range(2)]
    answers = [process.communicate(timeout=100) for process in running]
    corpus = prepare(data, bpe, cache_dir=tmp_path)
    expected = f"{corpus.fingerprint} {corpus.tokenizer.fingerprint} {corpus.train.num_tokens}\n"
    assert [answer for answer, _ in answers] == [expected] * 2, answers
    assert sum("documents of local ..." in errors for _, errors in answers) == 1
    folders = [path for path in tmp_path.glob("*/*") if path.is_dir()]
    assert len(folders) == 2  # documents and tokens, and nothing half-built


def test_a_bible_in_one_line_still_gives_two_splits(config, byte, tmp_path):
    (tmp_path / "line.txt").write_text("word " * 20_000)
    corpus = prepare(config("data", "local", paths=str(tmp_path / "line.txt")), byte, cache_dir=tmp_path)
    assert corpus.train.num_bytes + corpus.val.num_bytes == 100_000
    assert corpus.val.num_documents >= 1


@pytest.mark.parametrize(
    ("changes", "tokenizer", "message"),
    [
        ({"paths": "no/such/*.txt"}, {}, r"^data\.paths='no/such/\*\.txt' matches no file"),
        ({"source": "ftp"}, {}, r"^data\.source='ftp' is not one of pydocs, local, hub"),
        ({"val_fraction": 1.0}, {}, r"^data\.val_fraction=1\.0 must be between 0 and 1"),
        ({}, {"vocab_size": 100}, r"^tokenizer\.vocab_size=100 must be at least 257"),
        ({}, {"kind": "file", "path": "none", "revision": None}, r"^tokenizer\.path='none' does not exist"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_no_cache(data, bpe, tmp_path, changes, tokenizer, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepare({**data, **changes}, {**bpe, **tokenizer}, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*/*/manifest.json"))


def test_what_was_read_and_left_out_is_said_whether_the_corpus_is_built_or_opened(config, byte, tmp_path, paragraphs):
    for number in range(3):
        (tmp_path / f"shard_{number}.txt").write_text("\n\n".join(paragraphs[number * 100 : number * 100 + 100]))
    data = config("data", "local", paths=str(tmp_path / "shard_*"), val_paths=str(tmp_path / "shard_2.txt"))
    for _ in range(2):
        corpus = prepare(data, byte, cache_dir=tmp_path / "cache")
        assert corpus.train.num_bytes == sum((tmp_path / f"shard_{n}.txt").stat().st_size for n in range(2))
        assert corpus.left_out == {"also_in_validation": corpus.val.num_documents, "without_text": 0}
        assert corpus.notes == (
            "data.paths: 3 files",
            f"left out {corpus.val.num_documents} documents for training that are also in the validation set",
        )


def test_a_name_that_would_be_a_glob_is_built_and_cleaned_up_under_its_own(data, byte, tmp_path):
    named = {**data, "name": "[2024] notes"}
    folder, _ = prepare_documents(named, cache_dir=tmp_path)
    (folder.parent / f"{folder.name}.partial").mkdir()
    (folder / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="is built again"):
        prepare_documents(named, cache_dir=tmp_path)
    assert [path for path in (tmp_path / "documents").iterdir() if path.is_dir()] == [folder]


def test_a_source_that_a_config_names_is_never_imported(byte, tmp_path, monkeypatch):
    """The config of a run that evaluate.py reads may be somebody else's."""
    (tmp_path / "harmful.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nkey = documents = print\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^data\.source='harmful' is not one of pydocs, local, hub"):
        prepare({"name": "x", "source": "harmful", "val_fraction": 0.2}, byte, cache_dir=tmp_path)
    assert not (tmp_path / "executed").exists()


def test_every_source_and_tokenizer_of_conf_has_the_keys_that_its_code_reads(config):
    for choice in ("pydocs", "wikitext2", "wikitext103", "tinystories", "fineweb_edu"):
        data = config("data", choice)
        assert data["name"] == choice
        assert json.dumps(source_of(data).key(data))


def test_importing_the_room_is_cheap(python):
    script = "import sys, slm.data; print({'torch', 'datasets', 'pyarrow', 'tokenizers', 'pandas'} & set(sys.modules))"
    assert python(script).communicate(timeout=60)[0] == "set()\n"


def test_loader_workers_start_quietly_after_tokenizing(preparing, data, bpe, tmp_path):
    answer, errors = preparing(data, bpe, tmp_path, after=TRAIN).communicate(timeout=100)
    assert answer.endswith("\n3\n"), errors
    assert [line for line in errors.splitlines() if not line.startswith("data: ")] == []
