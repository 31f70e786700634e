import hashlib
import tempfile
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data import documents as module
from slm.data.documents import left_out_notes, read_documents, text_hash, training_hashes, write_documents
from slm.data.sources import SOURCES, Source

TEXTS = st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=40, unique=True)


@pytest.fixture(autouse=True, scope="module")
def listed():
    """A source of documents that the config lists, in parts of `part_size` documents."""

    def parts(data):
        rows, size = data["documents"], data["part_size"]
        return [{**data, "documents": rows[start : start + size]} for start in range(0, max(1, len(rows)), size)]

    SOURCES["listed"] = Source(key=lambda data: None, documents=lambda part: iter(part["documents"]), parts=parts)
    yield
    del SOURCES["listed"]


def write(folder, documents, fraction, part_size=1000):
    """Write documents, or texts whose split is not given; returns the manifest's facts."""
    rows = [(row, None) if isinstance(row, str) else row for row in documents]
    data = {"name": "mine", "source": "listed", "val_fraction": fraction, "documents": rows, "part_size": part_size}
    return write_documents(folder, data)


def read(folder, split):
    return list(chain.from_iterable(read_documents(folder, split)))


def split_texts(texts, fraction, part_size=1000):
    """(training texts, validation texts, facts), as they are read back."""
    with tempfile.TemporaryDirectory() as folder:
        facts = write(Path(folder), texts, fraction, part_size)
        return read(Path(folder), "train"), read(Path(folder), "val"), facts


def position(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


@given(texts=TEXTS, fraction=st.floats(0.01, 0.9), part_size=st.integers(5, 50))
@settings(deadline=None, max_examples=20)
def test_the_split_is_that_of_the_sha256_and_else_of_the_smallest(texts, fraction, part_size):
    chosen = {text for text in texts if position(text) < fraction} or {min(texts, key=position)}
    if len(chosen) == len(texts):
        return
    train, val, facts = split_texts(texts, fraction, part_size)
    assert train == [text for text in texts if text not in chosen]
    assert val == [text for text in texts if text in chosen]
    for split, read_back in (("train", train), ("val", val)):
        assert facts["splits"][split] == {"documents": len(read_back), "bytes": len("".join(read_back).encode())}


def test_the_fingerprint_is_that_of_the_texts_in_order_however_they_are_divided(paragraphs):
    facts = [split_texts(paragraphs, 0.1, part_size)[2] for part_size in (1000, 300, 70, 29)]
    assert facts[1:] == facts[:-1]
    others = [paragraphs[1:], paragraphs[:-1], paragraphs[::-1], [paragraphs[0] + " ", *paragraphs[1:]]]
    prints = [facts[0]["fingerprint"], *(split_texts(other, 0.1)[2]["fingerprint"] for other in others)]
    assert len(set(prints)) == 5
    given = [(text, "val" if position(text) < 0.1 else "train") for text in paragraphs]
    given.sort(key=lambda row: row[1], reverse=True)
    assert split_texts(given, None)[2] == facts[0]


def test_many_files_and_groups_are_read_back_in_order(tmp_path, paragraphs, monkeypatch):
    monkeypatch.setattr(module, "_GROUP_BYTES", 3000)
    monkeypatch.setattr(module, "_FILE_GROUPS", 2)
    write(tmp_path, paragraphs, 0.1)
    assert read(tmp_path, "train") == [text for text in paragraphs if position(text) >= 0.1]
    files = list(tmp_path.glob("train-*.parquet"))
    assert len(files) == -(-sum(len(text.encode()) for text in read(tmp_path, "train")) // 6000)
    trained = [text_hash(text) for text in read(tmp_path, "train")]
    assert list(chain.from_iterable(part.tolist() for part in training_hashes(tmp_path))) == trained


def test_training_documents_that_are_in_the_given_validation_set_are_dropped_and_counted(tmp_path):
    train = ["own", "held\n\n", " ", "also held", "also held, and more"]
    held = [("held", "val"), (" also held\n", "val")]
    facts = write(tmp_path, [*held, *((text, "train") for text in train)], None)
    assert read(tmp_path, "train") == ["own", "also held, and more"]
    assert read(tmp_path, "val") == ["held", " also held\n"]
    assert facts["left_out"] == {"also_in_validation": 2, "without_text": 1}
    assert left_out_notes(facts["left_out"]) == [
        "left out 2 documents for training that are also in the validation set",
        "left out 1 document without text (blank, null or missing)",
    ]


ONE_TEXT = [("held", "val"), ("held", "train")]


@pytest.mark.parametrize(
    ("documents", "fraction", "message"),
    [
        (ONE_TEXT, None, "data=mine: all 1 training documents are also in the validation set; give"),
        ([], 0.1, r"data=mine: the documents hold no text; .*data\.paths"),
        (["", " \n\t"], 0.1, r"data=mine: the documents hold no text; .*data\.paths"),
        (["one"], 0.01, "data=mine: there are 1 training and 0 validation documents"),
        *((["a", "b"], share, r"data\.val_fraction=.* must be between 0 and 1") for share in (0, 1, -0.1, 1.5, None)),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path, documents, fraction, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        write(tmp_path, documents, fraction)


def test_positions_are_uniform():
    positions = sorted(module._unit_hash(hashlib.sha256(str(i).encode()).digest()) for i in range(5_000))
    distance = max(abs(position - (i + 0.5) / 5_000) for i, position in enumerate(positions))
    assert distance < 1.95 / 5_000**0.5  # Kolmogorov-Smirnov at p = 0.001
