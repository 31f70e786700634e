"""What of a conversation is scored, and which rows are conversations."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from slm.data import Tokenizer
from slm.data.chat_template import PLAIN_TEMPLATE
from slm.data.conversations import SCORED, conversation, encode_conversation, encode_prompt, prompt_and_answer
from tests.data.chats import CALL, CHATML, FORGETS, LLAMA, MARKED, TALK, chat_tokenizer

SAID = ["Sure.", "It runs."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return chat_tokenizer(folder)


def scored_texts(messages: list[dict[str, Any]], tokenizer: Tokenizer, template: str) -> list[str]:
    """The scored tokens as text, special ones too, in runs of neighbours."""
    encoded = encode_conversation(conversation({"messages": messages}, "row"), tokenizer, template)
    runs: list[list[int]] = [[]]
    for token, mark in zip(encoded.ids, encoded.marks, strict=True):
        if mark & SCORED:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer._inner.decode(run, skip_special_tokens=False) for run in runs if run]


@pytest.mark.parametrize("template", [CHATML, MARKED, LLAMA, PLAIN_TEMPLATE])
def test_tokens_are_those_of_transformers(template: str, folder: Path, tokenizer: Tokenizer) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    document = conversation({"messages": TALK}, "row")
    options = {"chat_template": template, "tokenize": True, "return_dict": True}
    expected = reference.apply_chat_template(
        json.loads(document)["messages"], return_assistant_tokens_mask=template in (MARKED, PLAIN_TEMPLATE), **options
    )
    encoded = encode_conversation(document, tokenizer, template)
    assert encoded.ids == expected["input_ids"]
    assert encoded.keeps_text
    if "assistant_masks" in expected:  # the template marks what is generated
        assert (encoded.marks & SCORED).tolist() == expected["assistant_masks"]


def test_an_answer_is_scored_with_the_token_that_ends_it_and_nothing_else_is(tokenizer: Tokenizer) -> None:
    assert scored_texts(TALK, tokenizer, CHATML) == [text + "<|im_end|>" for text in SAID]
    assert scored_texts(TALK, tokenizer, MARKED) == [text + "<|im_end|>" for text in SAID]
    assert scored_texts(TALK, tokenizer, LLAMA) == [f" {text} <|im_end|>" for text in SAID]
    call = json.dumps({"name": "set_timer", "arguments": CALL["function"]["arguments"]}, ensure_ascii=False)
    expected = [f"Sure.\n{call}<|im_end|>", "It runs.<|im_end|>"]
    assert scored_texts(TALK, tokenizer, PLAIN_TEMPLATE) == expected


def test_scored_bytes_are_those_of_what_is_said(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "naïve?"}, {"role": "assistant", "content": "Ja, 語 <|im_end|> 🙂"}]
    encoded = encode_conversation(conversation({"messages": messages}, "row"), tokenizer, CHATML)
    assert encoded.token_bytes[(encoded.marks & SCORED) > 0].sum() == len(messages[1]["content"].encode())


def test_special_tokens_in_messages_are_text(tokenizer: Tokenizer) -> None:
    talk = [
        {"role": "user", "content": "Say <|im_end|>\n<|im_start|>"},
        {"role": "assistant", "content": "a<|im_end|>b"},
    ]
    encoded = encode_conversation(conversation({"messages": talk}, "row"), tokenizer, CHATML)
    assert encoded.ids.count(tokenizer.eos_id) == encoded.ids.count(tokenizer.bos_id) == 2  # those of the template
    assert scored_texts(talk, tokenizer, CHATML) == ["a<|im_end|>b<|im_end|>"]
    assert encoded.keeps_text


def test_a_token_does_not_extend_from_the_prompt_into_the_answer(tmp_path: Path) -> None:
    """In one piece "Assistant:\\n" + "\\n" would be encoded otherwise than when the answer is generated."""
    from slm.data.vocabulary import plan_tokenizer

    texts = ["Q: yes\n\n\n\nno", "yes\n\n\n\n"] * 50
    bpe = plan_tokenizer({"kind": "bpe", "vocab_size": 270, "train_bytes": None}).make(lambda: iter([texts]))
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n\n{% else %}{{ m.content + eos_token }}"
    )
    template += "{% endif %}{% endfor %}"
    talk = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "\n\nno"}]
    encoded = encode_conversation(conversation({"messages": talk}, "row"), bpe, template)
    answer = [token for token, mark in zip(encoded.ids, encoded.marks, strict=True) if mark & SCORED]
    assert answer == [*bpe.encode("\n\nno"), bpe.eos_id]
    bpe.chat_template = template
    assert encoded.ids == encode_prompt(talk[:1], bpe) + answer
    assert bpe.encode("Q: yes\n\n\n\nno") != encoded.ids[:-1]  # the case is one


def test_a_template_that_rewrites_earlier_answers_is_refused(tokenizer: Tokenizer) -> None:
    document = conversation({"messages": TALK}, "row")
    with pytest.raises(ValueError, match=r"does not write message 3 .*data.template=FILE"):
        encode_conversation(document, tokenizer, FORGETS)
    tokenizer.chat_template = FORGETS
    with pytest.raises(ValueError, match="does not write an answer"):  # it has no prompt for an answer
        prompt_and_answer(json.dumps({"messages": [*TALK[:3], TALK[1]]}), tokenizer)


def test_prompt_and_completion_are_a_question_and_its_answer() -> None:
    row = {"prompt": "2 + 2?", "completion": "4", "other": None}
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    assert conversation(row, "row") == conversation({"messages": messages}, "row")


def test_arguments_as_json_text_and_absent_values_make_no_difference() -> None:
    as_text = {"function": {"name": "set_timer", "arguments": json.dumps(CALL["function"]["arguments"])}}
    ask = {"role": "user", "content": "5"}
    forms = [
        [ask, {"role": "assistant", "content": None, "tool_calls": [as_text], "name": None}],
        [ask, {"role": "assistant", "tool_calls": [CALL["function"]]}],
        [ask, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
    ]
    parsed = [json.loads(conversation({"messages": form, "tools": None}, "row")) for form in forms]
    assert parsed[0] == parsed[1] == parsed[2]


ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (["a"], "is not an object with messages"),
        ({"text": "a"}, "must have messages .* it has text"),
        ({"messages": []}, "must have messages"),
        ({"messages": ["a"]}, "message 1 must have a role"),
        ({"messages": [{"role": "human", "content": "a"}]}, "not 'human'"),
        ({"messages": [{"role": "user"}, ANSWER]}, "message 1 .user. has neither content nor tool_calls"),
        ({"messages": [{"role": "user", "content": 3}, ANSWER]}, "content must be text, not int"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no message of the assistant"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"arguments": {}}]}]}, "a tool call must be"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "of f are not JSON"),
        ({"messages": [{"role": "user", "tool_calls": [CALL]}, ANSWER]}, "must be a list in a message of the assist"),
        ({"messages": [{"role": "assistant", "content": "\ufdd0"}]}, "U.FDD0"),
    ],
)
def test_a_row_that_is_no_conversation_is_refused_with_its_place(row: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"^a.jsonl line 7.*{sentence}"):
        conversation(row, "a.jsonl line 7")
