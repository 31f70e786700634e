"""Where the tokens of a text lie in its bytes: whether they add up to it, and which document each begins in."""

import re

import numpy as np

from slm.data import Tokenizer


def fit_bytes(sizes: np.ndarray, ids: np.ndarray, content: str, tokenizer: Tokenizer) -> bool:
    """Whether `sizes` are, token by token, the bytes of the text, once a space that was put before it is gone.

    Takes that byte from the first token, in place. A tokenizer that does not give the text back has changed it, and
    sums that agree are chance.
    """
    if tokenizer.decode(ids.tolist()) not in (content, " " + content):
        return False
    added = int(sizes.sum()) - len(content.encode())
    if added == 1 and sizes[0] > 0:
        sizes[0] -= 1
        added = 0
    return added == 0


def inexact_note(counted: int, expected: int) -> str:
    """The note for a text that its tokens do not add up to."""
    return (
        f"The tokenizer changes or loses some of the text (its tokens stand for {counted:,} bytes, the text has "
        f"{expected:,}), so bits per byte is not comparable with that of tokenizers that keep all of it."
    )


def document_of(text: str, sizes_n: np.ndarray, document_start: str | None) -> np.ndarray:
    """Number of the document in which each token begins; all 0 where no pattern says where documents begin."""
    if document_start is None:
        return np.zeros(len(sizes_n), dtype=np.int32)
    # What stands before the first match belongs to the document that it opens.
    cuts = [0, *(match.start() for match in re.finditer(document_start, text, re.MULTILINE))][2:]
    lengths = [len(text[start:stop].encode()) for start, stop in zip([0, *cuts], cuts, strict=False)]
    return np.searchsorted(np.cumsum(lengths), np.cumsum(sizes_n) - sizes_n, side="right").astype(np.int32)
