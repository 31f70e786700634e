"""The tasks of a validation: answers to questions from local files (`train.eval_tasks`).

Notable: questions, tokens and measures are those of evaluate.py (`slm.data.questions`), so `task_files` with the same
file and limit gives the same numbers on the same weights. Log-likelihoods are computed as validation losses are,
without lm-evaluation-harness. Legend: N requests of all tasks, B requests of a batch, T tokens.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slm.data.questions import Request, encode_pair, make_request, measure_records, read_tasks, scored_pairs
from slm.data.tokenizer import Tokenizer
from slm.model.loss import IGNORE
from slm.runtime.machine import float64_device
from slm.runtime.words import plural
from slm.training.module import LanguageModel
from slm.training.plan import Plan

SETTING = "train.eval_tasks"
COLUMN_METRICS = ("bits_per_byte", "margin")
"""Metrics of a task that have columns of their own in metrics.csv, besides its value."""


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """The questions of a task, as tokens."""

    name: str
    records: Sequence[Mapping[str, Any]]
    requests: Sequence[Sequence[Request]]
    """For each record, one request for each of its choices."""
    num_cut: int
    """Number of requests that were cut on the left to the model's context, as evaluate.py cuts them."""

    @property
    def note(self) -> str:
        """A sentence on what was cut; empty if nothing was."""
        requests = plural(self.num_cut, "request")
        return f"{requests} of {self.name} cut on the left to the model's context" if self.num_cut else ""


def encode_tasks(plan: Plan, tokenizer: Tokenizer) -> list[EvalTask]:
    """Read and encode the questions of `train.eval_tasks`. Raises `ValueError` for a choice longer than the context."""
    train = plan.settings["train"]
    context = plan.model.max_position_embeddings
    begin = [tokenizer.separator_id] if tokenizer.adds_bos else []
    tasks = []
    for name, records in read_tasks(train.get("eval_tasks"), SETTING, train.get("eval_task_limit")).items():
        num_cut, requests = 0, []
        for number, record in enumerate(records, start=1):
            encoded = [encode_pair(lambda text: begin + tokenizer.encode(text), *pair) for pair in scored_pairs(record)]
            num_cut += sum(len(given) + len(scored) > context + 1 for given, scored in encoded)
            try:
                requests.append([make_request(g or [tokenizer.separator_id], s, context) for g, s in encoded])
            except ValueError as error:
                raise ValueError(
                    f"{SETTING}.{name}: question {number}: {error} (model.max_position_embeddings={context})"
                ) from None
        tasks.append(EvalTask(name=name, records=records, requests=requests, num_cut=num_cut))
    return tasks


@torch.no_grad()
def score_tasks(module: LanguageModel, tasks: Sequence[EvalTask]) -> dict[str, dict[str, Any]]:
    """Return task -> result (`measure_records`). Each process scores its share of the batches of all tasks."""
    if not tasks:
        return {}
    trainer, plan = module.trainer, module.plan
    requests = [request for task in tasks for choices in task.requests for request in choices]
    sum_device = float64_device(module.device)
    nats_N = torch.zeros(len(requests), dtype=torch.float64, device=sum_device)
    batches = list(make_batches(requests, plan.micro_batch_size * plan.sequence_length))
    for first in range(0, len(batches), trainer.world_size):
        index = first + trainer.global_rank
        # All processes make the same number of passes, as sharded weights require: some score the last batch again.
        rows = batches[min(index, len(batches) - 1)]
        inputs_BT, targets_BT = (tensor.to(module.device) for tensor in padded([requests[row] for row in rows]))
        with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context():
            losses_BT = module.decoder.token_losses(inputs_BT, targets_BT)
        if index < len(batches):
            nats_N[rows] = losses_BT.to(sum_device).double().sum(1)
    nats = iter(trainer.strategy.reduce(nats_N, reduce_op="sum").tolist())
    return {
        task.name: measure_records(
            task.records, [[-value for value in itertools.islice(nats, len(choices))] for choices in task.requests]
        )
        for task in tasks
    }


def make_batches(requests: Sequence[Request], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of requests, longest first: at least one, and as many as fit into `batch_tokens` padded tokens."""
    batch: list[int] = []
    for index in sorted(range(len(requests)), key=lambda index: -len(requests[index].inputs)):
        if batch and (len(batch) + 1) * len(requests[batch[0]].inputs) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, each (B, T). Padding comes last, so causal attention hides it from the requests."""
    length = max(len(request.inputs) for request in requests)
    inputs_BT = torch.zeros(len(requests), length, dtype=torch.int64)
    targets_BT = torch.full_like(inputs_BT, IGNORE)
    for row, (inputs, targets) in enumerate(requests):
        inputs_BT[row, : len(inputs)] = torch.tensor(inputs)
        targets_BT[row, len(inputs) - len(targets) : len(inputs)] = torch.tensor(targets)
    return inputs_BT, targets_BT


def column_names(train: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of metrics.csv that the tasks of a `train` group add; the names are those of results.csv."""
    ends = ("", *(f"/{metric}" for metric in COLUMN_METRICS))
    return tuple(f"tasks/{name}{end}" for name in train.get("eval_tasks") or {} for end in ends)


def task_columns(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return column -> value for the results of tasks."""
    row = {}
    for name, result in results.items():
        row[f"tasks/{name}"] = result["value"]
        row |= {f"tasks/{name}/{metric}": result["also"][metric]["value"] for metric in COLUMN_METRICS}
    return row
