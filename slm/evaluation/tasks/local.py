"""Make lm-evaluation-harness tasks from questions in local files (JSON lines, Parquet).

Notable: a record has one of the forms of `generation.py`, or one of two of multiple choice. As in the harness, a space
joins context and continuation.
- `query, choices, gold` asks which choice follows the query.
- `context_options, continuation, gold` asks which context the continuation follows. Only the continuation is scored
  (partial evaluation, arXiv:1806.02847, as in WinoGrande).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.data.local import text_files
from slm.data.readers import ROW_SUFFIXES, read_rows
from slm.evaluation.tasks import generation
from slm.runtime.settings import NAME, Kind, check_kind, list_of

if TYPE_CHECKING:
    from slm.data.tokenizer import Tokenizer

FORMS = {"choices": ("query", "choices", "gold"), "context_options": ("context_options", "continuation", "gold")}
"""Key with the options of a question -> all keys of its record."""
OPTIONS_KIND = list_of(NAME, "at least two texts, none empty", min_length=2)


def files_of_task(name: str, path: str) -> list[Path]:
    """Return the files of setting `task_files.NAME`. Raises `ValueError` if there are none."""
    return text_files(path, f"task_files.{name}", suffixes=ROW_SUFFIXES).paths


def read_records(name: str, path: str) -> list[dict[str, Any]]:
    """Return the checked records of a task, reduced to the keys of their form. Raises `ValueError` for a bad line."""
    key = f"task_files.{name}"
    records = [
        _record(row, f"{key}: {file} {place}")
        for file in files_of_task(name, path)
        for place, row in read_rows(file, key=key)
    ]
    if not records:
        raise ValueError(f"{key}={path!r} holds no question: its rows must have the keys {_keys(' or ')}")
    if len({tuple(record) for record in records}) > 1:
        raise ValueError(f"{key}={path!r} mixes records with {_keys(' and ')}: all must have one form")
    return records


def question_texts(record: Mapping[str, Any]) -> list[str]:
    """Return a question with its answer and, if it is separate text, without. If training had either, it was seen."""
    if "conversation" in record:
        return [record["conversation"]]
    if "answer" in record:
        return [record["prompt"], f"{record['prompt']} {record['answer']}"]
    if "choices" in record:
        return [record["query"], f"{record['query']} {record['choices'][record['gold']]}"]
    return [f"{record['context_options'][record['gold']]} {record['continuation']}"]


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


def _keys(separator: str) -> str:
    return separator.join("/".join(keys) for keys in (*FORMS.values(), *generation.FORMS.values()))


def _record(row: Any, where: str) -> dict[str, Any]:
    options_key = next((key for key in FORMS if isinstance(row, Mapping) and key in row), None)
    if options_key is None and isinstance(row, Mapping) and generation.FORMS.keys() & row.keys():
        return generation.generation_record(row, where)
    if options_key is None:
        raise ValueError(f"{where} is not a question: it must have the keys {_keys(' or ')}")
    if missing := [key for key in FORMS[options_key] if key not in row]:
        raise ValueError(f"{where} lacks {', '.join(missing)}: it must have the keys {_keys(' or ')}")
    for key in FORMS[options_key]:
        if key != "gold":
            check_kind(f"{where}: {key}", row[key], OPTIONS_KIND if key == options_key else NAME)
    last_index = len(row[options_key]) - 1
    index_kind = Kind(
        f"0 to {last_index}, the index of the right answer",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= last_index,
    )
    check_kind(f"{where}: gold", row["gold"], index_kind)
    return {key: row[key] for key in FORMS[options_key]}
