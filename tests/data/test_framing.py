"""Which document a token of a stream belongs to, for both ways of framing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.data import framing

OWN_BEGIN: Any = SimpleNamespace(bos_id=1, eos_id=2)
SAME_TOKEN: Any = SimpleNamespace(bos_id=2, eos_id=2)
NO_BEGIN: Any = SimpleNamespace(bos_id=None, eos_id=2)


@pytest.mark.parametrize("tokenizer", [OWN_BEGIN, SAME_TOKEN, NO_BEGIN])
@given(
    documents=st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=6), min_size=1, max_size=6), at=st.integers(0)
)
def test_a_window_numbers_the_documents_of_its_stream_in_order_with_the_mark_before_a_text_in_its_document(
    tokenizer: Any, documents: list[list[int]], at: int
) -> None:
    stream, owner = framing.opening(tokenizer), [0] * len(framing.opening(tokenizer))
    for number, ids in enumerate(documents):
        frame = list(framing.framed(tokenizer, ids))
        stream += frame
        owner += [number] * len(frame)
        if tokenizer is not OWN_BEGIN:
            owner[-1] = number + 1  # its end is the beginning of the next
    begin = at % len(stream)
    found = framing.document_numbers(torch.tensor([stream[begin:]]), framing.separator(tokenizer))[0]
    inside = stream[begin] != framing.separator(tokenizer)  # then the document that the window begins in is number 0
    assert (found - found[0] + owner[begin]).tolist() == owner[begin:]
    assert found[0] == (0 if inside else 1)
