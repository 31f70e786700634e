"""Multiple-choice tasks from local JSON lines, as task objects of lm-evaluation-harness.

Notable: two forms, told apart by their keys. `query, choices, gold`: which choice follows the query. `context_options,
continuation, gold`: after which context the continuation follows (WinoGrande, by partial evaluation: only the words
after the choice are scored, arXiv:1806.02847). One space joins what is given and what is scored, as in the harness.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMS = {
    "choices": ("query", "choices", "gold"),
    "context_options": ("context_options", "continuation", "gold"),
}
"""Key that tells the form -> keys of a record."""


def read_records(name: str, path: str | Path) -> list[dict[str, Any]]:
    """The records of a task file, checked; further keys are dropped.

    Raises `ValueError` naming the file and the line that is wrong.
    """
    where = f"task_files.{name}={str(path)!r}"
    if not Path(path).is_file():
        raise ValueError(f"{where} is not a file; wants JSON lines with the keys {' or '.join(map(_keys, FORMS))}")
    try:
        lines = (
            Path(path).read_text(encoding="utf-8").split("\n")
        )  # splitlines would cut at U+2028, which JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} cannot be read as UTF-8 text: {error}") from None
    records = [_record(line, f"{where}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not records:
        raise ValueError(f"{where} holds no question; wants JSON lines with the keys {' or '.join(map(_keys, FORMS))}")
    if len({tuple(record) for record in records}) > 1:
        raise ValueError(f"{where} mixes records with {' and '.join(map(_keys, FORMS))}; wants one form in a file")
    return records


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


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
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
