"""Suggested shapes have the parameters that were asked for, counted as the model itself counts them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.sweep.shapes import suggest_shapes

FAMILIES = ["deep_thin", "balanced", "wide"]


@settings(max_examples=60, deadline=None)
@given(
    exponent=st.floats(math.log(2e5), math.log(3e9)),
    table_share=st.floats(0.001, 0.3),
    non_embedding=st.booleans(),
    tied=st.booleans(),
    head_dim=st.sampled_from([32, 48, 64, 128]),
    tolerance=st.sampled_from([0.002, 0.02]),
)
def test_any_target_is_met_within_tolerance_in_three_distinct_proportions(
    exponent: float, table_share: float, non_embedding: bool, tied: bool, head_dim: int, tolerance: float
) -> None:
    target = round(math.exp(exponent))
    # The table's share in a shape of hidden_size = 128 num_layers, the widest, whose blocks have 10.7 width^2 weights.
    width = (target * 128 / 10.7) ** (1 / 3)
    vocab_size = max(64, round(table_share * target / width / (1 if tied else 2)))
    size = "params_non_embedding" if non_embedding else "params_total"
    shapes = suggest_shapes(
        target, vocab_size=vocab_size, size=size, head_dim=head_dim, tie_embeddings=tied, tolerance=tolerance
    )
    assert list(shapes) == FAMILIES
    for shape in shapes.values():
        assert shape.num_params(non_embedding=non_embedding) == pytest.approx(target, rel=tolerance)
        assert shape.num_heads * shape.head_width == shape.hidden_size
        assert shape.head_width <= head_dim
        assert 1 <= shape.intermediate_size / shape.hidden_size <= 8
        assert (shape.vocab_size, shape.tie_embeddings) == (vocab_size, tied)
    aspects = [shape.hidden_size / shape.num_layers for shape in shapes.values()]
    assert aspects[1] >= 1.5 * aspects[0]
    assert aspects[2] >= 1.5 * aspects[1]


@pytest.mark.parametrize("target", [124_635_456, 345_355_200, 603_188_352, 1_005_461_760])
def test_at_the_sizes_of_mobilellm_the_deep_thin_shape_is_like_mobilellm(target: int) -> None:
    shapes = suggest_shapes(target)
    aspects = {name: shape.hidden_size / shape.num_layers for name, shape in shapes.items()}
    assert 19 <= aspects["deep_thin"] <= 30
    assert 43 <= aspects["balanced"] <= 70
    assert aspects["wide"] >= 100
    for shape in shapes.values():
        assert shape.head_dim == 64
        assert shape.intermediate_size / shape.hidden_size == pytest.approx(8 / 3, rel=0.1)


def test_a_vocabulary_that_leaves_too_little_is_said_with_one_that_fits() -> None:
    with pytest.raises(ValueError, match="vocab_size=32000, whose table leaves too little: 16000 would fit"):
        suggest_shapes(1_000_000)
    assert suggest_shapes(1_000_000, vocab_size=16_000)


@pytest.mark.parametrize(
    ("target", "changes", "said"),
    [
        (1000, {}, "larger target"),
        (0, {}, "target_params=0"),
        (10**8, {"size": "N"}, "params_non_embedding"),
        (10**8, {"head_dim": 63}, "head_dim=63 must be even"),
        (10**8, {"tolerance": 0}, "tolerance=0"),
        (10**8, {"kv_group": 0}, "kv_group=0"),
    ],
)
def test_wishes_that_cannot_be_are_refused(target: int, changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        suggest_shapes(target, **changes)
