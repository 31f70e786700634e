"""Standard errors against the delta method, known truths, and what ignoring documents would give."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.evaluation.bootstrap import (
    BLOCK_TOKENS,
    MAX_STORED,
    MIN_DOCUMENTS,
    influence_error,
    influences,
    make_blocks,
    merge_blocks,
    ratio_errors,
)
from tests.seeds import seeded


def documents(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(nats, tokens) of documents of uneven length whose tokens share a part of their loss."""
    tokens = rng.integers(20, 400, number)
    mean = 3.0 + rng.normal(0, 0.4, number)
    return tokens * mean + rng.normal(0, 1, number) * np.sqrt(tokens), tokens


def test_the_error_of_a_ratio_is_that_of_the_delta_method() -> None:
    """Cochran 1977, equation 2.46 (sampling with replacement): sum (y - R x)^2 / ((K - 1) K mean(x)^2)."""
    nats, tokens = documents(np.random.default_rng(seeded(1)), 300)
    ratio = nats.sum() / tokens.sum()
    variance = ((nats - ratio * tokens) ** 2).sum() / (299 * 300 * tokens.mean() ** 2)
    (error,) = ratio_errors(nats, tokens[:, None], replicates=20_000)
    assert error == pytest.approx(math.sqrt(variance), rel=0.03)


def test_for_blocks_of_one_size_it_is_the_error_of_a_mean() -> None:
    values = np.random.default_rng(seeded(2)).normal(size=12)
    (error,) = ratio_errors(values, np.ones((12, 1)), replicates=50_000)
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(12), rel=0.02)


def test_intervals_of_two_errors_hold_the_truth_about_as_often_as_they_say() -> None:
    """In 400 texts of 60 documents; the truth is the mean over all documents weighted by their length, 3.0."""
    rng = np.random.default_rng(seeded(3))
    hits = 0
    for _ in range(400):
        nats, tokens = documents(rng, 60)
        (error,) = ratio_errors(nats, tokens[:, None], replicates=400)
        hits += abs(nats.sum() / tokens.sum() - 3.0) < 1.96 * error
    assert 0.91 < hits / 400 < 0.98  # a binomial of 0.95 has a standard deviation of 0.011


def test_tokens_that_are_alike_within_a_document_give_a_larger_error_than_independent_ones_would() -> None:
    rng = np.random.default_rng(seeded(4))
    losses = (3 + rng.normal(0, 1, (100, 1)) + rng.normal(0, 1, (100, 200))).ravel()
    block, _ = make_blocks(np.repeat(np.arange(100), 200))
    (error,) = ratio_errors(np.bincount(block, losses), np.bincount(block)[:, None])
    naive = losses.std(ddof=1) / math.sqrt(losses.size)
    assert error == pytest.approx(math.sqrt((1 + 1 / 200) / 100), rel=0.2)
    assert error > 8 * naive


def test_several_denominators_are_drawn_together_and_a_seed_repeats_itself() -> None:
    nats, tokens = documents(np.random.default_rng(seeded(5)), 50)
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


def pair(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nats of A, nats of B, bytes) of documents that are hard for both; per byte B is worse by 0.01 on average."""
    size = rng.integers(2_000, 40_000, number)
    hard = rng.normal(0, 0.08, number)
    a, b = (size * (mean + hard + rng.normal(0, 0.01, number)) for mean in (0.60, 0.61))
    return a, b, size


def test_the_error_of_a_difference_is_the_closed_form_and_that_of_drawing_both_on_the_same_blocks() -> None:
    """Over one denominator a difference of ratios is the ratio of the differences: Cochran's equation of one ratio."""
    a, b, size = pair(np.random.default_rng(seeded(6)), 80)
    error = influence_error(influences(a, size) - influences(b, size))
    ratio = (a - b).sum() / size.sum()
    variance = ((a - b - ratio * size) ** 2).sum() / (79 * 80 * size.mean() ** 2)
    assert error == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert error == pytest.approx(ratio_errors(a - b, size[:, None], replicates=20_000)[0], rel=0.03)
    assert error < 0.3 * math.hypot(influence_error(influences(a, size)), influence_error(influences(b, size)))


def test_over_two_denominators_it_is_that_of_drawing_both_on_the_same_blocks() -> None:
    rng = np.random.default_rng(seeded(7))
    a, b, size = pair(rng, 60)
    other = size + rng.integers(-3, 4, 60)
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=20_000)
    drawn = (counts @ a) / (counts @ size) - (counts @ b) / (counts @ other)
    error = influence_error(influences(a, size) - influences(b, other))
    assert error == pytest.approx(drawn.std(ddof=1) * math.sqrt(60 / 59), rel=0.03)


def test_a_constant_shift_per_byte_has_no_error() -> None:
    a, _, size = pair(np.random.default_rng(seeded(8)), 40)
    alone = influence_error(influences(a, size))
    assert influence_error(influences(a, size) - influences(a + 0.02 * size, size)) < 1e-12 * alone


def test_intervals_of_two_paired_errors_hold_the_true_difference_about_as_often_as_they_say() -> None:
    """In 2,000 texts of 62 documents, as many as WikiText-2 has; the truth is -0.01 for documents of any length."""
    rng = np.random.default_rng(seeded(9))
    paired = unpaired = 0
    for _ in range(2000):
        a, b, size = pair(rng, 62)
        of = influences(a, size), influences(b, size)
        off = abs((a - b).sum() / size.sum() + 0.01)
        paired += off < 2 * influence_error(of[0] - of[1])
        unpaired += off < 2 * math.hypot(*map(influence_error, of))
    assert 0.93 < paired / 2000 < 0.965  # a binomial of 0.95 has a standard deviation of 0.005
    assert unpaired / 2000 > 0.999


@given(number=st.integers(1, 3 * MAX_STORED))
def test_merged_blocks_are_few_even_runs_with_the_same_sums(number: int) -> None:
    sums = np.column_stack([np.arange(number), np.ones(number, dtype=int)])
    merged = merge_blocks(sums)
    assert merged.sum(axis=0).tolist() == sums.sum(axis=0).tolist()
    assert min(number, MAX_STORED / 2) <= len(merged) <= MAX_STORED
    sizes = merged[:, 1]
    assert (sizes[:-1] == sizes[0]).all()
    assert sizes[0] <= sizes[-1] < 2 * sizes[0]
    firsts = np.cumsum(sizes) - sizes
    assert merged[:, 0].tolist() == [sum(range(first, first + size)) for first, size in zip(firsts, sizes, strict=True)]


def test_merging_changes_an_error_only_by_chance() -> None:
    """Errors of 2,000 documents and of their 200 blocks of ten; one from 200 is known to 5%."""
    a, b, size = pair(np.random.default_rng(seeded(10)), 2000)
    merged = merge_blocks(np.column_stack([a, b, size]))
    fine = influence_error(influences(a, size) - influences(b, size))
    coarse = influence_error(influences(merged[:, 0], merged[:, 2]) - influences(merged[:, 1], merged[:, 2]))
    assert len(merged) == MAX_STORED
    assert coarse == pytest.approx(fine, rel=0.15)
