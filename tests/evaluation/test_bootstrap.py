"""Standard errors against the delta method, known truths, and what ignoring documents would give."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.evaluation.bootstrap import BLOCK_TOKENS, MIN_DOCUMENTS, make_blocks, ratio_errors


def documents(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(nats, tokens) of documents of uneven length whose tokens share a part of their loss."""
    tokens = rng.integers(20, 400, number)
    mean = 3.0 + rng.normal(0, 0.4, number)
    return tokens * mean + rng.normal(0, 1, number) * np.sqrt(tokens), tokens


def test_the_error_of_a_ratio_is_that_of_the_delta_method() -> None:
    """Cochran 1977, equation 2.46 (sampling with replacement): sum (y - R x)^2 / ((K - 1) K mean(x)^2)."""
    nats, tokens = documents(np.random.default_rng(1), 300)
    ratio = nats.sum() / tokens.sum()
    variance = ((nats - ratio * tokens) ** 2).sum() / (299 * 300 * tokens.mean() ** 2)
    (error,) = ratio_errors(nats, tokens[:, None], replicates=20_000)
    assert error == pytest.approx(math.sqrt(variance), rel=0.03)


def test_for_blocks_of_one_size_it_is_the_error_of_a_mean() -> None:
    values = np.random.default_rng(2).normal(size=12)
    (error,) = ratio_errors(values, np.ones((12, 1)), replicates=50_000)
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(12), rel=0.02)


def test_intervals_of_two_errors_hold_the_truth_about_as_often_as_they_say() -> None:
    """In 400 texts of 60 documents; the truth is the mean over all documents weighted by their length, 3.0."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        nats, tokens = documents(rng, 60)
        (error,) = ratio_errors(nats, tokens[:, None], replicates=400)
        hits += abs(nats.sum() / tokens.sum() - 3.0) < 1.96 * error
    assert 0.91 < hits / 400 < 0.98  # a binomial of 0.95 has a standard deviation of 0.011


def test_tokens_that_are_alike_within_a_document_give_a_larger_error_than_independent_ones_would() -> None:
    rng = np.random.default_rng(4)
    losses = (3 + rng.normal(0, 1, (100, 1)) + rng.normal(0, 1, (100, 200))).ravel()
    block, _ = make_blocks(np.repeat(np.arange(100), 200))
    (error,) = ratio_errors(np.bincount(block, losses), np.bincount(block)[:, None])
    naive = losses.std(ddof=1) / math.sqrt(losses.size)
    assert error == pytest.approx(math.sqrt((1 + 1 / 200) / 100), rel=0.2)
    assert error > 8 * naive


def test_several_denominators_are_drawn_together_and_a_seed_repeats_itself() -> None:
    nats, tokens = documents(np.random.default_rng(5), 50)
    both = ratio_errors(nats, np.column_stack([tokens, 4 * tokens]))
    assert both[1] == pytest.approx(both[0] / 4)
    assert ratio_errors(nats, tokens[:, None]) == pytest.approx(both[:1])
    assert ratio_errors(nats, tokens[:, None], seed=1) != pytest.approx(both[:1])


def test_one_block_has_no_error() -> None:
    assert np.isnan(ratio_errors(np.ones(1), np.ones((1, 2)))).all()


def test_documents_are_the_blocks_where_enough_are_known() -> None:
    numbers = np.repeat(np.arange(MIN_DOCUMENTS), 7) + 3
    block, what = make_blocks(numbers)
    assert what == f"{MIN_DOCUMENTS} documents"
    assert np.bincount(block).tolist() == [7] * MIN_DOCUMENTS


@given(tokens=st.integers(1, 60_000))
def test_a_text_without_documents_is_cut_into_even_runs_of_tokens(tokens: int) -> None:
    block, what = make_blocks(np.zeros(tokens, dtype=np.int32))
    sizes = np.bincount(block)
    size = max(1, min(BLOCK_TOKENS, tokens // MIN_DOCUMENTS))
    assert what == f"{len(sizes)} blocks of {size:,} tokens"
    assert (np.diff(block) >= 0).all()
    assert (sizes[:-1] == size).all()
    assert size <= sizes[-1] < 2 * size
    assert len(sizes) >= min(MIN_DOCUMENTS, tokens)
