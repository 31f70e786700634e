"""A tokenizer with its begin and end tokens, how documents are framed by them, and the bytes that tokens stand for.

Text never turns into a special token: "<|endoftext|>" inside a document is encoded as those thirteen characters.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from slm.runtime.files import write_atomically, write_json

# Encoding uses all cores, and a process forked afterwards (a loader worker) must not use their dead threads. Setting
# the variable here and in the child does so without the library's warning at every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.register_at_fork(after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"))

import tokenizers  # noqa: E402

CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
LOSSY_NOTE = (
    "The tokenizer does not give the text back: it changes or loses some of it, so bits per byte is not comparable "
    "with that of tokenizers that keep all of it."
)
"""What a reader of bits per byte must know where `Tokenizer.keeps` is false."""
_MAX_IDS = 1 << 24  # released vocabularies have under a million; a table has a row for each id up to the largest


class Tokenizer:
    """A `tokenizers.Tokenizer` together with its begin and end tokens.

    `vocab_size` is the largest id + 1. `bos_id` is None, or equal to `eos_id`, where the tokenizer has one token for
    both. `adds_bos` says whether the tokenizer's own rule puts `bos_id` before a text, as Llama's do; `encode` never
    does. `separator_id` is the token that a document in a stream begins with; where one token does both, it also ends
    the document before. `fingerprint` identifies the content of tokenizer.json.
    """

    def __init__(
        self, name: str, content: str, *, bos: str | None = None, eos: str, adds_bos: bool | None = None
    ) -> None:
        """`content` is the text of tokenizer.json; an `adds_bos` that contradicts its post-processor replaces that.

        Raises ValueError if there is no token `bos` or `eos`, or an id above `_MAX_IDS`.
        """
        self.name = name
        self._special_tokens = {"bos_token": bos, "eos_token": eos}
        self._inner = tokenizers.Tokenizer.from_str(content)
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True
        self._vocabulary: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocabulary.values()) + 1
        if self.vocab_size > _MAX_IDS:
            raise ValueError(f"tokenizer {name} has the id {self.vocab_size - 1:,}; ids must be below {_MAX_IDS:,}")
        self.eos_id = self._id(eos)
        self.bos_id = None if bos is None else self._id(bos)
        self.separator_id = self.eos_id if self.bos_id is None else self.bos_id
        self.has_own_bos = self.separator_id != self.eos_id
        processor_adds = bos is not None and self._inner.encode("a", add_special_tokens=True).ids[:1] == [self.bos_id]
        self.adds_bos = processor_adds if adds_bos is None else adds_bos and bos is not None
        self._content = content
        if self.adds_bos != processor_adds:  # the post-processor is the only rule that transformers 5 follows
            self._content = _with_rule(content, bos if self.adds_bos else None, self.bos_id)

    def _id(self, token: str) -> int:
        if token not in self._vocabulary:
            raise ValueError(f"tokenizer {self.name} names {token!r} as begin or end token, but has no such token")
        return self._vocabulary[token]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical tokenizer.json, shortened."""
        canonical = json.dumps(json.loads(self._content), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without begin and end. Raises ValueError where there is no token for it."""
        with self._one_sentence():
            return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, on all cores. Raises ValueError where there is no token for one."""
        with self._one_sentence():
            return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the tokenizers library has no error class of its own
            raise ValueError(f"tokenizer {self.name} cannot encode the text ({error}): give another one") from None

    def decode(self, ids: list[int]) -> str:
        """The text of the ids; special tokens have none."""
        return self._inner.decode(ids, skip_special_tokens=True)

    @property
    def opening(self) -> list[int]:
        """Ids before the first document of a stream, which starts with a special token so that all text is scored."""
        return [] if self.has_own_bos else [self.eos_id]

    def framed(self, ids: list[int]) -> list[int]:
        """[BOS] document [EOS], or document [EOS] where one token does both."""
        return [*([self.separator_id] if self.has_own_bos else []), *ids, self.eos_id]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for by itself: int64, shape (vocab_size,); 0 for special and unused ids.

        Over the ids of a text they need not sum to its length: a tokenizer may put a space before a text, spell spaces
        out in bytes, or change the text. Those of `text_bytes` do.
        """
        # In a byte-level vocabulary a character is one byte, whatever its own UTF-8 length.
        is_byte_level = '"ByteLevel"' in json.dumps(json.loads(self._content).get("decoder"))
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, number in self._inner.get_vocab(with_added_tokens=False).items():
            sizes[number] = len(token) if is_byte_level else _fallback_bytes(token)
        for number, added in self._inner.get_added_tokens_decoder().items():
            sizes[number] = 0 if added.special else len(added.content.encode())
        sizes.flags.writeable = False
        return sizes

    def keeps(self, text: str, ids: list[int]) -> bool:
        """Whether the ids of a text decode to it again, except for a space that was put before it."""
        return self.decode(ids) in (text, " " + text)

    def text_bytes(self, text: str, ids: list[int]) -> tuple[np.ndarray, bool]:
        """UTF-8 bytes of a text that each of its `ids` stands for (int64), and whether they keep the text.

        The bytes sum to those of the text, without a space that the tokenizer puts before it. Text without a token of
        its own counts with the token after it, at the end with the last one.
        """
        sizes, num_bytes = self.token_bytes[ids], len(text.encode())
        kept = self.keeps(text, ids)
        if kept and len(ids) and sizes.sum() == num_bytes + 1 and sizes[0] > 0:
            sizes[0] -= 1
        # Where the text was changed, sums that agree are chance.
        return (sizes if kept and sizes.sum() == num_bytes else self._bytes_by_offsets(text)), kept

    def _bytes_by_offsets(self, text: str) -> np.ndarray:
        """For each token, the bytes from where the token before it ends in the text to where it ends."""
        offsets = self._inner.encode(text, add_special_tokens=False).offsets
        if not offsets:
            return np.zeros(0, dtype=np.int64)
        characters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        # Bytes before each character: a code point above each of these takes one byte more in UTF-8.
        before = np.concatenate([[0], np.cumsum(sum((characters > last) for last in (-1, 0x7F, 0x7FF, 0xFFFF)))])
        stops = np.maximum.accumulate([stop for _, stop in offsets])
        stops[-1] = len(text)
        return np.diff(before[stops], prepend=0)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and a tokenizer_config.json from which `transformers.AutoTokenizer` loads it."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= {name: token for name, token in self._special_tokens.items() if token is not None}
        write_atomically(folder / "tokenizer.json", self._content)
        write_json(folder / CONFIGS[0], config)


def _with_rule(content: str, bos: str | None, bos_id: int | None) -> str:
    """A tokenizer.json whose post-processor puts `bos`, if there is one, before a text, and before each of a pair."""

    def begun(sequence: str, type_id: int) -> list[dict[str, dict[str, object]]]:
        return [{"SpecialToken": {"id": bos, "type_id": type_id}}, {"Sequence": {"id": sequence, "type_id": type_id}}]

    rule = bos and {
        "type": "TemplateProcessing",
        "single": begun("A", 0),
        "pair": [*begun("A", 0), *begun("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
    return json.dumps(json.loads(content) | {"post_processor": rule}, ensure_ascii=False)


def _fallback_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("\u2581", " ").encode())  # U+2581 is how SentencePiece writes a space
