"""Tasks from local files in which the model writes an answer, which must be equal to the given one.

Answers are generated greedily, up to the end of text or of the turn. The answer to a `prompt` also ends with its line,
or, if an answer has several lines, with a blank line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slm.data.conversations import prompt_and_answer

if TYPE_CHECKING:
    from slm.data.tokenizer import Tokenizer

SPARE_TOKENS = 16  # generated beyond twice the tokens of the longest answer, because a model may cut words differently


def make_generation_task(name: str, records: list[dict[str, Any]], tokenizer: Tokenizer) -> Any:
    """Return a harness task (`ConfigurableTask`) with metric exact_match; surrounding white space does not count.

    If all answers are JSON objects with a `name`, such as calls of tools, metric intent_match compares only the name.
    """
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    is_chat = "conversation" in records[0]
    if is_chat:
        pairs = [prompt_and_answer(record["conversation"], tokenizer) for record in records]
    else:
        pairs = [(record["prompt"], record["answer"].strip()) for record in records]
    has_calls = all(_called(answer) is not None for _, answer in pairs)

    def score(question: Mapping[str, str], answers: list[str]) -> dict[str, float]:
        given, right = answers[0].strip(), question["answer"]
        intent = {"intent_match": float(_called(given) == _called(right))} if has_calls else {}
        return {"exact_match": float(given == right), **intent}

    longest = max(len(tokenizer.encode(answer)) for _, answer in pairs)
    has_lines = any("\n" in answer for _, answer in pairs)
    metrics = ["exact_match", *(["intent_match"] if has_calls else [])]
    questions = [{"query": prompt, "answer": answer} for prompt, answer in pairs]
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **kwargs: DatasetDict(test=Dataset.from_list(questions)),
            "output_type": "generate_until",
            "test_split": "test",
            "fewshot_split": "test",
            "doc_to_text": "query",
            "doc_to_target": "answer",
            "process_results": score,
            "metric_list": [{"metric": key, "aggregation": "mean", "higher_is_better": True} for key in metrics],
            "generation_kwargs": {
                "do_sample": False,
                "until": [] if is_chat else ["\n\n" if has_lines else "\n"],
                "max_gen_toks": 2 * longest + SPARE_TOKENS,
                "is_chat": is_chat,
            },
            **({"num_fewshot": 0} if is_chat else {}),  # a chat template has no place for examples
        }
    )


def _called(text: str) -> str | None:
    """Return the `name` of the first call in an answer, a JSON object in its first line; None if it is not one."""
    try:
        call = json.loads(text.split("\n")[0])
    except ValueError:
        return None
    return call["name"] if isinstance(call, dict) and isinstance(call.get("name"), str) else None
