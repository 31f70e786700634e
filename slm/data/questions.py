"""Questions in local files (JSON lines, Parquet): how they are read, and how choices are cut into tokens and measured.

Notable: a record has one of two forms of multiple choice. As in lm-evaluation-harness, a space joins context and
continuation.
- `query, choices, gold` asks which choice follows the query.
- `context_options, continuation, gold` asks which context the continuation follows. Only the continuation is scored
  (partial evaluation, arXiv:1806.02847, as in WinoGrande).
Or the model writes the answer (`slm.evaluation.tasks.local`):
- `prompt, answer`: it continues the prompt after a space.
- `messages`, with `answer` or with the assistant's answer as the last message: it answers by its chat template.

Training and evaluation both score questions, so that all definitions are here. Imports no torch.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm.data.conversations import conversation
from slm.data.local import text_files
from slm.data.readers import ROW_SUFFIXES, read_rows
from slm.runtime.settings import NAME, Kind, check_kind, list_of

FORMS = {"choices": ("query", "choices", "gold"), "context_options": ("context_options", "continuation", "gold")}
"""Key with the options of a question -> all keys of its record."""
WRITTEN_FORMS = {"prompt": ("prompt", "answer"), "messages": ("messages",)}
"""Key of a question with a written answer -> the keys of its record, without an `answer` beside `messages`."""
OPTIONS_KIND = list_of(NAME, "at least two texts, none empty", min_length=2)
Encode = Callable[[str], list[int]]
"""Returns the ids of a text, after a begin token if the tokenizer's own rule adds one."""


def files_of_task(name: str, path: str, setting: str = "task_files") -> list[Path]:
    """Return the files of `SETTING.NAME`. Raises `ValueError` if there are none."""
    return text_files(path, f"{setting}.{name}", suffixes=ROW_SUFFIXES).paths


def read_records(name: str, path: str, setting: str = "task_files") -> list[dict[str, Any]]:
    """Return the checked records of a task, reduced to the keys of their form. Raises `ValueError` for a bad line."""
    key = f"{setting}.{name}"
    records = [
        _record(row, f"{key}: {file} {place}")
        for file in files_of_task(name, path, setting)
        for place, row in read_rows(file, key=key)
    ]
    if not records:
        raise ValueError(f"{key}={path!r} holds no question: its rows must have the keys {_keys(' or ')}")
    if len({tuple(record) for record in records}) > 1:
        raise ValueError(f"{key}={path!r} mixes records with {_keys(' and ')}: all must have one form")
    return records


def read_tasks(files: Mapping[str, str] | None, setting: str, limit: int | None) -> dict[str, list[dict[str, Any]]]:
    """Return the first `limit` records (None: all) of the tasks in a setting of names and files; null has no tasks.

    Raises `ValueError` for a bad line, and for answers that the model has to write.
    """
    stop = None if limit is None else int(limit)  # 1e3 is a number of questions too
    tasks = {str(name): read_records(str(name), path, setting)[:stop] for name, path in (files or {}).items()}
    for name, records in tasks.items():
        if not FORMS.keys() & records[0].keys():
            raise ValueError(
                f"{setting}.{name} asks for written answers, but while a run trains only choices are scored: "
                "give it to evaluate.py as task_files"
            )
    return tasks


def question_texts(record: Mapping[str, Any]) -> list[str]:
    """Return a question with its answer and, if it is separate text, without. If training had either, it was seen."""
    if "conversation" in record:
        return [record["conversation"]]
    if "answer" in record:
        return [record["prompt"], f"{record['prompt']} {record['answer']}"]
    if "choices" in record:
        return [record["query"], f"{record['query']} {record['choices'][record['gold']]}"]
    return [f"{record['context_options'][record['gold']]} {record['continuation']}"]


