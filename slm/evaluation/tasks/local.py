"""Make lm-evaluation-harness tasks from questions in local files (`slm.data.questions`).

If the model writes the answer, it must be equal to the given one. Answers are generated greedily, up to the end of text
or of the turn. The answer to a `prompt` also ends with its line, or, if an answer has several lines, with a blank line.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slm.data.conversations import prompt_and_answer

if TYPE_CHECKING:
    from slm.data.tokenizer import Tokenizer

SPARE_TOKENS = 16  # generated beyond twice the tokens of the longest answer, because a model may cut words differently


def make_task(name: str, records: list[dict[str, Any]], tokenizer: "Tokenizer | None" = None) -> Any:
    """Return a harness task (`ConfigurableTask`) with metric acc, and acc_norm for records with `choices`.

    Answers to generate have metric exact_match, and need the `tokenizer`.
    """
    if "answer" in records[0] or "conversation" in records[0]:
        assert tokenizer is not None
        return _written_task(name, records, tokenizer)
    if "choices" in records[0]:
        form = {"doc_to_text": "query", "doc_to_target": "gold", "doc_to_choice": "choices"}
        metrics = ["acc", "acc_norm"]
    else:
        # If doc_to_text is an index, the harness takes the choices as contexts and the index as the right context.
        form = {"doc_to_text": "gold", "doc_to_target": "continuation", "doc_to_choice": "context_options"}
        metrics = ["acc"]
    return _harness_task(name, records, metrics, output_type="multiple_choice", **form)


def _written_task(name: str, records: list[dict[str, Any]], tokenizer: "Tokenizer") -> Any:
    """Return a task with metric exact_match; surrounding white space does not count.

    If all answers are JSON objects with a `name`, such as calls of tools, metric intent_match compares only the name.
    """
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
    return _harness_task(
        name,
        questions,
        metrics,
        output_type="generate_until",
        doc_to_text="query",
        doc_to_target="answer",
        process_results=score,
        generation_kwargs={
            "do_sample": False,
            "until": [] if is_chat else ["\n\n" if has_lines else "\n"],
            "max_gen_toks": 2 * longest + SPARE_TOKENS,
            "is_chat": is_chat,
        },
        **({"num_fewshot": 0} if is_chat else {}),  # a chat template has no place for examples
    )


def _harness_task(name: str, records: list[dict[str, Any]], metrics: Sequence[str], **config: Any) -> Any:
    """Return a `ConfigurableTask` of these records, whose metrics are means over them; higher is better."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    config |= {
        "task": name,
        "custom_dataset": lambda **kwargs: DatasetDict(test=Dataset.from_list(records)),
        "test_split": "test",
        "fewshot_split": "test",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
    }
    return ConfigurableTask(config=config)


def _called(text: str) -> str | None:
    """Return the `name` of the first call in an answer, a JSON object in its first line; None if it is not one."""
    try:
        call = json.loads(text.split("\n")[0])
    except ValueError:
        return None
    return call["name"] if isinstance(call, dict) and isinstance(call.get("name"), str) else None
