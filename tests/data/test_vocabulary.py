import json
from collections import Counter
from itertools import pairwise

import pytest
from tokenizers import pre_tokenizers

from slm.data.vocabulary import byte_tokenizer, plan_tokenizer

TRAIN = """
import json, sys
from slm.data.vocabulary import byte_tokenizer, plan_tokenizer
texts = json.loads(sys.argv[1])
config = {"kind": "bpe", "vocab_size": 600, "train_bytes": None}
print(plan_tokenizer(config).make(lambda: iter([texts])).fingerprint)
"""


def train(texts, **changes):
    config = {"kind": "bpe", "vocab_size": 600, "train_bytes": None, **changes}
    return plan_tokenizer(config).make(lambda: iter([[text] for text in texts]))


def test_bytes_are_their_own_ids():
    tokenizer = byte_tokenizer()
    text = "".join(map(chr, range(0x250))) + "語🙂"
    assert tokenizer.encode(text) == list(text.encode())
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)


def test_byte_characters_are_those_of_the_tokenizers_library():
    assert set(byte_tokenizer().vocabulary) == {*pre_tokenizers.ByteLevel.alphabet(), "<|endoftext|>"}


def test_the_first_merge_is_the_most_frequent_pair_of_bytes():
    texts = ["abab abab abab", "zq zq"]
    pairs = Counter()
    for text in texts:
        for word in text.replace(" ", " |").split("|"):  # each word with the space before it
            pairs.update(pairwise(word))
    expected, _ = pairs.most_common(1)[0]
    merges = json.loads(train(texts, vocab_size=258).content)["model"]["merges"]
    assert merges == [list(expected)]


def test_training_is_the_same_on_any_number_of_threads(python, paragraphs):
    texts = json.dumps(paragraphs)
    answers = [python(TRAIN, texts, RAYON_NUM_THREADS=threads).communicate()[0] for threads in ("1", "2", "2")]
    assert len(set(answers)) == 1
    assert len(answers[0].strip()) == 16


def test_a_small_text_gives_a_smaller_vocabulary_than_asked(paragraphs):
    assert train(paragraphs, vocab_size=300).vocab_size == 300
    assert 257 < train(["one two two"], vocab_size=600).vocab_size < 280


def test_no_more_text_is_read_than_train_bytes():
    def texts():
        yield ["aa" * 10]
        yield ["bb" * 10]
        raise AssertionError("read too far")

    config = {"kind": "bpe", "vocab_size": 300, "train_bytes": 30}
    assert plan_tokenizer(config).make(texts).vocab_size > 257


def test_a_plan_is_named_by_what_changes_its_tokenizer(tmp_path):
    train(["text"]).save(tmp_path)
    configs = [
        {"kind": "bytes"},
        {"kind": "file", "path": str(tmp_path), "revision": None},
        *({"kind": "bpe", "vocab_size": size, "train_bytes": limit} for size in (300, 400) for limit in (None, 9)),
    ]
    keys = [json.dumps(plan_tokenizer(config).key) for config in configs]
    assert len(set(keys)) == len(keys)
    assert keys == [json.dumps(plan_tokenizer(config).key) for config in configs]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "bpe", "vocab_size": 256}, r"^tokenizer\.vocab_size=256 must be at least 257"),
        ({"kind": "bpe", "train_bytes": 0}, r"^tokenizer\.train_bytes=0 must be positive"),
        ({"kind": "words"}, r"^tokenizer\.kind='words' is not one of bpe, bytes, file"),
        ({"kind": "file", "path": "???"}, r"^tokenizer\.path is not set"),
        ({"kind": "file", "path": "no/such/folder"}, r"^tokenizer\.path='no/such/folder' does not exist"),
        ({"kind": "file", "path": "no/tokenizer.json"}, r"^tokenizer\.path=.* does not exist"),
    ],
)
def test_options_that_make_no_tokenizer_are_refused(config, message):
    defaults = {"vocab_size": 300, "train_bytes": None} if config["kind"] == "bpe" else {"revision": None}
    with pytest.raises(ValueError, match=message):
        plan_tokenizer(defaults | config)
