import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from slm.data import load_tokenizer
from slm.data.vocabulary import plan_tokenizer
from tests.data.foreign import FOREIGN, KEEP_TEXT, llama_like, save, save_as

HARD = ["", " ", "  a\n\n\tb  ", "naïve 語 🙂", "x<|endoftext|>y", "\x00\x7f", "1234567 3.5", "don't", "e\u0301"]
TEXT = st.one_of(st.text(), st.sampled_from(HARD))


@pytest.fixture(scope="module", params=["bpe", "bytes"])
def ours(request):
    config = {"kind": request.param, "vocab_size": 400, "train_bytes": None}
    texts = ["the cat naïve sat on the mat 語 " * 50, "def f(x):\n    x"]
    return plan_tokenizer(config).make(lambda: iter([texts]))


@settings(deadline=None)
@given(text=TEXT)
def test_text_survives_encoding(ours, text):
    assert ours.decode(ours.encode(text)) == text


@settings(deadline=None)
@given(text=TEXT)
def test_bytes_of_the_tokens_sum_to_those_of_the_text(ours, text):
    assert ours.token_bytes.shape == (ours.vocab_size,)
    assert ours.token_bytes[ours.encode(text)].sum() == len(text.encode())


@pytest.fixture(scope="module", params=FOREIGN)
def foreign(request, tmp_path_factory):
    return load_tokenizer(save(request.param, tmp_path_factory.mktemp("foreign") / request.param))


@settings(deadline=None)
@given(text=TEXT.filter(str.strip))
def test_whatever_a_tokenizer_does_to_a_text_its_tokens_stand_for_the_bytes_of_the_text(foreign, text):
    ids = foreign.encode(text)
    sizes, kept = foreign.text_bytes(text, ids)
    assert len(sizes) == len(ids)
    assert (sizes >= 0).all()
    assert sizes.sum() == (len(text.encode()) if ids else 0)
    assert kept or foreign.name not in KEEP_TEXT


@pytest.mark.parametrize(
    ("name", "sizes", "kept"),
    [
        # ▁ the ▁ é ▁ a, the first ▁ with the t that it was put before
        ("spells spaces out", [1, 0, 0, 0, 1, 1, 1, 0, 0, 2, 0, 1, 0, 0, 1], False),
        ("spells spaces out and keeps them", [1, 0, 0, 0, 1, 1, 1, 0, 0, 2, 0, 1, 0, 0, 1], True),
        ("puts a space first", [0, 1, 1, 1, 1, 1, 1, 1, 1], True),
        ("pieces of words", [3, 3, 2], False),  # e for é, with the space before it
        ("knows nothing", [3, 3, 2], False),
    ],
)
def test_each_token_stands_for_its_part_of_the_text(tmp_path, name, sizes, kept):
    tokenizer = load_tokenizer(save(name, tmp_path / name))
    found, gives_back = tokenizer.text_bytes("the é a", tokenizer.encode("the é a"))
    assert (found.tolist(), gives_back) == (sizes, kept)


def test_a_batch_encodes_as_its_texts_do(ours):
    assert ours.encode_batch(HARD) == [ours.encode(text) for text in HARD]


def test_the_end_of_text_has_no_bytes_and_is_not_made_by_text(ours):
    assert ours.token_bytes[ours.eos_id] == 0
    assert ours.eos_id not in ours.encode("before<|endoftext|>after")
    assert ours.decode([*ours.encode("a"), ours.eos_id]) == "a"


def test_transformers_loads_what_is_saved_and_agrees_on_ids(ours, tmp_path):
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD:
        if "<|endoftext|>" not in text:
            ids = ours.encode(text)
            assert theirs(text, add_special_tokens=False).input_ids == ids
            assert theirs.decode(ids) == text
    assert theirs.eos_token_id == ours.eos_id
    assert len(theirs) == ours.vocab_size


def test_a_saved_tokenizer_loads_as_itself(ours, tmp_path):
    ours.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        again = load_tokenizer(path)
        assert (again.fingerprint, again.eos_id, again.bos_id) == (ours.fingerprint, ours.eos_id, ours.bos_id)


