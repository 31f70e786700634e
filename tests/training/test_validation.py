import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.training.validation import Score, _share


@given(batches=st.integers(1, 20), world_size=st.integers(1, 5))
def test_ranks_score_every_batch_once_in_the_same_number_of_passes(batches: int, world_size: int) -> None:
    numbered = [(torch.full((2, 3), n), torch.full((2, 3), n)) for n in range(batches)]
    shares = [list(_share(iter(numbered), rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    scored = sorted(int(targets[0, 0]) for share in shares for _, targets in share if targets[0, 0] != -100)
    assert scored == list(range(batches))


def test_bits_per_byte_is_the_length_of_an_ideal_code_over_the_length_of_the_text() -> None:
    """8 tokens at a chance of 1/16 each take 32 bits; over 16 bytes that is 2."""
    score = Score(loss=math.log(16), tokens=8, bytes=16)
    assert score.bits_per_byte == pytest.approx(2)
    assert score.perplexity == pytest.approx(16)
