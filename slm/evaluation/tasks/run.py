"""Run each downstream task as a separate harness evaluation, so that a failure does not affect other tasks.

Notable: data in the local cache are used without network access, and an unreachable hub is noticed in seconds; no code
from a hub is executed; the harness writes no file, and its logs and progress bars are silenced.
"""

import contextlib
import io
import logging
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

import numpy as np
import torch

from slm.data.hub import require_network
from slm.data.questions import read_records
from slm.data.tokenizer import Tokenizer
from slm.evaluation.tasks import task_manager
from slm.evaluation.tasks.items import Item, items_of, measures, write_samples
from slm.evaluation.tasks.local import make_task
from slm.model.interface import CausalLM
from slm.runtime.progress import Progress, say
from slm.runtime.words import is_number

NUM_RESAMPLES = 1000  # of the bootstrap for standard errors of metrics that are not means; means have a closed form
MAIN_METRICS = ("acc_norm", "acc", "exact_match", "f1", "bleu", "word_perplexity")
"""A task's *value* is its first metric in this order: length-normalised accuracy before accuracy (docs/tasks.md)."""


def run_task(
    decoder: CausalLM,
    tokenizer: Tokenizer,
    name: str,
    *,
    file: str | None,
    limit: int | None,
    num_fewshot: int | None,
    batch_tokens: int,
    autocast: torch.dtype | None,
    seed: int,
    samples_file: Callable[[str], Path] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return task -> result: `metric`, `value`, `se`, `n`, `num_fewshot`, `also` (other metrics), `notes`.

    The questions come from `file`, or from the harness task if `file` is None. A task that cannot be run has only an
    `error`, one sentence. If `name` is a tag, or a group for which the harness computes no mean, each of its tasks has
    a result. `limit` is the maximum number of questions. `num_fewshot` is the number of examples before each question;
    None takes the task's default, or 0 if it has none. A multiple-choice task also has `chance` and `items`
    (`slm.evaluation.tasks.items.measures`). Each item of a task is written to `samples_file(task)`, if it is given.
    """
    from slm.evaluation.tasks.adapter import DecoderLM

    with quiet() as real_stderr, Progress(f"tasks: {name}", file=real_stderr) as bar:

        def show(unit: str, done: int, total: int) -> None:
            bar.update(done, task=f"tasks: {name}, {unit}", total=total)

        model = DecoderLM(decoder, tokenizer, batch_tokens=batch_tokens, autocast=autocast, seed=seed, progress=show)
        try:
            loaded = load_task(name, file, tokenizer)
            results, items = evaluate_task(model, loaded, limit=limit, num_fewshot=num_fewshot, seed=seed)
            if samples_file is not None:
                for task in items:
                    write_samples(samples_file(task), items[task])
        except Exception as error:  # a task's code or data may raise anything, and the other tasks must still run
            results = {name: {"error": _first_line(error)}}
    notes = []
    if file is not None:
        notes.append(f"Questions and their wording come from {file}, not from a harness task named {name}.")
    if model.num_truncated:
        notes.append(
            f"{model.num_truncated:,} requests were cut on the left to the context of {model.max_length:,} tokens."
        )
    for task, result in results.items():
        if notes:
            result["notes"] = notes
        say(f"tasks: {task}: {_summary(result)}")
    return results


def load_task(name: str, file: str | None, tokenizer: Tokenizer | None = None) -> Any:
    """Return tasks as `TaskManager.load` does: one with the questions of `file`, or the harness tasks called `name`.

    Questions whose answers are generated need the model's `tokenizer`.
    """
    if file is not None:
        return {"tasks": {name: make_task(name, read_records(name, file), tokenizer)}}
    try:
        # Has the effect of HF_HUB_OFFLINE=1, which both packages read only when they are imported.
        with patch("datasets.config.HF_HUB_OFFLINE", True), patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
            return task_manager().load([name])
    except ImportError:  # the task needs a package that is not installed
        raise
    except Exception:  # not in the cache: the error's class depends on the versions of datasets and huggingface_hub
        try:
            require_network(name)
        except ValueError:
            raise ValueError(
                f"the data of {name} are not in the local cache and the hub cannot be reached: connect to the network, "
                f"or give the questions as task_files.{name}=FILE"
            ) from None
        return task_manager().load([name])


def evaluate_task(
    model: Any, loaded: Any, *, limit: int | None, num_fewshot: int | None, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Item]]]:
    """Evaluate loaded tasks with any harness model; return results as `run_task` does, but without notes, and items."""
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        default = task.get_config("num_fewshot")
        if default is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        elif num_fewshot is not None and default != 0:  # a task whose default is 0 must never get examples
            task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    report = evaluate(model, loaded, limit=limit, bootstrap_iters=NUM_RESAMPLES, log_samples=True)
    results, items = _entries(report), {}
    for name, task in loaded["tasks"].items():
        metric = results.get(name, {}).get("metric", "")  # a task of a group with a mean of its own has no result
        items[name] = items_of(task, report["samples"][name], metric)
        if metric:
            measured = measures(items[name], metric)
            results[name] |= measured | {"also": results[name]["also"] | measured.get("also", {})}
    return results, items


def _entries(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for name, row in (report.get("groups") or report["results"]).items():
        metrics = _metrics(row)
        if not metrics:
            continue
        main_metric = next((metric for metric in MAIN_METRICS if metric in metrics), next(iter(metrics)))
        main_result = metrics.pop(main_metric)
        if not math.isfinite(main_result["value"]):
            entries[name] = {"error": f"{main_metric} of {name} is {main_result['value']}, not a finite number"}
            continue
        others = {metric: result for metric, result in metrics.items() if math.isfinite(result["value"])}
        fields = {"metric": main_metric, **main_result, "n": row["sample_len"]}
        entries[name] = {**fields, "num_fewshot": report["n-shot"].get(name, 0), "also": others}
    return entries


def _metrics(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return metric -> `value` and `se`; with several filters (of answers) the keys are "METRIC,FILTER"."""
    names = [tuple(key.split(",", 1)) for key in row if "," in key]
    pairs = [(metric, filter_name) for metric, filter_name in names if not metric.endswith("_stderr")]
    has_one_filter = len({filter_name for _, filter_name in pairs}) == 1
    metrics = {}
    for metric, filter_name in pairs:
        error = row.get(f"{metric}_stderr,{filter_name}")
        metrics[metric if has_one_filter else f"{metric},{filter_name}"] = {
            "value": float(row[f"{metric},{filter_name}"]),
            "se": float(error) if error is not None and is_number(error) else None,
        }
    return metrics


def _summary(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return f"skipped: {result['error']}"
    error_text = "" if result["se"] is None else f" +- {result['se']:.4f}"
    bits = result["also"].get("bits_per_byte")
    bits_text = f", {bits['value']:.4f} bits per byte of the right answer" if bits else ""
    return (
        f"{result['metric']} {result['value']:.4f}{error_text}{bits_text} "
        f"(n {result['n']}, {result['num_fewshot']}-shot)"
    )


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}"


@contextlib.contextmanager
def quiet() -> Iterator[TextIO]:
    """Silence the harness's logs and progress bars; yield the real stderr."""
    stderr = sys.stderr
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield stderr
