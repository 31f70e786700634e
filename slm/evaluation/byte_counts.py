"""Where documents begin in the bytes of a running text."""

import re

import numpy as np


def document_of(text: str, sizes_n: np.ndarray, document_start: str | None) -> np.ndarray:
    """Number of the document in which each token begins; all 0 where no pattern says where documents begin."""
    if document_start is None:
        return np.zeros(len(sizes_n), dtype=np.int32)
    # What stands before the first match belongs to the document that it opens.
    cuts = [0, *(match.start() for match in re.finditer(document_start, text, re.MULTILINE))][2:]
    lengths = [len(text[start:stop].encode()) for start, stop in zip([0, *cuts], cuts, strict=False)]
    return np.searchsorted(np.cumsum(lengths), np.cumsum(sizes_n) - sizes_n, side="right").astype(np.int32)
