"""Streamed text and short names, for any input."""

from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data import Tokenizer
from slm.data.vocabulary import plan_tokenizer
from slm.evaluation.generation import REPLACEMENT, prompt_ids, text_pieces
from slm.evaluation.ledger import short_names

TOKENIZER = plan_tokenizer({"kind": "bytes"}).make(lambda: iter([]))


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text())
def test_streamed_pieces_join_to_the_text_and_never_show_half_a_character(before: str, after: str) -> None:
    pieces = list(text_pieces(TOKENIZER, TOKENIZER.encode(before), TOKENIZER.encode(after)))
    assert "".join(pieces) == after
    assert REPLACEMENT in after or not any(REPLACEMENT in piece for piece in pieces)


def test_a_prompt_begins_as_the_tokenizers_own_rule_says_and_an_empty_one_with_the_mark_of_a_new_text() -> None:
    end, content = "<|endoftext|>", TOKENIZER.content
    marked = Tokenizer("marked", content, bos=end, eos=end, adds_bos=True)
    assert prompt_ids(TOKENIZER, "ab") == [97, 98]
    assert prompt_ids(TOKENIZER, "") == [256]
    assert prompt_ids(marked, "ab") == [256, 97, 98]


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
