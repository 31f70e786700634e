"""Make lm-evaluation-harness tasks from questions in local files (`slm.data.questions`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slm.evaluation.tasks import generation

if TYPE_CHECKING:
    from slm.data.tokenizer import Tokenizer


def make_task(name: str, records: list[dict[str, Any]], tokenizer: Tokenizer | None = None) -> Any:
    """Return a harness task (`ConfigurableTask`) with metric acc, and acc_norm for records with `choices`.

    Answers to generate have metric exact_match, and need the `tokenizer`.
    """
    if "answer" in records[0] or "conversation" in records[0]:
        assert tokenizer is not None
        return generation.make_generation_task(name, records, tokenizer)
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    if "choices" in records[0]:
        form = {"doc_to_text": "query", "doc_to_target": "gold", "doc_to_choice": "choices"}
        metrics = ["acc", "acc_norm"]
    else:
        # If doc_to_text is an index, the harness takes the choices as contexts and the index as the right context.
        form = {"doc_to_text": "gold", "doc_to_target": "continuation", "doc_to_choice": "context_options"}
        metrics = ["acc"]
    config = {
        "task": name,
        "custom_dataset": lambda **kwargs: DatasetDict(test=Dataset.from_list(records)),
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
        **form,
    }
    return ConfigurableTask(config=config)
