"""How documents stand in a stream of tokens: between begin and end, or between ends where one token does both."""

from collections.abc import Iterator
from itertools import chain

from slm.data.tokenizer import Tokenizer


def begins(tokenizer: Tokenizer) -> bool:
    """Whether documents begin with a token of their own, which is not the end of text."""
    return tokenizer.bos_id is not None and tokenizer.bos_id != tokenizer.eos_id


def opening(tokenizer: Tokenizer) -> list[int]:
    """What stands before the first document, so that a stream starts with a special token and all text is scored."""
    return [] if begins(tokenizer) else [tokenizer.eos_id]


def framed(tokenizer: Tokenizer, ids: list[int]) -> Iterator[int]:
    """[BOS] document [EOS], or document [EOS] where one token does both."""
    begin = [tokenizer.bos_id] if begins(tokenizer) and tokenizer.bos_id is not None else []
    return chain(begin, ids, [tokenizer.eos_id])
