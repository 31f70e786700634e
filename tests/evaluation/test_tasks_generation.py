"""Tasks whose answers are generated: which answers count as equal, and which records are questions."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'slm[eval]'")

import torch

from slm.data.conversations import conversation
from slm.data.questions import question_texts, read_records
from slm.data.vocabulary import byte_tokenizer, load_tokenizer
from slm.evaluation.tasks.run import run_task
from tests.data.chats import CHATML
from tests.data.foreign import byte_level, save_as
from tests.evaluation.toys import random_decoder

QUICK = {"limit": None, "num_fewshot": None, "batch_tokens": 512, "autocast": None, "seed": 1}
TOKENIZER = byte_tokenizer()


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@torch.no_grad()
def greedy(decoder: Any, prompt: str, num_tokens: int) -> list[int]:
    """Without a cache, and with the whole text for each token; the end of text ends it."""
    prompt_ids = list(prompt.encode())
    ids = prompt_ids[:]
    for _ in range(num_tokens):
        token = int(decoder(torch.tensor([ids]))[0, -1, : TOKENIZER.vocab_size].argmax())
        if token == TOKENIZER.eos_id:
            break
        ids.append(token)
    return ids[len(prompt_ids) :]


def test_an_answer_to_messages_must_equal_what_the_model_writes_up_to_the_end_of_text(tmp_path: Path) -> None:
    decoder = random_decoder(vocab_size=TOKENIZER.vocab_size, max_position_embeddings=256)
    decoder.embed_tokens.weight.data[TOKENIZER.eos_id] *= 3  # so that some answers end
    records, right = [], []
    for number in range(8):
        ids = greedy(decoder, f"User:\nQuestion {number}?\n\nAssistant:\n", 40)
        if answer := TOKENIZER.decode(ids).strip():
            records.append({"messages": [{"role": "user", "content": f"Question {number}?"}], "answer": answer})
            right.append(len(ids) < 40)  # the model goes on after the others
    p, n = sum(right) / len(right), len(right)
    assert 0 < p < 1
    result = run_task(decoder, TOKENIZER, "calls", file=write(tmp_path / "a.jsonl", records), **QUICK)["calls"]
    assert (result["metric"], result["n"], result["num_fewshot"], result["also"]) == ("exact_match", n, 0, {})
    assert result["value"] == pytest.approx(p)
    assert result["se"] == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5)
    # The same answers as last messages.
    for record in records:
        record["messages"].append({"role": "assistant", "content": record.pop("answer")})
    again = run_task(decoder, TOKENIZER, "calls", file=write(tmp_path / "b.jsonl", records), **QUICK)["calls"]
    assert again["value"] == result["value"]


def test_a_prompt_is_continued_to_the_end_of_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def write_line(decoder: Any, prompt: list[int], **settings: Any) -> Any:
        seen.append((TOKENIZER.decode(prompt), settings["temperature"]))
        yield from b" 4 \n5"

    monkeypatch.setattr("slm.evaluation.tasks.adapter.generate", write_line)
    decoder = random_decoder(vocab_size=TOKENIZER.vocab_size, max_position_embeddings=256)
    records = [{"prompt": "2 + 2 =", "answer": "4"}, {"prompt": "3 + 2 =", "answer": "5"}]
    result = run_task(decoder, TOKENIZER, "sums", file=write(tmp_path / "a.jsonl", records), **QUICK)["sums"]
    assert (result["metric"], result["value"], seen) == ("exact_match", 0.5, [("2 + 2 =", 0.0), ("3 + 2 =", 0.0)])


def test_an_answer_to_messages_also_ends_with_the_turn_if_that_does_not_end_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_as(byte_level(), tmp_path, "<|im_start|>", "<|im_end|>", "<|end|>", eos_token="<|end|>")
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.chat_template = CHATML

    def write_two_turns(decoder: Any, prompt: list[int], *, stop_id: Any, **settings: Any) -> Any:
        ids, _ = tokenizer.encode_rendered("4<|im_end|>\n<|im_start|>user\nAnd 3 + 2?<|im_end|>\n<|end|>")
        stops = [stop_id] if isinstance(stop_id, int) else stop_id
        return itertools.takewhile(lambda token: token not in stops, ids)

    monkeypatch.setattr("slm.evaluation.tasks.adapter.generate", write_two_turns)
    records = [{"messages": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}] * 2
    decoder = random_decoder(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    result = run_task(decoder, tokenizer, "sums", file=write(tmp_path / "a.jsonl", records), **QUICK)["sums"]
    assert (result["metric"], result["value"]) == ("exact_match", 1.0)


def test_the_intent_of_a_call_counts_without_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm.evaluation.tasks.adapter.generate", lambda *how, **more: iter(answers.pop(0).encode()))
    answers = ['{"name": "wait", "arguments": {"minutes": 5}}', '{"name": "wait", "arguments": {"minutes": 6}}', "{"]
    call = {"name": "wait", "arguments": {"minutes": 5}}
    ask = {"role": "user", "content": "Wait."}
    records = [{"messages": [ask, {"role": "assistant", "tool_calls": [call]}]}] * 3
    decoder = random_decoder(vocab_size=TOKENIZER.vocab_size, max_position_embeddings=512)
    result = run_task(decoder, TOKENIZER, "calls", file=write(tmp_path / "a.jsonl", records), **QUICK)["calls"]
    assert (result["metric"], result["value"]) == ("exact_match", pytest.approx(1 / 3))
    assert result["also"]["intent_match"]["value"] == pytest.approx(2 / 3)
    assert question_texts(read_records("calls", str(tmp_path / "a.jsonl"))[0]) == [conversation(records[0], "row")]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "a"}, "answer=null must be text"),
        ({"prompt": "", "answer": "a"}, "prompt= must be text that is not empty"),
        ({"messages": [{"role": "user", "content": "a"}]}, "has no answer"),
        ({"messages": [{"role": "user", "content": "a"}], "answer": 3}, "answer=3 must be text"),
        (
            {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]},
            "has no answer: give it as `answer`",
        ),
        ({"messages": "a", "answer": "b"}, "must be a list"),
    ],
)
def test_a_record_without_a_prompt_or_an_answer_is_refused(record: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task_files.mine: .*a.jsonl line 1") as caught:
        read_records("mine", write(tmp_path / "a.jsonl", [record]))
    assert sentence in str(caught.value)
