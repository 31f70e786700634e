"""Tokenizers whose tokens' own bytes do not add up to the text that they stand for."""

import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

SPACE = "\u2581"  # how SentencePiece writes a space
LETTERS = string.ascii_lowercase + "."


def llama_like(pieces: Iterable[str], merges: Sequence = (), before: Sequence = (), after: Sequence = ()) -> Tokenizer:
    """Llama 2's kind: U+2581 for a space, one before the text, bytes for what is not in the vocabulary.

    `before` are further normalizers, `after` further decoders.
    """
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    inner = Tokenizer(models.BPE(numbers, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    inner.normalizer = normalizers.Sequence([*before, *steps])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, *after])
    return inner


def byte_level(*, add_prefix_space: bool = False) -> Tokenizer:
    """Bytes; with `add_prefix_space`, a space before a text that has none."""
    alphabet = {c: number for number, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(alphabet, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space, use_regex=add_prefix_space)
    inner.decoder = decoders.ByteLevel()
    return inner


def pieces_of_words() -> Tokenizer:
    """BERT's kind: lower case, no spaces, ## before what continues a word."""
    words = ["[UNK]", "the", "cat", "river", "##s", "a", *("##" + letter for letter in string.ascii_lowercase)]
    numbers = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(["[UNK]"])
    return inner


def knows_nothing() -> Tokenizer:
    """One token for all that there is."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<unk>"])
    return inner


FOREIGN = {
    # Without the piece for a space, which takes three bytes; decoded as that piece, or as a space.
    "spells spaces out": llama_like(LETTERS),
    "spells spaces out and keeps them": llama_like(LETTERS, after=[decoders.Replace(SPACE, " ")]),
    "puts a space first": byte_level(add_prefix_space=True),
    "pieces of words": pieces_of_words(),
    "knows nothing": knows_nothing(),
}
KEEP_TEXT = ("spells spaces out and keeps them", "puts a space first")
"""Those that give any text back, but for a space before it."""


def save(name: str, folder: Path) -> Path:
    """The folder of one of `FOREIGN`, which ends a text by </s>."""
    return save_as(Tokenizer.from_str(FOREIGN[name].to_str()), folder, "</s>")


def save_as(inner: Tokenizer, folder: Path, *special: str, **config: object) -> Path:
    """Write tokenizer.json with special tokens added, and a tokenizer_config.json where there is a `config`."""
    inner.add_special_tokens(list(special))
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
