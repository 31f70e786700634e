"""Which document a token of a stream belongs to, for both ways of framing."""

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from slm.data import Tokenizer
from slm.data.loader import document_numbers

CONTENT = tokenizers.Tokenizer(models.WordLevel({str(i): i for i in range(10)}, unk_token="0")).to_str()


@pytest.mark.parametrize("bos", ["1", "2", None])
@given(
    documents=st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=6), min_size=1, max_size=6), at=st.integers(0)
)
def test_a_window_numbers_the_documents_of_its_stream_in_order_with_the_mark_before_a_text_in_its_document(
    bos: str | None, documents: list[list[int]], at: int
) -> None:
    tokenizer = Tokenizer("digits", CONTENT, bos=bos, eos="2")
    stream, owner = list(tokenizer.opening), [0] * len(tokenizer.opening)
    for number, ids in enumerate(documents):
        frame = tokenizer.framed(ids)
        stream += frame
        owner += [number] * len(frame)
        if bos != "1":
            owner[-1] = number + 1  # its end is the beginning of the next
    begin = at % len(stream)
    numbers = document_numbers(torch.tensor([stream[begin:]]), tokenizer.separator_id)[0]
    inside = stream[begin] != tokenizer.separator_id  # then the document that the window begins in is number 0
    assert (numbers - numbers[0] + owner[begin]).tolist() == owner[begin:]
    assert numbers[0] == (0 if inside else 1)
