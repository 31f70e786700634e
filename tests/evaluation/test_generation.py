"""Streamed text and short names, for any input."""

from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data.vocabulary import plan_tokenizer
from slm.evaluation.generation import REPLACEMENT, text_pieces
from slm.evaluation.labels import short_names

TOKENIZER = plan_tokenizer({"kind": "bytes"}).make(lambda: iter([]))


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text())
def test_streamed_pieces_join_to_the_text_and_never_show_half_a_character(before: str, after: str) -> None:
    pieces = list(text_pieces(TOKENIZER, TOKENIZER.encode(before), TOKENIZER.encode(after)))
    assert "".join(pieces) == after
    assert REPLACEMENT in after or not any(REPLACEMENT in piece for piece in pieces)


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join), unique=True, min_size=1))
def test_short_names_are_ends_of_what_was_given_and_differ(checkpoints: list[str]) -> None:
    names = short_names(checkpoints)
    assert len(set(names)) == len(names)
    assert all(given.endswith(name) for given, name in zip(checkpoints, names, strict=True))


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert short_names(["x/run", "y/run"]) == ["x/run", "y/run"]
    assert short_names(["x/run/model"]) == ["run/model"]
    assert short_names(["facebook/MobileLLM-125M", "facebook/MobileLLM-350M"]) == ["MobileLLM-125M", "MobileLLM-350M"]
