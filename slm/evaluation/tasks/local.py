"""Multiple-choice tasks from local files of rows (JSON lines, Parquet), as task objects of lm-evaluation-harness.

Notable: two forms, told apart by their keys. `query, choices, gold`: which choice follows the query. `context_options,
continuation, gold`: after which context the continuation follows (WinoGrande, by partial evaluation: only the words
after the choice are scored, arXiv:1806.02847). One space joins what is given and what is scored, as in the harness.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.data.local import text_files
from slm.data.readers import ROW_SUFFIXES, read_rows

FORMS = {
    "choices": ("query", "choices", "gold"),
    "context_options": ("context_options", "continuation", "gold"),
}
"""Key that tells the form -> keys of a record."""


def files_of_task(name: str, path: str) -> list[Path]:
    """The files of rows that `task_files.NAME` means. Raises `ValueError` where there are none to read."""
    return text_files(path, f"task_files.{name}", suffixes=ROW_SUFFIXES).paths


def read_records(name: str, path: str) -> list[dict[str, Any]]:
    """The records of a task's files, checked; further keys are dropped.

    Raises `ValueError` naming the file and the line that is wrong.
    """
    key = f"task_files.{name}"
    records = [
        _record(row, f"{key}: {file} {place}")
        for file in files_of_task(name, path)
        for place, row in read_rows(file, key=key)
    ]
    if not records:
        raise ValueError(f"{key}={path!r} holds no question; wants rows with the keys {' or '.join(map(_keys, FORMS))}")
    if len({tuple(record) for record in records}) > 1:
        raise ValueError(f"{key}={path!r} mixes records with {' and '.join(map(_keys, FORMS))}; wants one form of them")
    return records


def answered(record: Mapping[str, Any]) -> list[str]:
    """The texts by which a question would be known to be in training documents: as asked, and with its answer."""
    if "choices" in record:
        return [record["query"], f"{record['query']} {record['choices'][record['gold']]}"]
    return [f"{record['context_options'][record['gold']]} {record['continuation']}"]


def make_task(name: str, records: list[dict[str, Any]]) -> Any:
    """A harness task (`ConfigurableTask`) over the records: acc, and acc_norm where choices differ in length."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    by_context = "context_options" in records[0]
    # The harness takes an index as doc_to_text for "the choices are contexts, and this one is right".
    form = (
        {"doc_to_text": "gold", "doc_to_target": "continuation", "doc_to_choice": "context_options"}
        if by_context
        else {"doc_to_text": "query", "doc_to_target": "gold", "doc_to_choice": "choices"}
    )
    config = {
        "task": name,
        "custom_dataset": lambda **kwargs: DatasetDict(test=Dataset.from_list(records)),
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in (("acc",) if by_context else ("acc", "acc_norm"))
        ],
        **form,
    }
    return ConfigurableTask(config=config)


def _keys(form: str) -> str:
    return "/".join(FORMS[form])


def _record(record: Any, where: str) -> dict[str, Any]:
    form = next((key for key in FORMS if isinstance(record, Mapping) and key in record), None)
    if form is None or (missing := [key for key in FORMS[form] if key not in record]):
        lacking = f"lacks {', '.join(missing)}" if form else "is no question"
        raise ValueError(f"{where} {lacking}; wants the keys {' or '.join(map(_keys, FORMS))}")
    for key in FORMS[form][:2]:
        if not _is_text(record[key], several=key == form):
            wanted = "a list of at least two texts, none empty" if key == form else "a text that is not empty"
            raise ValueError(f"{where}: {key}={record[key]!r} wants to be {wanted}")
    gold, options = record["gold"], record[form]
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(options):
        raise ValueError(f"{where}: gold={gold!r} wants to be 0 to {len(options) - 1}, the place of the right answer")
    return {key: record[key] for key in FORMS[form]}


def _is_text(value: Any, *, several: bool) -> bool:
    if several:
        return isinstance(value, list) and len(value) >= 2 and all(_is_text(item, several=False) for item in value)
    return isinstance(value, str) and bool(value.strip())
