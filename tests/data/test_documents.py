import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.data.documents import (
    left_out_notes,
    read_documents,
    split_documents,
    text_hash,
    text_position,
    training_hashes,
    write_documents,
)
from tests.seeds import seeded

TEXTS = st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=40, unique=True)


def undecided(texts):
    return [(text, None) for text in texts]


@given(texts=TEXTS, fraction=st.floats(0.01, 0.99), seed=st.integers())
def test_the_split_does_not_change_when_documents_are_reordered(texts, fraction, seed):
    shuffled = random.Random(seeded(seed)).sample(texts, len(texts))
    assert dict(split_documents(undecided(texts), fraction)) == dict(split_documents(undecided(shuffled), fraction))


@given(texts=TEXTS, fraction=st.floats(0.01, 0.99))
def test_the_split_is_that_of_the_sha256_and_else_of_the_smallest(texts, fraction):
    def position(text):
        return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12

    chosen = {text for text in texts if position(text) < fraction} or {min(texts, key=position)}
    split = list(split_documents(undecided(texts), fraction))
    assert [text for text, _ in split] == texts
    assert {text for text, side in split if side == "val"} == chosen


def test_about_the_asked_share_is_validation():
    split = split_documents(undecided(map(str, range(20_000))), 0.05)
    share = sum(side == "val" for _, side in split) / 20_000
    assert share == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 20_000) ** 0.5)


def test_a_document_that_is_removed_moves_no_other():
    texts = [str(i) for i in range(500)]
    before = dict(split_documents(undecided(texts), 0.1))
    after = dict(split_documents(undecided(texts[100:]), 0.1))
    assert after == {text: before[text] for text in texts[100:]}


def test_a_split_that_the_source_gives_is_used():
    documents = [("a", "train"), ("b", "val"), ("c", "train")]
    assert list(split_documents(documents, None)) == [("a", "train"), ("b", "val"), ("c", "train")]


def test_a_source_that_gives_splits_is_not_held_in_memory():
    def endless():
        while True:
            yield ("text", "train")

    assert next(split_documents(endless(), None)) == ("text", "train")


def test_positions_are_uniform():
    positions = sorted(text_position(str(i)) for i in range(5_000))
    distance = max(abs(position - (i + 0.5) / 5_000) for i, position in enumerate(positions))
    assert distance < 1.95 / 5_000**0.5  # Kolmogorov-Smirnov at p = 0.001


def test_documents_are_read_back_as_written_with_their_fingerprint(tmp_path, paragraphs):
    facts = write_documents(tmp_path, undecided(paragraphs), 0.1, name="x")
    fingerprint = hashlib.sha256()
    for text, split in split_documents(undecided(paragraphs), 0.1):
        fingerprint.update(f"{split} {len(text.encode())}\n{text}".encode())
    assert facts["fingerprint"] == fingerprint.hexdigest()[:16]
    for split in ("train", "val"):
        texts = [text for batch in read_documents(tmp_path, split) for text in batch]
        assert texts == [text for text, side in split_documents(undecided(paragraphs), 0.1) if side == split]
        assert facts["splits"][split] == {"documents": len(texts), "bytes": len("".join(texts).encode())}
    trained = [text for text, side in split_documents(undecided(paragraphs), 0.1) if side == "train"]
    assert training_hashes(tmp_path).tolist() == [text_hash(text) for text in trained]


def test_training_documents_that_are_in_the_given_validation_set_are_dropped_and_counted(tmp_path):
    source = [
        ("held", "val"),
        (" also held\n", "val"),
        ("own", "train"),
        ("held\n\n", "train"),
        (" ", "train"),
        ("also held", "train"),
        ("also held, and more", "train"),
    ]
    facts = write_documents(tmp_path, source, None, name="x")
    assert next(read_documents(tmp_path, "train")) == ["own", "also held, and more"]
    assert next(read_documents(tmp_path, "val")) == ["held", " also held\n"]
    assert facts["left_out"] == {"also_in_validation": 2, "without_text": 1}
    assert left_out_notes(facts["left_out"]) == [
        "left out 2 documents for training that are also in the validation set",
        "left out 1 document without text (blank, null or missing)",
    ]
    entries = "train 3\nowntrain 19\nalso held, and moreval 4\nheldval 11\n also held\n"  # training first
    assert facts["fingerprint"] == hashlib.sha256(entries.encode()).hexdigest()[:16]


def test_training_on_nothing_but_the_validation_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^data=mine: all 1 training documents are also in the validation set; give"):
        write_documents(tmp_path, [("held", "val"), ("held", "train")], None, name="mine")


@pytest.mark.parametrize("texts", [[], ["", " \n\t"]])
def test_no_text_is_an_error(tmp_path, texts):
    with pytest.raises(ValueError, match=r"^data=mine: the documents hold no text; .*data\.paths"):
        write_documents(tmp_path, undecided(texts), 0.1, name="mine")


def test_a_single_document_leaves_no_validation(tmp_path):
    with pytest.raises(ValueError, match=r"^data=mine: there are 1 training and 0 validation documents"):
        write_documents(tmp_path, undecided(["one"]), 0.01, name="mine")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, None])
def test_a_fraction_outside_0_to_1_is_an_error(fraction):
    with pytest.raises(ValueError, match=r"^data\.val_fraction=.* must be between 0 and 1"):
        list(split_documents(undecided(["a", "b"]), fraction))
