"""A converted `tokenizer.model` against the sentencepiece library itself, on models that are trained here."""

import io
import json
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from slm.data import load_tokenizer
from tests.seeds import seeded

sentencepiece = pytest.importorskip("sentencepiece")

SENTENCES = [
    "The cat sat on the mat, naïve as ever; 1234 times, or 12.5.",
    "def f(x):\n    return  x ** 2   # indented",
    "語 漢字 かな 語 漢字 🙂 🙂 emoji and words",
    "======== ---- aaaa abab ababab    spaces     more",
    "the theory of the thing that they thought therefore",
]
HARD = [
    "",
    " ",
    "   ",
    "  two before, two after  ",
    "a\n\n\tb\r\n c",
    "0123456789 3.14159",
    "語漢字 unknown 한국어 🙂👩‍👩‍👧 ñ",
    "<s> </s> <unk> <0x41> <pad>",
    "\u2581 a\u2581b \u2581\u2581",
    "aaaaaaa abababa ========= ---------   ",
    "\x00\x7f e\u0301",
]
# Words, runs and characters that are and are not in the trained vocabulary: plain st.text() seldom merges anything.
WORDS = "the|th|e|cat| |  |     |\n|\t|a|aa|ab|ba|=|==|---|1|12|x|ng|語|漢|字|🙂|é|ñ|\u2581|<s>|</s>|<0x0A>"
PIECES = st.sampled_from(WORDS.split("|"))
TEXT = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join), st.sampled_from(HARD))
KINDS = {
    "llama": {"split_digits": True},
    "no dummy prefix": {"add_dummy_prefix": False},
    "extra spaces removed": {"remove_extra_whitespaces": True},
    "unknown characters": {"byte_fallback": False, "vocab_size": 250, "character_coverage": 0.98},
    "pieces across words": {"split_by_whitespace": False},
    "runs of spaces": {"allow_whitespace_only_pieces": True},
}
LIKE_LLAMA = {"byte_fallback": True, "remove_extra_whitespaces": False}
"""The options of all `KINDS` that do not say otherwise."""


def trained(folder, **options):
    rng = random.Random(seeded())
    words = " ".join(SENTENCES).split(" ")
    lines = SENTENCES * 5 + ["  ".join(rng.choice(words) for _ in range(8)) for _ in range(200)]
    model = io.BytesIO()
    defaults = {"model_type": "bpe", "normalization_rule_name": "identity", "vocab_size": 460, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, hard_vocab_limit=False, num_threads=1, **defaults | options
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), folder


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(their processor, our tokenizer)"""
    theirs, folder = trained(tmp_path_factory.mktemp("sentencepiece"), **LIKE_LLAMA | KINDS[request.param])
    return theirs, load_tokenizer(folder)


@settings(deadline=None, max_examples=150)
@given(text=TEXT)
def test_ids_are_those_of_the_sentencepiece_library(pair, text):
    theirs, ours = pair
    assert ours.encode(text) == theirs.encode(text)


@settings(deadline=None, max_examples=50)
@given(text=TEXT)
def test_text_comes_back_as_sentencepiece_gives_it_back(pair, text):
    theirs, ours = pair
    ids = theirs.encode(text)
    if theirs.unk_id() not in ids and "\u2581" not in text:
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("llama"), **LIKE_LLAMA, **KINDS["llama"], control_symbols=["<pad>"])


@settings(deadline=None, max_examples=100)
@given(text=TEXT.filter(bool))
def test_bytes_of_the_tokens_sum_to_those_of_the_text_and_the_space_before_it(llama, text):
    ours = load_tokenizer(llama[1])
    assert ours.token_bytes[ours.encode(text)].sum() == len(text.replace("\u2581", " ").encode()) + 1


def test_a_model_has_llamas_begin_and_end(llama):
    theirs, ours = llama[0], load_tokenizer(llama[1])
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id(), theirs.eos_id()) == (1, 2)
    assert ours.adds_bos
    assert ours.vocab_size == theirs.get_piece_size()


def with_config(llama, folder, **config):
    """The model of `llama` loaded with a tokenizer_config.json beside it."""
    (folder / "tokenizer.model").write_bytes((llama[1] / "tokenizer.model").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def test_the_config_beside_a_model_names_the_end_token(llama, tmp_path):
    ours = with_config(llama, tmp_path, add_bos_token=False, eos_token="<pad>")
    assert not ours.adds_bos
    assert ours.decode([ours.eos_id]) == ""
    assert llama[0].id_to_piece(ours.eos_id) == "<pad>"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_transformers_loads_a_saved_tokenizer_and_begins_texts_as_the_config_says(llama, tmp_path, adds_bos):
    ours = with_config(llama, tmp_path, add_bos_token=adds_bos)
    ours.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in HARD:
        if not text.startswith("<s>"):
            assert theirs(text).input_ids == [1] * adds_bos + llama[0].encode(text)
    again = load_tokenizer(tmp_path / "saved")
    assert (again.fingerprint, again.adds_bos) == (ours.fingerprint, adds_bos)


def test_text_never_makes_a_control_or_a_user_defined_symbol(tmp_path):
    symbols = {"control_symbols": ["<pad>"], "user_defined_symbols": ["<|im_start|>"]}
    theirs, _ = trained(tmp_path, **LIKE_LLAMA, **KINDS["llama"], **symbols)
    ours = load_tokenizer(tmp_path)
    ids = ours.encode("<s>a</s><pad><|im_start|>user <unk>")
    assert not {theirs.piece_to_id(piece) for piece in ("<s>", "</s>", "<pad>", "<|im_start|>", "<unk>")} & set(ids)
    assert ours.decode(ids) == "<s>a</s><pad><|im_start|>user <unk>"
    assert theirs.piece_to_id("<|im_start|>") in theirs.encode("<|im_start|>user")


def test_a_folder_with_both_files_is_read_by_its_tokenizer_json(llama, tmp_path):
    load_tokenizer(llama[1]).save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    assert load_tokenizer(tmp_path).encode("the cat") == llama[0].encode("the cat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 150}, "of type unigram and not BPE, .* give the folder a tokenizer"),
        ({"normalization_rule_name": "nmt_nfkc"}, r"normalises text by a table \(nmt_nfkc\), which cannot"),
        ({"treat_whitespace_as_suffix": True}, "does not mark the space before a word"),
        ({"user_defined_symbols": ["\n\n"]}, r"has the user-defined symbol '\\n\\n'"),
        ({"eos_id": -1}, "has no end token: name eos_token in tokenizer_config.json"),
    ],
)
def test_a_model_without_an_exact_equal_is_refused_in_one_sentence(tmp_path, options, message):
    trained(tmp_path, **options)
    with pytest.raises(ValueError, match=rf"^checkpoint: .*tokenizer\.model .*{message}"):
        load_tokenizer(tmp_path, asked_by="checkpoint")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "run git lfs pull"),
        (b"\xff\x00 no proto", "not a SentencePiece model, or is damaged"),
        (b"", "not a SentencePiece model, or is damaged"),
    ],
)
def test_a_file_that_is_not_a_model_is_refused_in_one_sentence(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_a_missing_extra_is_named(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    with pytest.raises(ValueError, match=r"pip install 'slm\[hub\]'"):
        load_tokenizer(llama[1])
