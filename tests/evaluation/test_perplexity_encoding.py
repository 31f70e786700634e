"""What a tokenizer makes of a text: which tokens are scored, and the bytes and words they stand for."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from slm.data import Tokenizer, load_tokenizer
from slm.data.tokenizer import LOSSY_NOTE
from slm.data.vocabulary import plan_tokenizer
from slm.evaluation.encode import encode
from slm.evaluation.texts import Text
from tests.data.foreign import FOREIGN, KEEP_TEXT, llama_like, save

WIKI = "".join(
    f" = Name {i} = \n \n The {i} . 語🙂 \n \n = = Part = = \n \n More words here . \n \n" for i in range(25)
)
START = "^ = [^=].* = $"
CONTENT = st.lists(st.sampled_from([*"abc =.\n", "é", "語", "🙂", "  ", "the "]), min_size=2, max_size=60).map("".join)


def byte_level(*special: str, bos: str | None = None, adds_bos: bool = False) -> Tokenizer:
    """Byte-level BPE trained on WIKI, with an end of text and perhaps more."""
    plan = plan_tokenizer({"kind": "bpe", "vocab_size": 300, "train_bytes": None})
    inner = plan.make(lambda: iter([[WIKI]]))._inner
    inner.add_special_tokens(list(special))
    return Tokenizer("theirs", inner.to_str(), bos=bos, eos="<|endoftext|>", adds_bos=adds_bos)


def sentencepiece_like(*before: normalizers.Normalizer) -> Tokenizer:
    merges = [("\u2581", "a"), ("t", "h"), ("th", "e")]
    inner = llama_like([*"\u2581abcdefght=.i", "\u2581a", "th", "the"], merges, before)
    inner.add_special_tokens(["<s>", "</s>"])
    return Tokenizer("llama", inner.to_str(), bos="<s>", eos="</s>", adds_bos=True)


def running(content: str, document_start: str | None = None) -> Text:
    return Text(name="text", documents=(content,), separate=False, document_start=document_start)


def separate(*contents: str) -> Text:
    return Text(name="texts", documents=contents, separate=True)


BYTE_LEVEL, WITH_BOS, LLAMA = byte_level(), byte_level("<s>", bos="<s>", adds_bos=True), sentencepiece_like()


@given(content=CONTENT.filter(str.strip))
@pytest.mark.parametrize("tokenizer", [WITH_BOS, LLAMA], ids=["byte-level", "sentencepiece-like"])
def test_with_bos_the_scored_bytes_are_those_of_the_text(tokenizer: Tokenizer, content: str) -> None:
    stream = encode(running(content), tokenizer)
    assert stream.tokens[0] == tokenizer.bos_id
    assert stream.tokens[1:].tolist() == tokenizer.encode(content)
    assert stream.is_scored.tolist() == [False] + [True] * (len(stream.tokens) - 1)
    assert stream.token_bytes[stream.is_scored].sum() == len(content.encode())
    assert stream.words == len(content.split())
    assert stream.notes == ()


@given(content=CONTENT.filter(str.strip))
def test_without_bos_the_first_token_is_context_and_its_bytes_do_not_count(content: str) -> None:
    ids = BYTE_LEVEL.encode(content)
    if len(ids) < 2:
        return
    stream = encode(running(content), BYTE_LEVEL)
    assert stream.tokens.tolist() == ids
    assert not stream.is_scored[0]
    assert stream.token_bytes[stream.is_scored].sum() == len(content.encode()) - stream.token_bytes[0]
    assert "first token is only context" in stream.notes[0]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, LLAMA], ids=["byte-level", "sentencepiece-like"])
def test_a_part_of_a_text_has_the_bytes_and_words_of_that_part(tokenizer: Tokenizer) -> None:
    stream = encode(running(WIKI), tokenizer, bos="always", max_tokens=301)
    assert len(stream.tokens) == 302
    whole, part = WIKI.encode(), int(stream.token_bytes.sum())
    assert whole[part:].decode() == tokenizer.decode(tokenizer.encode(WIKI)[301:])
    assert stream.words == len(whole[:part].decode().split())
    assert "Only the first 301 tokens of the text are used." in stream.notes


def test_a_segmentation_is_of_where_the_text_is_cut_and_not_of_ids_or_bos() -> None:
    found = encode(running(WIKI), BYTE_LEVEL)
    assert encode(running(WIKI), WITH_BOS).segmentation == found.segmentation  # the same merges, and other ids
    assert encode(running(WIKI), WITH_BOS, bos="never").segmentation == found.segmentation
    assert encode(running(WIKI), LLAMA).segmentation != found.segmentation
    moved = found.token_bytes.copy()
    place = next(n for n in range(len(moved)) if moved[n] != moved[n + 1])
    moved[place : place + 2] = moved[place : place + 2][::-1]  # as many tokens and bytes, one cut elsewhere
    assert dataclasses.replace(found, token_bytes=moved).segmentation != found.segmentation


def test_bos_follows_the_tokenizers_own_rule_unless_told() -> None:
    quiet = byte_level("<s>", bos="<s>", adds_bos=False)
    first = {
        (name, bos): int(encode(running(WIKI), tokenizer, bos=bos).tokens[0])
        for name, tokenizer in {"adds": WITH_BOS, "quiet": quiet, "one token for both": BYTE_LEVEL}.items()
        for bos in ("auto", "always", "never")
    }
    text = BYTE_LEVEL.encode(WIKI)[0]
    marks = {("adds", "auto"): WITH_BOS.bos_id, ("adds", "always"): WITH_BOS.bos_id}
    marks |= {("quiet", "always"): quiet.bos_id, ("one token for both", "always"): BYTE_LEVEL.eos_id}
    assert first == dict.fromkeys(first, text) | marks


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, WITH_BOS, LLAMA], ids=["one mark", "begin and end", "llama"])
def test_separate_documents_are_framed_with_the_end_scored_at_no_bytes_and_bos_not_scored(tokenizer: Tokenizer) -> None:
    contents = ("the 語", "a", "🙂 b")
    stream = encode(separate(*contents), tokenizer)
    expected, scored = ([tokenizer.eos_id], [False]) if tokenizer is BYTE_LEVEL else ([], [])
    for content in contents:
        ids = tokenizer.encode(content)
        begin = [] if tokenizer is BYTE_LEVEL else [tokenizer.bos_id]
        expected += [*begin, *ids, tokenizer.eos_id]
        scored += [False] * len(begin) + [True] * (len(ids) + 1)
    assert stream.tokens.tolist() == expected
    assert stream.is_scored.tolist() == scored
    assert stream.token_bytes[stream.tokens == tokenizer.eos_id].sum() == 0
    for number, content in enumerate(contents):
        assert stream.token_bytes[stream.document == number].sum() == len(content.encode())
    assert stream.words is None
    assert encode(separate(*contents), tokenizer, max_tokens=4).tokens.tolist() == expected[:4]


def test_documents_inside_a_text_are_known_by_the_lines_that_begin_them() -> None:
    stream = encode(running("A preface.\n" + WIKI, START), BYTE_LEVEL)
    assert stream.document.max() == 24
    for number in (1, 13, 24):
        inside = BYTE_LEVEL.decode(stream.tokens[stream.document == number].tolist())
        assert inside.lstrip().startswith(f"= Name {number} =")
        assert inside.count("= Name") == 1
    assert (np.diff(stream.document) >= 0).all()
    assert encode(running(WIKI), BYTE_LEVEL).document.max() == 0


def test_a_normaliser_that_changes_the_text_is_said_to() -> None:
    stream = encode(running("the \ufb01 a the a"), sentencepiece_like(normalizers.NFKC()))  # the ligature of f and i
    assert stream.words is None
    # Two bytes instead of three, and one for the added space: that the sums agree must not hide it.
    assert stream.notes == (LOSSY_NOTE,)
    assert stream.token_bytes.sum() == 15


@pytest.mark.parametrize("name", FOREIGN)
def test_scored_bytes_are_those_of_the_text_whatever_the_tokenizer_does_to_it(name: str, tmp_path: Path) -> None:
    tokenizer, contents = load_tokenizer(save(name, tmp_path / name)), ("the 語", "A river", "🙂 b")
    stream = encode(separate(*contents), tokenizer)
    assert [int(stream.token_bytes[stream.document == number].sum()) for number in range(3)] == [7, 7, 6]
    assert (LOSSY_NOTE in stream.notes) == (name not in KEEP_TEXT)
    whole = encode(running(WIKI, START), tokenizer, bos="always")
    assert whole.token_bytes[whole.is_scored].sum() == len(WIKI.encode())
    # Documents lie where they are in the text, the third where its title does: to a token, which may hold a line break.
    before = int(whole.token_bytes[whole.document < 2].sum())
    assert WIKI.encode()[before:].lstrip(b" =\n").startswith(b"Name 2 =")


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (running("a"), {}, r"^text has a single token, which is not scored: give more text"),
        (running("abc"), {"max_tokens": 1}, r"^text has a single token"),
    ],
)
def test_what_leaves_nothing_to_score_is_refused(text: Text, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(text, BYTE_LEVEL, **settings)
