"""Tokenizers whose tokens' own bytes do not add up to the text that they stand for."""

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


def puts_a_space_first() -> tokenizers.Tokenizer:
    """Bytes, with a space before a text that has none."""
    inner = tokenizers.Tokenizer(
        models.BPE({c: number for number, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
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
    "puts a space first": puts_a_space_first(),
    "pieces of words": pieces_of_words(),
    "knows nothing": knows_nothing(),
}
KEEP_TEXT = ("spells spaces out and keeps them", "puts a space first")
"""Those that give any text back, but for a space before it."""


def save(name: str, folder: Path) -> Path:
    """The folder of one of them, which ends a text by </s>."""
    inner = tokenizers.Tokenizer.from_str(FOREIGN[name].to_str())
    inner.add_special_tokens(["</s>"])
    folder.mkdir(parents=True)
    inner.save(str(folder / "tokenizer.json"))
    return folder