def scored_pairs(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (context, continuation) for each choice of a record. The continuation begins with a space."""
    if "choices" in record:
        return [(record["query"], f" {choice}") for choice in record["choices"]]
    return [(context, f" {record['continuation']}") for context in record["context_options"]]


class Request(NamedTuple):
    """What a model scores: the last `len(targets)` positions of `inputs` predict the `targets`."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def make_request(context: Sequence[int], continuation: Sequence[int], max_length: int) -> Request:
    """Return the pair as inputs and targets, truncated on the left to the model's context of `max_length` tokens.

    `context` has at least one token. Raises `ValueError` if the continuation has no token, or more than `max_length`.
    """
    if not 1 <= len(continuation) <= max_length:
        raise ValueError(
            f"a continuation of {len(continuation)} tokens cannot be scored: it must have 1 to {max_length} tokens"
        )
    tokens = (*context, *continuation)[-(max_length + 1) :]
    return Request(tokens[:-1], tuple(continuation))


def encode_pair(encode: Encode, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the ids of a context that is not empty, and of its continuation, as the harness's `hf` model cuts them.

    Spaces at the end of the context move to the continuation. Both are encoded as one text, which is split by the
    number of the context's ids. The ids of the context are empty if it has only spaces and no begin token.
    """
    stripped = context.rstrip()
    context_ids = encode(stripped)
    return context_ids, encode(context + continuation)[len(context_ids) :]


def answer_scores(
    log_likelihoods: Sequence[float], continuations: Sequence[str], gold: Collection[int]
) -> tuple[float, float]:
    """Return bits per byte of the right answer, and its margin over the best wrong one, from log-likelihoods (nats).

    Bits per byte of a choice are -log2 of its probability over the UTF-8 bytes of its continuation, the space before it
    included (OLMES, arXiv:2406.08446, and its successors: `bits_per_byte_corr`). The margin is the lowest bits per byte
    of a wrong choice minus those of the right one: above 0 if the right answer is the most probable per byte (`margin`
    of DataDecide, arXiv:2504.11393, in bits instead of probabilities). If `gold` has several right choices, the most
    probable one counts. The margin is NaN if no choice is wrong.
    """
    bits = [-nats / math.log(2) / len(text.encode()) for nats, text in zip(log_likelihoods, continuations, strict=True)]
    right = min(bits[index] for index in gold)
    wrong = min((value for index, value in enumerate(bits) if index not in gold), default=math.nan)
    return right, wrong - right


def mean_with_error(values: Sequence[float]) -> dict[str, float | None]:
    """Return `value`, the mean over items, and `se`, the sample standard deviation / sqrt(n); None for one item."""
    se = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "se": se}


def measure_records(records: Sequence[Mapping[str, Any]], nats: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the result of a task of local questions, as `results.json` has it, without examples before a question.

    `nats` are the log-likelihoods of each record's `scored_pairs`. The keys are `metric`, `value`, `se`, `n`, `chance`
    and `also`. The accuracies are the harness's: `acc` is the share of questions whose right choice has the highest
    log-likelihood, and `acc_norm`, the value of questions with `choices`, the same per character of the choice. All
    values are NaN if a log-likelihood is not finite, because the first choice would always win.
    """
    values: dict[str, list[float]] = {"acc_norm": [], "acc": [], "bits_per_byte": [], "margin": []}
    for record, choice_nats in zip(records, nats, strict=True):
        continuations = [continuation for _, continuation in scored_pairs(record)]
        bits_per_byte, margin = answer_scores(choice_nats, continuations, [record["gold"]])
        lengths = [len(choice) for choice in record["choices"]] if "choices" in record else [1] * len(choice_nats)
        values["acc_norm"].append(float(np.argmax(np.divide(choice_nats, lengths)) == record["gold"]))
        values["acc"].append(float(np.argmax(choice_nats) == record["gold"]))
        values["bits_per_byte"].append(bits_per_byte)
        values["margin"].append(margin)
    if "choices" not in records[0]:
        del values["acc_norm"]
    if not all(math.isfinite(value) for choice_nats in nats for value in choice_nats):
        values = {name: [math.nan] * len(records) for name in values}
    metrics = {name: mean_with_error(of_items) for name, of_items in values.items()}
    main = next(iter(metrics))
    chance = float(np.mean([1 / len(choice_nats) for choice_nats in nats]))
    return {"metric": main, **metrics.pop(main), "n": len(records), "chance": chance, "also": metrics}


def _keys(separator: str) -> str:
    return separator.join("/".join(keys) for keys in (*FORMS.values(), *WRITTEN_FORMS.values()))


def _record(row: Any, where: str) -> dict[str, Any]:
    options_key = next((key for key in FORMS if isinstance(row, Mapping) and key in row), None)
    if options_key is None and isinstance(row, Mapping) and WRITTEN_FORMS.keys() & row.keys():
        return _written_record(row, where)
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
    return {key: _encodable(row[key]) for key in FORMS[options_key]}


def _encodable(value: Any) -> Any:
    """Replace half surrogate pairs, which JSON may hold, by ?, as in training texts."""
    if isinstance(value, list):
        return [_encodable(text) for text in value]
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _written_record(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `prompt` and `answer`, or the JSON text of a `conversation` that ends with the answer.

    Raises `ValueError` that begins with `where` for a row without an answer, or with messages that are not valid.
    """
    if "messages" not in row and "completion" not in row:
        for key in WRITTEN_FORMS["prompt"]:
            check_kind(f"{where}: {key}", row.get(key), NAME)
        return {key: _encodable(row[key]) for key in WRITTEN_FORMS["prompt"]}
    if "answer" in row:
        check_kind(f"{where}: answer", row["answer"], NAME)
        if not isinstance(row.get("messages"), list):
            raise ValueError(f"{where}: messages must be a list")
        row = {**row, "messages": [*row["messages"], {"role": "assistant", "content": row["answer"]}]}
    elif "messages" in row and not _ends_with_answer(row["messages"]):
        raise ValueError(f"{where} has no answer: give it as `answer`, or as the last message, of the assistant")
    return {"conversation": conversation(row, where)}


def _ends_with_answer(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"
