"""Tokenizers: byte-level BPE trained on the corpus, plain bytes, any released `tokenizer.json` or `tokenizer.model`.

Text never turns into a special token: "<|endoftext|>" inside a document is encoded as those thirteen characters.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

# Encoding uses all cores, and a process forked afterwards (a loader worker) must not use their dead threads. Setting
# the variable here and in the child says so without the library's warning at every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.register_at_fork(after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"))

import tokenizers  # noqa: E402

END = "<|endoftext|>"
# Names of the end-of-text token, most usual first, for a tokenizer.json that comes without a config to name it.
_USUAL_ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
"""What a tokenizer is read from, the first that is there."""
_WANTED = "a tokenizer.json, a tokenizer.model, or a folder that holds one"
LOSSY_NOTE = (
    "The tokenizer does not give the text back: it changes or loses some of it, so bits per byte is not comparable "
    "with that of tokenizers that keep all of it."
)
"""What a reader of bits per byte must know where `Tokenizer.keeps` is false."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


_MOST_IDS = 1 << 24  # released vocabularies have under a million; a table has a row for each id up to the largest


class Tokenizer:
    """A `tokenizers.Tokenizer` together with its begin and end tokens.

    `vocab_size` is the largest id + 1. `bos_id` is None, or equal to `eos_id`, where the tokenizer has one token for
    both. `adds_bos` says whether the tokenizer's own rule puts `bos_id` before a text, as Llama's do; `encode` never
    does. `fingerprint` identifies the content of tokenizer.json.
    """

    def __init__(
        self, name: str, content: str, *, bos: str | None = None, eos: str, adds_bos: bool | None = None
    ) -> None:
        """`content` is the text of tokenizer.json; its post-processor gives way to an `adds_bos` that contradicts it.

        Raises ValueError if it has no token `bos` or `eos`, or ids by the billion.
        """
        self.name = name
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._inner = tokenizers.Tokenizer.from_str(content)
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True
        self._vocabulary: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocabulary.values()) + 1
        if self.vocab_size > _MOST_IDS:
            raise ValueError(
                f"tokenizer {name} has the id {self.vocab_size - 1:,}, and ids must be below {_MOST_IDS:,}"
            )
        self.eos_id = self._id(eos)
        self.bos_id = None if bos is None else self._id(bos)
        begins = bos is not None and self._inner.encode("a", add_special_tokens=True).ids[:1] == [self.bos_id]
        self.adds_bos = begins if adds_bos is None else adds_bos and bos is not None
        # Written down in the tokenizer itself, which is all that transformers 5 goes by.
        self._content = content if self.adds_bos == begins else _beginning(content, bos, self.bos_id, self.adds_bos)

    def _id(self, token: str) -> int:
        if token not in self._vocabulary:
            raise ValueError(f"tokenizer {self.name} says {token!r} ends or begins a text, and has no such token")
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
        except Exception as error:  # the tokenizers library raises no class of its own
            raise ValueError(f"tokenizer {self.name} cannot encode the text ({error}): give another one") from None

    def decode(self, ids: list[int]) -> str:
        """The text of the ids; special tokens have none."""
        return self._inner.decode(ids, skip_special_tokens=True)

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for by itself: int64, shape (vocab_size,); 0 for special and unused ids.

        Over the ids of a text they need not sum to its length: a tokenizer may put a space before a text, spell spaces
        out in bytes, or change the text. `text_bytes` does.
        """
        return self._token_bytes.copy()

    @cached_property
    def _token_bytes(self) -> np.ndarray:
        count = len if self._is_byte_level() else _fallback_bytes
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, number in self._inner.get_vocab(with_added_tokens=False).items():
            sizes[number] = count(token)
        for number, added in self._inner.get_added_tokens_decoder().items():
            sizes[number] = 0 if added.special else len(added.content.encode())
        return sizes

    def keeps(self, text: str, ids: list[int]) -> bool:
        """Whether the ids of a text decode to it again, but for a space that was put before it."""
        return self.decode(ids) in (text, " " + text)

    def text_bytes(self, text: str, ids: list[int]) -> tuple[np.ndarray, bool]:
        """UTF-8 bytes of a text that each of its `ids` stands for, and whether they keep the text.

        The bytes, int64, sum to those of the text, to which a space that is put before it does not belong. Text that
        has no token of its own counts with the token after it, at the end with the last one.
        """
        sizes, num_bytes = self._token_bytes[ids], len(text.encode())
        kept = self.keeps(text, ids)
        if kept and len(ids) and sizes.sum() == num_bytes + 1 and sizes[0] > 0:
            sizes[0] -= 1
        # Of a text that was changed, sums that agree are chance.
        return (sizes if kept and sizes.sum() == num_bytes else self._bytes_by_offsets(text)), kept

    def _bytes_by_offsets(self, text: str) -> np.ndarray:
        """Of each token the bytes between where the one before it ends in the text and where it does."""
        offsets = self._inner.encode(text, add_special_tokens=False).offsets
        if not offsets:
            return np.zeros(0, dtype=np.int64)
        characters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        before = np.concatenate([[0], np.cumsum(sum((characters > last) for last in (-1, 0x7F, 0x7FF, 0xFFFF)))])
        stops = np.maximum.accumulate([stop for _, stop in offsets])
        stops[-1] = len(text)
        return np.diff(before[stops], prepend=0)

    def _is_byte_level(self) -> bool:
        # In such a vocabulary a character is one byte, whatever its own UTF-8 length.
        return '"ByteLevel"' in json.dumps(json.loads(self._content).get("decoder"))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and a tokenizer_config.json from which `transformers.AutoTokenizer` loads it."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{name: token for name, token in self._tokens.items() if token is not None},
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {
            "tokenizer.json": self._content,
            CONFIGS[0]: json.dumps(config, indent=1),
        }.items():
            temporary = folder / f".{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(folder / name)


def load_tokenizer(path: Path | str, *, name: str | None = None, asked_by: str = "tokenizer.path") -> Tokenizer:
    """A tokenizer.json or tokenizer.model (SentencePiece), or the folder of one; where both are, tokenizer.json.

    The config beside it names the begin and end tokens and says whether a text begins with the former. Raises
    ValueError, beginning with `asked_by`, when there is none, or when nothing says which token ends a text.
    """
    path = Path(path)
    file = _file_of(path) if path.is_dir() else path
    if file is None or not file.is_file():
        problem = "holds no tokenizer" if path.is_dir() else "does not exist"
        raise ValueError(f"{asked_by}={str(path)!r} {problem}; wants {_WANTED}")
    if file.stat().st_size < 1024 and file.read_bytes().startswith(LFS_POINTER):
        raise ValueError(f"{asked_by}: {file} is a pointer of git-lfs and not the file itself: run git lfs pull there")
    config = _config_beside(file.parent, asked_by)
    name = name or file.resolve().parent.name
    try:
        if file.suffix == ".model":
            from slm.data.sentencepiece_model import convert

            return convert(file, name, config, asked_by=asked_by)
        return _from_json(file, name, config, asked_by)
    except UnicodeDecodeError:
        raise ValueError(f"{asked_by}: {file} is not UTF-8 text; wants a tokenizer.json") from None


def _beginning(content: str, bos: str | None, bos_id: int | None, adds_bos: bool) -> str:
    """A tokenizer.json with the rule that a text begins with `bos`, or with none."""
    values = json.loads(content)
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second, other = {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}
    rule = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, second, other],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
    return json.dumps(values | {"post_processor": rule if adds_bos else None}, ensure_ascii=False)


def _file_of(folder: Path) -> Path | None:
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def _from_json(file: Path, name: str, config: Mapping[str, Any], asked_by: str) -> Tokenizer:
    content = file.read_text(encoding="utf-8")
    try:
        added = [token["content"] for token in json.loads(content)["added_tokens"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{asked_by}: {file} is not a tokenizer.json of the tokenizers library") from None
    eos = config.get("eos_token") or next((token for token in _USUAL_ENDS if token in added), None)
    if eos is None:
        raise ValueError(
            f"{asked_by}: nothing in {file.parent} says which token ends a text; wants eos_token in {CONFIGS[0]}"
        )
    try:
        return Tokenizer(name, content, bos=config.get("bos_token"), eos=eos, adds_bos=config.get("add_bos_token"))
    except ValueError as error:
        raise ValueError(f"{asked_by}: {error}") from None
    except Exception as error:  # the tokenizers library raises no class of its own
        raise ValueError(f"{asked_by}: {file} cannot be read by the tokenizers library ({error})") from None


def _config_beside(folder: Path, asked_by: str) -> dict[str, Any]:
    """`bos_token` and `eos_token` as text and `add_bos_token` as a bool, each where a config in `folder` has it."""
    found: dict[str, Any] = {}
    for name in CONFIGS:
        if not (folder / name).is_file():
            continue
        try:
            config = dict(json.loads((folder / name).read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"{asked_by}: {folder / name} is not a JSON object; restore it") from None
        for role in ("bos_token", "eos_token"):
            token = config.get(role)
            if token and role not in found:
                found[role] = token.get("content") if isinstance(token, dict) else token
        if isinstance(config.get("add_bos_token"), bool):
            found["add_bos_token"] = config["add_bos_token"]
    return found


def _fallback_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("\u2581", " ").encode())  # U+2581 is how SentencePiece writes a space
