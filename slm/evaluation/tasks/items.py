"""Single items of tasks: what was asked and answered, and how surely multiple-choice questions were answered.

Notable: accuracy hardly moves below a billion parameters, but the probability of the right answer does (DataDecide,
arXiv:2504.11393). Sums over at most `MAX_STORED` blocks of neighbouring items are stored, so that the error of a
difference between two checkpoints is that of the difference item by item, if they answered the same items.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.questions import answer_scores, mean_with_error
from slm.evaluation.bootstrap import merge_blocks
from slm.runtime.files import write_atomically

Item = dict[str, Any]
ACCURACIES, EXACT_MATCH = ("acc", "acc_norm"), "exact_match"


def items_of(task: Any, samples: Sequence[Mapping[str, Any]], metric: str) -> list[Item]:
    """Return what each item asked and what the model answered, from the samples that the harness logs of a task.

    `metric` is the task's main metric. An item of a multiple-choice task has `choices`, their `log_likelihoods` (nats),
    `bytes`, `gold` (an index, or a list of several), `prediction`, `correct`, `bits_per_byte` and `margin`; any other
    item has its `responses`, its `target` and the values of its metrics.
    """
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    is_choice = task.OUTPUT_TYPE == "multiple_choice" and not callable(getattr(task.config, "process_results", None))
    items = [_choice_item(task, sample, metric) for sample in samples] if is_choice else [None]
    return [item for item in items if item] if all(items) else [_other_item(sample) for sample in samples]


def _choice_item(task: Any, sample: Mapping[str, Any], metric: str) -> Item | None:
    """Return the item of a multiple-choice question; None if its right answer is not one of the choices."""
    names = list(task.doc_to_choice(sample["doc"]))  # without the space before a choice
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    indices = [names.index(x) if x in names else x for x in (gold if isinstance(gold, list) else [gold])]
    if not indices or not all(isinstance(index, int) and 0 <= index < len(names) for index in indices):
        return None
    contexts, continuations = zip(*sample["arguments"][: len(names)], strict=True)
    nats = [float(log_likelihood) for log_likelihood, _ in sample["filtered_resps"][: len(names)]]
    bits_per_byte, margin = answer_scores(nats, continuations, indices)
    lengths = [len(name) for name in names] if metric == "acc_norm" else [1] * len(names)
    prediction = int(np.argmax(np.divide(nats, lengths)))
    correct = sample[metric] if metric in ACCURACIES else prediction in indices
    return {
        "item": sample["doc_id"],
        "prompt": list(contexts) if task.multiple_input else contexts[0],
        "choices": continuations[0] if task.multiple_input else list(continuations),
        "log_likelihoods": nats,
        "bytes": [len(text.encode()) for text in continuations],
        "gold": indices if len(indices) > 1 else indices[0],
        "prediction": prediction,
        "correct": bool(correct),
        "bits_per_byte": bits_per_byte,
        "margin": margin,
    }


def _other_item(sample: Mapping[str, Any]) -> Item:
    prompts = [arguments[0] for arguments in sample["arguments"]]
    fields = {"item": sample["doc_id"], "prompt": prompts[0] if len(prompts) == 1 else prompts}
    fields |= {"responses": sample["filtered_resps"], "target": sample["target"]}
    return fields | {metric: sample[metric] for metric in sample["metrics"]}


def measures(items: Sequence[Item], metric: str) -> dict[str, Any]:
    """Return `chance`, `also` (bits_per_byte and margin, with errors) and `items`, if all items have choices.

    `items` has the `fingerprint` of the questions, and the sums over `blocks` of items of the `count` of items, of
    bits_per_byte, of margin and, if the main metric is an accuracy, of its `value`. Answers that must be an exact match
    have only `items`, whatever the prompts: these depend on the chat template. All other tasks have nothing.
    """
    if not all("margin" in item for item in items):
        if metric != EXACT_MATCH or not all(metric in item for item in items):
            return {}
        return {
            "items": _stored([item["target"] for item in items], {"value": [float(item[metric]) for item in items]})
        }
    columns = {"bits_per_byte": [item["bits_per_byte"] for item in items]}
    if all(math.isfinite(item["margin"]) for item in items):
        columns["margin"] = [item["margin"] for item in items]
    asked = [[item[key] for key in ("prompt", "choices", "gold")] for item in items]
    values = {"value": [float(item["correct"]) for item in items]} if metric in ACCURACIES else {}
    gold_counts = [len(item["gold"]) if isinstance(item["gold"], list) else 1 for item in items]
    return {
        "chance": float(np.mean([n / len(item["bytes"]) for n, item in zip(gold_counts, items, strict=True)])),
        "also": {name: mean_with_error(values) for name, values in columns.items()},
        "items": _stored(asked, columns | values),
    }


def _stored(asked: list[Any], columns: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    columns = {"count": [1.0] * len(asked), **columns}
    sums_KM = merge_blocks(np.column_stack(list(columns.values())))
    return {
        "fingerprint": hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:16],
        "blocks": dict(zip(columns, sums_KM.T.tolist(), strict=True)),
    }


def samples_file(task: str, checkpoint: str, fingerprint: str) -> str:
    """Return samples/TASK-CHECKPOINT-FINGERPRINT.jsonl with the last part of the checkpoint's path or hub id."""
    parts = (task, Path(checkpoint).absolute().name, fingerprint[:8])
    return f"samples/{'-'.join(re.sub(r'[^A-Za-z0-9_.]+', '_', part) for part in parts)}.jsonl"


def write_samples(file: Path, items: Sequence[Item]) -> None:
    """Write one JSON object per line. A value that JSON lacks, such as a tuple of the harness, is written as text."""
    write_atomically(file, "".join(json.dumps(item, ensure_ascii=False, default=str) + "\n" for item in items))