def test_the_fingerprint_is_that_of_the_content_and_not_of_its_layout(ours, tmp_path):
    ours.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(content.items()))))
    assert load_tokenizer(file).fingerprint == ours.fingerprint
    content["model"]["dropout"] = 0.1
    file.write_text(json.dumps(content))
    assert load_tokenizer(file).fingerprint != ours.fingerprint


@pytest.fixture
def llama_style(tmp_path):
    inner = llama_like(["▁", "a", "é", "▁a", "x"], [("▁", "a")])
    bos = {"content": "<s>", "lstrip": False}
    return load_tokenizer(save_as(inner, tmp_path, "<unk>", "<s>", "</s>", bos_token=bos, eos_token="</s>"))


@pytest.mark.parametrize("text", ["a a", "xé", "語🙂", "a\n\nq  a", "</s>"])
def test_byte_fallback_counts_exactly_but_for_the_space_before_the_text(llama_style, text):
    assert llama_style.token_bytes[llama_style.encode(text)].sum() == len(text.encode()) + 1


def test_begin_and_end_are_read_from_the_config_beside_it_and_a_lone_file_has_the_usual_end(llama_style, tmp_path):
    assert (llama_style.bos_id, llama_style.eos_id) == (1, 2)
    config = (tmp_path / "tokenizer_config.json").rename(tmp_path / "special_tokens_map.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert (again.bos_id, again.eos_id) == (1, 2)
    config.unlink()
    lone = load_tokenizer(tmp_path / "tokenizer.json")
    assert (lone.bos_id, lone.eos_id) == (None, 2)


def test_holes_in_the_ids_count_as_ids_without_bytes(tmp_path):
    inner = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 7}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    holey = load_tokenizer(save_as(inner, tmp_path, "</s>"))
    assert holey.vocab_size == 1 + max(7, holey.eos_id)
    assert holey.token_bytes.sum() == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^tokenizer\.path='.*' does not exist; give a tokenizer\.json"),
        ("{", r"^tokenizer\.path: .* is not a tokenizer\.json of the tokenizers library"),
        ('{"a": 1}', r"^tokenizer\.path: .* is not a tokenizer\.json of the tokenizers library"),
        ('{"added_tokens": [], "model": {}}', r"^tokenizer\.path: nothing in .* says which token ends a text"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_an_end_token_that_is_not_in_the_vocabulary_is_refused(llama_style, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<stop>"}')
    with pytest.raises(ValueError, match=r"'<stop>'.*no such token"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_has_no_token_for_a_text_is_refused_in_one_sentence(tmp_path):
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="<unk>"))
    save_as(inner, tmp_path, eos_token="</s>")
    for encode in (load_tokenizer(tmp_path).encode, lambda text: load_tokenizer(tmp_path).encode_batch([text])):
        assert encode("a")
        with pytest.raises(ValueError, match=r"^tokenizer .* cannot encode the text \(.*\[UNK\].*\): give another one"):
            encode("b")


def test_ids_by_the_billion_are_refused_before_a_table_of_them_is_made(llama_style, tmp_path):
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["x"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has the id 2,147,483,648; ids must be below 16,777,216"):
        load_tokenizer(tmp_path)


def begin_with(folder, **config):
    """A tokenizer whose post-processor puts <s> before a text."""
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return load_tokenizer(save_as(inner, folder, **named | config))


@pytest.mark.parametrize(("config", "adds"), [({}, True), ({"add_bos_token": False}, False)])
def test_a_text_begins_as_the_config_says_or_else_the_post_processor(llama_style, tmp_path, config, adds):
    assert not llama_style.adds_bos
    ours = begin_with(tmp_path, **config)
    assert ours.adds_bos == adds
    assert ours.encode("a") == llama_style.encode("a")
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").adds_bos == adds
    assert load_tokenizer(tmp_path / "saved").fingerprint == ours.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs("a a").input_ids == [1] * adds + ours.encode("a a")


def test_a_config_can_ask_for_a_begin_that_the_post_processor_does_not_put(llama_style, tmp_path):
    named = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    ours = load_tokenizer(tmp_path)
    assert ours.adds_bos
    ours.save(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("a").input_ids == [1, *ours.encode("a")]


def test_a_tokenizer_with_one_token_for_both_ends_adds_none(ours):
    assert not ours.adds_bos
