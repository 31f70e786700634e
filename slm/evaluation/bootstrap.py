"""Standard errors of loss and bits per byte, and of their differences, from blocks of text.

Losses of tokens in one document are correlated, so the sample size is the number of documents, not of tokens. Whole
blocks are drawn with replacement (Efron and Tibshirani 1993, chapter 8), and the ratio of sums is computed for each
draw, since a document's length is as random as its loss. The error covers the sampling of such texts, for a given
checkpoint.

Two checkpoints on one text share most of this error, so that of their difference is computed from what each block adds
to the difference (the delta method). It needs no draws, and agrees with the bootstrap of both on the same blocks.
"""

import numpy as np

REPLICATES = 2000  # the standard error of a standard error is then 1 / sqrt(2 * 2000) = 1.6% of it
MIN_DOCUMENTS = 20  # with fewer, blocks of tokens are drawn: an error from a handful of values is itself unknown
BLOCK_TOKENS = 1024  # a page or two: neighbouring blocks are far less correlated than neighbouring tokens
MAX_STORED = 200  # blocks that results keep of a text: an error from 200 is known to 1 / sqrt(2 * 199) = 5%
_DRAWS_AT_ONCE = 1 << 22  # counts of blocks that are in memory at a time


def make_blocks(document_n: np.ndarray) -> tuple[np.ndarray, str]:
    """(block of each scored token, what the blocks are), given the document of each.

    Documents where at least `MIN_DOCUMENTS` are known; else runs of `BLOCK_TOKENS` tokens, or shorter ones if those
    would be fewer than `MIN_DOCUMENTS`. What is left over at the end joins the last run.
    """
    documents, block_n = np.unique(document_n, return_inverse=True)
    if len(documents) >= MIN_DOCUMENTS:
        return block_n, f"{len(documents)} documents"
    size = max(1, min(BLOCK_TOKENS, len(document_n) // MIN_DOCUMENTS))
    blocks = max(1, len(document_n) // size)
    return np.minimum(np.arange(len(document_n)) // size, blocks - 1), f"{blocks} blocks of {size:,} tokens"


def ratio_errors(
    numerator_K: np.ndarray, denominators_KM: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
    """Standard errors (M,) of sum(numerator) / sum(denominators[:, m]) over K blocks; NaN for a single block."""
    K = len(numerator_K)
    if K < 2:
        return np.full(denominators_KM.shape[1], np.nan)
    rng = np.random.default_rng(seed)
    sums_KM = np.column_stack([numerator_K, denominators_KM]).astype(np.float64)
    rows = max(1, _DRAWS_AT_ONCE // K)
    drawn = [
        rng.multinomial(K, np.full(K, 1 / K), size=min(rows, replicates - done)) @ sums_KM
        for done in range(0, replicates, rows)
    ]
    sums_RM = np.concatenate(drawn)
    with np.errstate(divide="ignore", invalid="ignore"):
        # K draws from K blocks have (K - 1) / K of the variance that the blocks' own estimate of it has.
        return (sums_RM[:, :1] / sums_RM[:, 1:]).std(axis=0, ddof=1) * np.sqrt(K / (K - 1))


def merge_blocks(sums_KM: np.ndarray) -> np.ndarray:
    """Sums over at most `MAX_STORED` runs of equally many neighbouring blocks; what is left over joins the last."""
    K = len(sums_KM)
    size = -(-K // MAX_STORED)
    return np.add.reduceat(sums_KM, np.arange(K // size) * size, axis=0)


def influences(numerator_K: np.ndarray, denominator_K: np.ndarray) -> np.ndarray:
    """What each of K blocks adds to the error of sum(numerator) / sum(denominator), to first order; these sum to zero.

    (y - R x) / sum(x), with R = sum(y) / sum(x). For sums and differences of ratios over the same blocks, add or
    subtract their influences.
    """
    return (numerator_K - numerator_K.sum() / denominator_K.sum() * denominator_K) / denominator_K.sum()


def influence_error(influence_K: np.ndarray) -> float:
    """Standard error from influences: Cochran 1977, equation 2.46, for one ratio. NaN for one block."""
    K = len(influence_K)
    return float(np.sqrt(K / (K - 1) * (influence_K**2).sum())) if K > 1 else float("nan")
