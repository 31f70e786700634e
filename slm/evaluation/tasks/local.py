"""Multiple-choice tasks from local files of rows (JSON lines, Parquet), as task objects of lm-evaluation-harness.

Notable: records have one of two forms. `query, choices, gold` asks which choice follows the query. `context_options,
continuation, gold` asks after which context the continuation follows (WinoGrande, by partial evaluation: only the words
after the choice are scored, arXiv:1806.02847). One space joins what is given and what is scored, as in the harness.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.data.local import text_files
from slm.data.readers import ROW_SUFFIXES, read_rows
from slm.runtime.settings import NAME, Kind, check_kind, list_of

FORMS = {"choices": ("query", "choices", "gold"), "context_options": ("context_options", "continuation", "gold")}
"""The keys of a record, by the key that holds its options."""
OPTIONS = list_of(NAME, "at least two texts, none empty", least=2)


def files_of_task(name: str, path: str) -> list[Path]:
    """The files that `task_files.NAME` names. Raises `ValueError` if there is none."""
    return text_files(path, f"task_files.{name}", suffixes=ROW_SUFFIXES).paths


def read_records(name: str, path: str) -> list[dict[str, Any]]:
    """The checked records of a task's files, without other keys. `ValueError` names the file and line that is wrong."""
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


def answered(record: Mapping[str, Any]) -> list[str]:
    """The texts that show that a question was trained on: as asked, and with its answer."""
    if "choices" in record:
        return [record["query"], f"{record['query']} {record['choices'][record['gold']]}"]
    return [f"{record['context_options'][record['gold']]} {record['continuation']}"]


def make_task(name: str, records: list[dict[str, Any]]) -> Any:
    """A harness task (`ConfigurableTask`) over the records: acc, and acc_norm where choices differ in length."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    if "choices" in records[0]:
        form = {"doc_to_text": "query", "doc_to_target": "gold", "doc_to_choice": "choices"}
        metrics = ["acc", "acc_norm"]
    else:
        # The harness takes an index as doc_to_text for "the choices are contexts, and this one is right".
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
    return separator.join("/".join(keys) for keys in FORMS.values())


def _record(record: Any, where: str) -> dict[str, Any]:
    form = next((key for key in FORMS if isinstance(record, Mapping) and key in record), None)
    if form is None or (missing := [key for key in FORMS[form] if key not in record]):
        lacking = f"lacks {', '.join(missing)}" if form else "is not a question"
        raise ValueError(f"{where} {lacking}: it must have the keys {_keys(' or ')}")
    for key in FORMS[form][:2]:
        check_kind(f"{where}: {key}", record[key], OPTIONS if key == form else NAME)
    last = len(record[form]) - 1
    is_place = Kind(
        f"0 to {last}, the place of the right answer",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= last,
    )
    check_kind(f"{where}: gold", record["gold"], is_place)
    return {key: record[key] for key in FORMS[form]}
