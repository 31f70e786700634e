"""Compute standard errors of loss and bits per byte, and of their differences, from blocks of text.

Losses of tokens in one document are correlated, so the sample size is the number of documents, not of tokens. Whole
blocks are drawn with replacement (Efron and Tibshirani 1993, chapter 8). The ratio of sums is computed for each draw,
because a document's length is as random as its loss. The error covers the sampling of text for a given checkpoint.

Two checkpoints on one text share most of this error. The error of their difference is therefore computed from what each
block adds to the difference (delta method). A bootstrap that draws the same blocks for both agrees, but needs draws.

Legend: n tokens, K blocks, M denominators, R draws.
"""

import numpy as np

REPLICATES = 2000  # the standard error of a standard error is then 1 / sqrt(2 * 2000) = 1.6% of it
MIN_DOCUMENTS = 20  # with fewer documents, blocks of tokens are drawn: an error from a few values is itself uncertain
BLOCK_TOKENS = 1024  # a page or two: neighbouring blocks are far less correlated than neighbouring tokens
MAX_STORED = 200  # number of blocks stored in results: the error of an error from 200 is 1 / sqrt(2 * 199) = 5% of it
_MAX_COUNTS = 1 << 22  # number of block counts (draws x blocks) in memory at the same time


def make_blocks(document_n: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the block of each scored token and a description of the blocks, given the document of each scored token.

    If there are at least `MIN_DOCUMENTS` documents, these are the blocks. Otherwise, blocks are `BLOCK_TOKENS`
    neighbouring tokens, or fewer if needed for `MIN_DOCUMENTS` blocks. Tokens left over at the end join the last block.
    """
    documents, block_n = np.unique(document_n, return_inverse=True)
    if len(documents) >= MIN_DOCUMENTS:
        return block_n, f"{len(documents)} documents"
    num_tokens = len(document_n)
    block_tokens = max(1, min(BLOCK_TOKENS, num_tokens // MIN_DOCUMENTS))
    num_blocks = max(1, num_tokens // block_tokens)
    block_n = np.minimum(np.arange(num_tokens) // block_tokens, num_blocks - 1)
    return block_n, f"{num_blocks} blocks of {block_tokens:,} tokens"


def ratio_errors(
    numerator_K: np.ndarray, denominators_KM: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
    """Return the standard errors (M,) of sum(numerator) / sum(denominators[:, m]); NaN for a single block."""
    K = len(numerator_K)
    if K < 2:
        return np.full(denominators_KM.shape[1], np.nan)
    rng = np.random.default_rng(seed)
    sums_KM = np.column_stack([numerator_K, denominators_KM]).astype(np.float64)  # numerator first
    chunk_draws = max(1, _MAX_COUNTS // K)
    drawn = [
        rng.multinomial(K, np.full(K, 1 / K), size=min(chunk_draws, replicates - num_done)) @ sums_KM
        for num_done in range(0, replicates, chunk_draws)
    ]
    sums_RM = np.concatenate(drawn)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The variance of the bootstrap is (K - 1) / K of the unbiased estimate from K blocks.
        return (sums_RM[:, :1] / sums_RM[:, 1:]).std(axis=0, ddof=1) * np.sqrt(K / (K - 1))


def merge_blocks(sums_KM: np.ndarray) -> np.ndarray:
    """Merge neighbouring blocks into at most `MAX_STORED` of equal size; blocks left over join the last."""
    K = len(sums_KM)
    num_merged = -(-K // MAX_STORED)  # rounded up
    return np.add.reduceat(sums_KM, np.arange(K // num_merged) * num_merged, axis=0)


def influences(numerator_K: np.ndarray, denominator_K: np.ndarray) -> np.ndarray:
    """Return the influence of each of K blocks on ratio = sum(numerator) / sum(denominator), to first order.

    It is (numerator - ratio * denominator) / sum(denominator). All influences sum to zero. The influence on a sum or
    difference of ratios over the same blocks is the sum or difference of the influences.
    """
    ratio = numerator_K.sum() / denominator_K.sum()
    return (numerator_K - ratio * denominator_K) / denominator_K.sum()


def influence_error(influence_K: np.ndarray) -> float:
    """Return the standard error from influences (for one ratio, Cochran 1977, equation 2.46); NaN for one block."""
    K = len(influence_K)
    return float(np.sqrt(K / (K - 1) * (influence_K**2).sum())) if K > 1 else float("nan")
