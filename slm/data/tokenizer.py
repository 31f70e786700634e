"""A tokenizer that adds begin and end tokens to documents, and tells how many bytes each token stands for.

Text never becomes a special token: "<|endoftext|>" inside a document is encoded as thirteen ordinary characters.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.chat_template import TEMPLATE_FILE
from slm.runtime.files import write_atomically, write_json

# Encoding uses threads on all cores. A process that is forked later, such as a loader worker, has no such threads and
# must encode without them. Setting the variable here and in the child avoids the library's warning at every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.register_at_fork(after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"))

import tokenizers  # noqa: E402

CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
LOSSY_NOTE = (
    "The tokenizer changes or loses some of the text, so its bits per byte cannot be compared with the bits per byte "
    "of tokenizers that keep all text."
)
"""A warning for readers of bits per byte if `Tokenizer.keeps` is false."""
_MAX_IDS = 1 << 24  # released vocabularies have under a million ids; each id up to the largest is an embedding row


class Tokenizer:
    """A `tokenizers.Tokenizer` together with its begin and end tokens.

    - `content` is the text of tokenizer.json, `vocabulary` the id of each token, and `vocab_size` the largest id + 1.
    - `bos_id` begins a text and `eos_id` ends it. If one token does both, `bos_id` is None or equal to `eos_id`.
    - `separator_id` begins each document in a stream: `bos_id`, or, if this is None, the previous document's `eos_id`.
    - `adds_bos` says whether tokenizer.json puts `bos_id` before a text, as Llama's do; `encode` never does.
    - `special_tokens` are the texts of the begin and end tokens (the former ""), as arguments of `render`.
    - `chat_template` turns conversations into text (`slm.data.chat_template`); None if the tokenizer has none.
    """

    def __init__(
        self, name: str, content: str, *, bos: str | None = None, eos: str, adds_bos: bool | None = None
    ) -> None:
        """Read `content`, the text of tokenizer.json; its post-processor is replaced if `adds_bos` contradicts it.

        Raises ValueError if the vocabulary lacks `bos` or `eos`, or has an id of `_MAX_IDS` or more.
        """
        self.name = name
        self.chat_template: str | None = None
        self.special_tokens: dict[str, Any] = {"bos_token": bos or "", "eos_token": eos}
        self._inner = tokenizers.Tokenizer.from_str(content)
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True
        self.vocabulary: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self.vocabulary.values()) + 1
        if self.vocab_size > _MAX_IDS:
            raise ValueError(f"tokenizer {name} has the id {self.vocab_size - 1:,}; ids must be below {_MAX_IDS:,}")
        self.eos_id = self._id(eos)
        self.bos_id = None if bos is None else self._id(bos)
        self.separator_id = self.eos_id if self.bos_id is None else self.bos_id
        self.has_own_bos = self.separator_id != self.eos_id
        processor_adds = bos is not None and self._inner.encode("a", add_special_tokens=True).ids[:1] == [self.bos_id]
        self.adds_bos = processor_adds if adds_bos is None else (adds_bos and bos is not None)
        self.content = content
        if self.adds_bos != processor_adds:  # the post-processor is the only rule that transformers 5 follows
            self.content = _with_post_processor(content, bos if self.adds_bos else None, self.bos_id)

    def _id(self, token: str) -> int:
        if token not in self.vocabulary:
            raise ValueError(f"tokenizer {self.name} names {token!r} as begin or end token, but has no such token")
        return self.vocabulary[token]

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of tokenizer.json, with sorted keys."""
        canonical = json.dumps(json.loads(self.content), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without begin and end. Raises ValueError if the vocabulary cannot express it."""
        with self._readable_errors():
            return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Encode each text as `encode` does, on all cores."""
        with self._readable_errors():
            return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the tokenizers library has no error class of its own
            raise ValueError(f"tokenizer {self.name} cannot encode the text ({error}): give another one") from None

    def encode_rendered(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a rendered conversation, whose special tokens count as such, and where each begins in it.

        The ids are those of transformers' `apply_chat_template`: without a begin or end token of their own.
        """
        with self._readable_errors():
            encoding = self._inner_with_special_tokens.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def keeps_rendered(self, text: str, ids: list[int]) -> bool:
        """Whether the `ids` of a rendered conversation decode to it, apart from a space before it."""
        return self._inner.decode(ids, skip_special_tokens=False) in (text, " " + text)

    @cached_property
    def special_texts(self) -> dict[int, str]:
        """The text of each special token, by id."""
        return {token: one.content for token, one in self._inner.get_added_tokens_decoder().items() if one.special}

    @cached_property
    def _inner_with_special_tokens(self) -> tokenizers.Tokenizer:
        # Without its post-processor, which may move the start of a token behind its spaces.
        inner = tokenizers.Tokenizer.from_str(json.dumps(json.loads(self.content) | {"post_processor": None}))
        inner.no_padding()
        inner.no_truncation()
        return inner

    def decode(self, ids: list[int]) -> str:
        """Return the text of the ids; special tokens are skipped."""
        return self._inner.decode(ids, skip_special_tokens=True)

    @property
    def ids_before_stream(self) -> list[int]:
        """The ids before the first document of a stream, so that the first token of the text has a predecessor."""
        return [] if self.has_own_bos else [self.eos_id]

    def with_begin_and_end(self, ids: list[int]) -> list[int]:
        """Return the ids of a document between BOS and EOS, or only before EOS if one token does both."""
        begin = [self.separator_id] if self.has_own_bos else []
        return [*begin, *ids, self.eos_id]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for by itself: int64, shape (vocab_size,); 0 for special and unused ids.

        Their sum over the ids of a text may differ from the length of the text, because a tokenizer may put a space
        before the text, write spaces as bytes, or change the text. `text_bytes` returns bytes with the right sum.
        """
        # In a byte-level vocabulary a character is one byte, whatever its own UTF-8 length.
        is_byte_level = '"ByteLevel"' in json.dumps(json.loads(self.content).get("decoder"))
        byte_lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, token_id in self._inner.get_vocab(with_added_tokens=False).items():
            byte_lengths[token_id] = len(token) if is_byte_level else _sentencepiece_bytes(token)
        for token_id, added in self._inner.get_added_tokens_decoder().items():
            byte_lengths[token_id] = 0 if added.special else len(added.content.encode())
        byte_lengths.flags.writeable = False
        return byte_lengths

    def keeps(self, text: str, ids: list[int]) -> bool:
        """Whether the ids of a text decode to the text, apart from a space that the tokenizer put before it."""
        return self.decode(ids) in (text, " " + text)

    def text_bytes(self, text: str, ids: list[int]) -> tuple[np.ndarray, bool]:
        """Return the UTF-8 bytes of a text that each of its `ids` stands for (int64), and whether it is kept (`keeps`).

        The bytes sum to the length of the text. A space that the tokenizer puts before the text does not count.
        Characters without a token count for the next token, or at the end of the text for the last token.
        """
        byte_lengths = self.token_bytes[ids]
        num_bytes = len(text.encode())
        is_kept = self.keeps(text, ids)
        if is_kept and len(ids) and byte_lengths.sum() == num_bytes + 1 and byte_lengths[0] > 0:
            byte_lengths[0] -= 1  # the space before the text
        if is_kept and byte_lengths.sum() == num_bytes:
            return byte_lengths, True
        return self._bytes_by_offsets(text), is_kept  # for a changed text, an equal sum is chance

    def _bytes_by_offsets(self, text: str) -> np.ndarray:
        """Return for each token the bytes of the text from the end of the previous token to the token's own end."""
        offsets = self._inner.encode(text, add_special_tokens=False).offsets
        if not offsets:
            return np.zeros(0, dtype=np.int64)
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        # A code point takes one byte in UTF-8, and one more above each of 0x7F, 0x7FF and 0xFFFF.
        utf8_sizes = sum(code_points > limit for limit in (-1, 0x7F, 0x7FF, 0xFFFF))
        bytes_before = np.concatenate([[0], np.cumsum(utf8_sizes)])
        stops = np.maximum.accumulate([stop for _, stop in offsets])  # ends must not decrease
        stops[-1] = len(text)
        return np.diff(bytes_before[stops], prepend=0)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and a tokenizer_config.json that `transformers.AutoTokenizer` can load."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= {name: token for name, token in self.special_tokens.items() if token}
        write_atomically(folder / "tokenizer.json", self.content)
        if self.chat_template is not None:
            write_atomically(folder / TEMPLATE_FILE, self.chat_template)
        write_json(folder / CONFIGS[0], config)


def _with_post_processor(content: str, bos: str | None, bos_id: int | None) -> str:
    """Return tokenizer.json with a post-processor that puts `bos` before each text, or without one if `bos` is None."""

    def with_bos(sequence: str, type_id: int) -> list[dict[str, dict[str, object]]]:
        return [{"SpecialToken": {"id": bos, "type_id": type_id}}, {"Sequence": {"id": sequence, "type_id": type_id}}]

    post_processor: dict[str, object] | None = None
    if bos is not None:
        post_processor = {
            "type": "TemplateProcessing",
            "single": with_bos("A", 0),
            "pair": with_bos("A", 0) + with_bos("B", 1),
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
        }
    return json.dumps(json.loads(content) | {"post_processor": post_processor}, ensure_ascii=False)


def _sentencepiece_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):  # <0x0A> stands for one byte
        return 1
    return len(token.replace("\u2581", " ").encode())  # U+2581 is how SentencePiece writes a space
