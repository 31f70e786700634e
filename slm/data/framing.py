"""How documents stand in a stream of tokens: between begin and end, or between ends where one token does both.

Axes: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from slm.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


def begins(tokenizer: Tokenizer) -> bool:
    """Whether documents begin with a token of their own, which is not the end of text."""
    return tokenizer.bos_id is not None and tokenizer.bos_id != tokenizer.eos_id


def separator(tokenizer: Tokenizer) -> int:
    """The token that a document begins with; where one token does both, it ends the document before, too."""
    return tokenizer.bos_id if begins(tokenizer) and tokenizer.bos_id is not None else tokenizer.eos_id


def document_numbers(tokens_BT: Tensor, separator: int) -> Tensor:
    """Number (B, T) of the document of each token, from 0 for one that began before the sequence did."""
    return (tokens_BT == separator).cumsum(1)


def opening(tokenizer: Tokenizer) -> list[int]:
    """What stands before the first document, so that a stream starts with a special token and all text is scored."""
    return [] if begins(tokenizer) else [tokenizer.eos_id]


def framed(tokenizer: Tokenizer, ids: list[int]) -> Iterator[int]:
    """[BOS] document [EOS], or document [EOS] where one token does both."""
    begin = [separator(tokenizer)] if begins(tokenizer) else []
    return chain(begin, ids, [tokenizer.eos_id])
