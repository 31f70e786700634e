"""Compute log-likelihoods of many (context, continuation) pairs without computing common tokens twice.

Notable:
- Requests with a common beginning (the choices of a question, WinoGrande's two readings of a sentence, a fixed few-shot
  preamble) are scored in two passes: one over the common tokens, and one that continues from copies of the cache.
- If the choices of a question are one token each, their inputs are equal, and the first pass scores all of them.
- Only positions that predict a continuation token reach the head. It runs in chunks, because logits are large.

Legend: L tokens of a prefix, T tokens after it, D hidden, N scored positions (n: a chunk of them), V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from slm.checkpoints.weights import dtype_name
from slm.data.questions import Request
from slm.model.interface import Cache, CausalLM
from slm.model.layers import float32_or_wider

PASS_TOKENS_CPU = 24  # fixed cost of a forward pass: the number of tokens computed in the same time (docs/tasks.md)
PASS_TOKENS_GPU = 2048  # rough estimate of this cost on a GPU, which passes over fewer tokens leave mostly idle
HEAD_ROWS = 256  # number of positions whose (V,) logits are in memory at the same time
MIN_SHARED = 0.5  # a request joins a group only if it shares at least this part of its inputs with the group


class Group(NamedTuple):
    """Requests whose inputs begin with the same `prefix_length` tokens."""

    requests: tuple[Request, ...]
    prefix_length: int


class Score(NamedTuple):
    """Result for a continuation, as the harness needs it."""

    log_likelihood: float  # nats, summed over the tokens of the continuation
    is_greedy: bool  # whether each token is the most likely one given the tokens before it


def plan(requests: Sequence[Request], batch_tokens: int, pass_tokens: int) -> list[list[Group]]:
    """Return batches of the distinct `requests`, with or without shared prefixes, whichever costs fewer tokens."""
    single_groups = [Group((request,), 0) for request in requests]
    plans = [make_batches(groups, batch_tokens, pass_tokens) for groups in (share_prefixes(requests), single_groups)]
    return min(plans, key=lambda batches: sum(_cost(batch, pass_tokens) for batch in batches))


def share_prefixes(requests: Sequence[Request]) -> list[Group]:
    """Group requests with a common beginning: in sorted order, each joins the previous group or begins a new one.

    A request joins if the prefix it shares with the group is at least `MIN_SHARED` of its inputs, and if adding it does
    not reduce the tokens that the group saves. An optimal partition (by dynamic programming) would compute only 3%
    fewer tokens, so it is not used (docs/log.md, 2026-11-28).
    """
    groups: list[Group] = []
    for request in sorted(requests):
        if groups:
            members, prefix_length = groups[-1]
            num_common = min(prefix_length, _num_common(members[-1].inputs, request.inputs))
            # A group computes its prefix once instead of once for each member.
            saved_without = (len(members) - 1) * prefix_length
            saved_with = len(members) * num_common
            if num_common >= MIN_SHARED * len(request.inputs) and saved_with >= saved_without:
                groups[-1] = Group((*members, request), num_common)
                continue
        groups.append(Group((request,), len(request.inputs)))
    return groups


def make_batches(groups: Sequence[Group], batch_tokens: int, pass_tokens: int) -> list[list[Group]]:
    """Return batches of up to `batch_tokens` padded tokens, groups with the longest prefix first.

    All groups of a batch use the shortest prefix among them; what a group shares beyond it is computed for each of its
    requests. A batch ends when this repetition and the padding would cost more than the passes of a new batch.
    """
    parts = [part for group in groups for part in _split(group, batch_tokens)]
    # Longest first: a lack of memory shows immediately, and the remaining time is not underestimated.
    parts.sort(key=lambda part: (part.prefix_length, _longest(part)), reverse=True)
    batches: list[list[Group]] = [[]]
    num_rows = 0  # requests in the last batch
    longest = 0  # length of the longest inputs in the last batch
    needed_tokens = 0  # tokens that the parts of the last batch would compute in batches of their own
    for part in parts:
        num_rows += len(part.requests)
        longest = max(longest, _longest(part))
        needed_tokens += _cost([part], 0)
        # Parts are sorted, so `part` has the shortest prefix of the batch that it would join.
        computed_tokens = (len(batches[-1]) + 1) * part.prefix_length + num_rows * (longest - part.prefix_length)
        num_passes = 2 if part.prefix_length else 1
        is_wasteful = computed_tokens - needed_tokens > pass_tokens * num_passes
        if batches[-1] and (num_rows * longest > batch_tokens or is_wasteful):
            batches.append([])
            num_rows, longest, needed_tokens = len(part.requests), _longest(part), _cost([part], 0)
        batches[-1].append(part)
    # The last part of a batch has its shortest prefix.
    return [[part._replace(prefix_length=batch[-1].prefix_length) for part in batch] for batch in batches if batch]


def _cost(batch: Sequence[Group], pass_tokens: int) -> int:
    """Return the tokens computed, padding included, plus `pass_tokens` for each of the one or two passes."""
    num_rows = sum(len(group.requests) for group in batch)
    longest = max(map(_longest, batch))
    prefix_length = batch[-1].prefix_length
    num_passes = int(prefix_length > 0) + int(longest > prefix_length)
    return len(batch) * prefix_length + num_rows * (longest - prefix_length) + pass_tokens * num_passes


def _split(group: Group, batch_tokens: int) -> Iterator[Group]:
    """Yield parts of the group that each fit into a batch. A part of one request shares nothing and has no prefix."""
    num_fitting = max(1, batch_tokens // _longest(group))
    for start in range(0, len(group.requests), num_fitting):
        requests = group.requests[start : start + num_fitting]
        yield Group(requests, group.prefix_length if len(requests) > 1 else 0)


def _longest(group: Group) -> int:
    return max(len(request.inputs) for request in group.requests)


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (token, other_token) in enumerate(zip(first, second, strict=False)):
        if token != other_token:
            return index
    return min(len(first), len(second))


class Scorer:
    """Scores requests with a model, `batch_tokens` padded tokens at a time."""

    def __init__(self, decoder: CausalLM, *, batch_tokens: int, autocast: torch.dtype | None = None) -> None:
        self.decoder = decoder
        self.batch_tokens = batch_tokens
        self.autocast = autocast
        self.device = decoder.device

    def __call__(self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None) -> list[Score]:
        """Return scores in the order of `requests`. `progress` is called with the number of requests scored so far.

        Raises `ValueError` if a log-likelihood is not finite: with NaN, argmax would always pick the first choice.
        """
        pass_tokens = PASS_TOKENS_CPU if self.device.type == "cpu" else PASS_TOKENS_GPU
        counts = Counter(requests)  # equal requests are scored once
        scores: dict[Request, Score] = {}
        num_done = 0
        for groups in plan(list(counts), self.batch_tokens, pass_tokens):
            scores |= self._score_batch(groups)
            num_done += sum(counts[request] for group in groups for request in group.requests)
            progress(num_done)
        return [scores[request] for request in requests]

    @torch.inference_mode()
    def _score_batch(self, groups: list[Group]) -> dict[Request, Score]:
        requests = [request for group in groups for request in group.requests]
        with self.precision():
            states, positions = self._forward(groups, requests, groups[0].prefix_length)
            # Requests may share a (position, target) pair; each pair is scored once.
            index_of_pair: dict[tuple[int, int], int] = {}
            pair_indices = [
                index_of_pair.setdefault(pair, len(index_of_pair))
                for request, request_positions in zip(requests, positions, strict=True)
                for pair in zip(request_positions, request.targets, strict=True)
            ]
            position_N, target_N = torch.tensor(list(index_of_pair), device=self.device).T
            nats_N, is_greedy_N = self._head(states[position_N], target_N)
            log_likelihood, is_greedy = nats_N.cpu()[pair_indices], is_greedy_N.cpu()[pair_indices]
        if not log_likelihood.isfinite().all():
            raise ValueError(
                "log-likelihoods are not finite, so no choice is better than another: the model has diverged, or "
                f"{dtype_name(states.dtype)} overflows and dtype=float32 would not"
            )
        target_counts = [len(request.targets) for request in requests]
        parts = zip(requests, log_likelihood.double().split(target_counts), is_greedy.split(target_counts), strict=True)
        return {request: Score(nats.sum().item(), bool(is_best.all())) for request, nats, is_best in parts}

    def _forward(self, groups: list[Group], requests: list[Request], L: int) -> tuple[Tensor, list[list[int]]]:
        """Return hidden states (positions of all passes, D), and per request the positions that predict its targets."""
        T = max(len(request.inputs) for request in requests) - L
        group_of_row = [g for g, group in enumerate(groups) for _ in group.requests]
        passes: list[Tensor] = []
        cache: Cache | None = None
        if L:
            cache = self._cache(len(groups), L) if T else None  # only the second pass reads it
            prefixes = [group.requests[0].inputs[:L] for group in groups]
            passes.append(self.decoder.hidden(self._padded(prefixes, L), cache))
            if cache:  # each row continues from a copy of the cache of its group
                row_cache = self._cache(len(requests), L + T)
                row_cache.select(cache, torch.tensor(group_of_row, device=self.device))
                cache = row_cache
        if T:
            passes.append(self.decoder.hidden(self._padded([request.inputs[L:] for request in requests], T), cache))

        def position(row: int, token: int) -> int:
            # The states of all prefixes come first, then for each row the states of its other tokens.
            if token < L:
                return group_of_row[row] * L + token
            return len(groups) * L + row * T + (token - L)

        positions = [
            [position(row, token) for token in range(len(request.inputs) - len(request.targets), len(request.inputs))]
            for row, request in enumerate(requests)
        ]
        return torch.cat([states.flatten(0, 1) for states in passes]), positions

    def _head(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability (at least float32) of each target, and whether it is the most likely id."""
        log_probabilities, is_greedy = [], []
        for hidden_nD, targets_n in zip(hidden_ND.split(HEAD_ROWS), targets_N.split(HEAD_ROWS), strict=True):
            logits_nV = self.decoder.head(hidden_nD)
            logits_nV = logits_nV.to(float32_or_wider(logits_nV))
            target_logits_n = logits_nV.gather(1, targets_n[:, None]).squeeze(1)
            log_probabilities.append(target_logits_n - logits_nV.logsumexp(-1))
            is_greedy.append(logits_nV.argmax(-1) == targets_n)
        return torch.cat(log_probabilities), torch.cat(is_greedy)

    def precision(self) -> torch.autocast | nullcontext[None]:
        """Return the context in which the decoder runs: autocast, or a null context."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()

    def _padded(self, rows: list[tuple[int, ...]], length: int) -> Tensor:
        # Padding comes after a row's own tokens, so causal attention hides it from them.
        return torch.tensor([row + (0,) * (length - len(row)) for row in rows], device=self.device)

    def _cache(self, batch_size: int, max_length: int) -> Cache:
        return self.decoder.make_cache(batch_size, max_length, self.autocast)
