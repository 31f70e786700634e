"""Tokenizers whose tokens' own bytes do not add up to the text that they stand for."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

SPACE = "\u2581"  # how SentencePiece writes a space


def spells_spaces_out(*, keeps: bool = False) -> tokenizers.Tokenizer:
    """Llama 2's kind without the piece for a space, which takes three bytes; decoded as that piece, or as a space."""
    letters = "abcdefghijklmnopqrstuvwxyz."
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    inner = tokenizers.Tokenizer(models.BPE(numbers, [], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(SPACE, " ")]
    inner.decoder = decoders.Sequence(steps if keeps else steps[:-1])
    return inner


def byte_level(*, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """Bytes; with `add_prefix_space`, a space before a text that has none."""
    alphabet = {c: number for number, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = tokenizers.Tokenizer(models.BPE(alphabet, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space, use_regex=add_prefix_space)
    inner.decoder = decoders.ByteLevel()
    return inner


def pieces_of_words() -> tokenizers.Tokenizer:
    """BERT's kind: lower case, no spaces, ## before what continues a word."""
    words = ["[UNK]", "the", "cat", "river", "##s", "a", *("##" + letter for letter in "abcdefghijklmnopqrstuvwxyz")]
    numbers = {word: number for number, word in enumerate(words)}
    inner = tokenizers.Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(["[UNK]"])
    return inner


def knows_nothing() -> tokenizers.Tokenizer:
    """One token for all that there is."""
    inner = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<unk>"])
    return inner


FOREIGN = {
    "spells spaces out": spells_spaces_out(),
    "spells spaces out and keeps them": spells_spaces_out(keeps=True),
    "puts a space first": byte_level(add_prefix_space=True),
    "pieces of words": pieces_of_words(),
    "knows nothing": knows_nothing(),
}
KEEP_TEXT = ("spells spaces out and keeps them", "puts a space first")
"""Those that give any text back, but for a space before it."""


def save(name: str, folder: Path) -> Path:
    """The folder of one of `FOREIGN`, which ends a text by </s>."""
    return save_as(tokenizers.Tokenizer.from_str(FOREIGN[name].to_str()), folder, "</s>")


def save_as(inner: tokenizers.Tokenizer, folder: Path, *special: str, **config: object) -> Path:
    """Write tokenizer.json with special tokens added, and a tokenizer_config.json where there is a `config`."""
    inner.add_special_tokens(list(special))
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
