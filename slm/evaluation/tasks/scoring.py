"""Compute log-likelihoods of many (context, continuation) pairs without computing common tokens twice.

Notable: requests with a common beginning (the choices of a question, WinoGrande's two readings of a sentence, a fixed
few-shot preamble) run their common tokens once and continue from copies of the cache; requests with equal inputs
(one-token continuations) need no second pass at all. Only positions that predict a continuation token reach the head,
in chunks, so logits of a whole batch are never in memory.

Legend: L tokens of a prefix, T tokens after it, D hidden, N scored positions (n: a chunk of them), V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.checkpoints.weights import dtype_name
from slm.model import Decoder, KVCache

PASS_TOKENS = {"cpu": 24}  # fixed cost of a forward pass, as the number of tokens that take as long (docs/tasks.md)
PASS_TOKENS_ELSEWHERE = 2048  # the same on a GPU, which is mostly idle in smaller passes; an estimate
HEAD_ROWS = 256  # number of positions whose (V,) logits are in memory at the same time
MIN_SHARED = 0.5  # a request joins a group if at least this share of its inputs is common with the group


class Request(NamedTuple):
    """One row of a forward pass: the last `len(targets)` positions of `inputs` predict the `targets`."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


class Group(NamedTuple):
    """Requests whose inputs begin with the same `prefix` tokens."""

    requests: tuple[Request, ...]
    prefix: int


class Score(NamedTuple):
    """Result for a continuation, as the harness needs it."""

    log_likelihood: float  # nats, summed over the tokens of the continuation
    is_greedy: bool  # whether each token is the most likely one given the tokens before it


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


def plan(requests: Sequence[Request], batch_tokens: int, pass_tokens: int) -> list[list[Group]]:
    """Return batches of the distinct `requests`, with or without shared prefixes, whichever costs fewer tokens."""
    single_groups = [Group((item,), 0) for item in requests]
    plans = [make_batches(groups, batch_tokens, pass_tokens) for groups in (share_prefixes(requests), single_groups)]
    return min(plans, key=lambda batches: sum(_cost(batch, pass_tokens) for batch in batches))


def share_prefixes(requests: Sequence[Request]) -> list[Group]:
    """Group requests with a common beginning: in sorted order, each joins the previous group or begins a new one.

    A request joins if the prefix it shares with the group is at least `MIN_SHARED` of its inputs, and the group saves
    no fewer tokens with the request than without. The best partition, by dynamic programming, computes 3% fewer tokens
    (docs/log.md, 2026-11-28).
    """
    groups: list[Group] = []
    for item in sorted(requests):
        if groups:
            members, prefix = groups[-1]
            common = min(prefix, _num_common(members[-1].inputs, item.inputs))
            saved_without, saved_with = (len(members) - 1) * prefix, len(members) * common
            if common >= MIN_SHARED * len(item.inputs) and saved_with >= saved_without:
                groups[-1] = Group((*members, item), common)
                continue
        groups.append(Group((item,), len(item.inputs)))
    return groups


def make_batches(groups: Sequence[Group], batch_tokens: int, pass_tokens: int) -> list[list[Group]]:
    """Batch the groups, longest first. A batch has up to `batch_tokens` padded tokens and one prefix length.

    This length is the shortest prefix in the batch: longer common beginnings are computed once per request. A batch
    ends when these repeated tokens and the padding would cost more than the passes of a new batch.
    """
    parts = [part for group in groups for part in _split(group, batch_tokens)]
    # Longest first: a lack of memory shows immediately, and the remaining time is not underestimated.
    parts.sort(key=lambda part: (part.prefix, _longest(part)), reverse=True)
    batches: list[list[Group]] = []
    rows = longest = needed = 0  # of the last batch; `needed` are its tokens without padding and repeated prefixes
    for part in parts:
        rows += len(part.requests)
        longest = max(longest, _longest(part))
        needed += _cost([part], 0)
        num_prefixes = len(batches[-1]) + 1 if batches else 1
        computed = num_prefixes * part.prefix + rows * (longest - part.prefix)
        num_passes = 2 if part.prefix else 1
        if not batches or rows * longest > batch_tokens or computed - needed > pass_tokens * num_passes:
            batches.append([])
            rows, longest, needed = len(part.requests), _longest(part), _cost([part], 0)
        batches[-1].append(part)
    return [[part._replace(prefix=batch[-1].prefix) for part in batch] for batch in batches]


def _cost(batch: Sequence[Group], pass_tokens: int) -> int:
    """Return the tokens computed, padding included, plus `pass_tokens` for each of the one or two passes."""
    rows = sum(len(group.requests) for group in batch)
    longest = max(map(_longest, batch))
    prefix = batch[-1].prefix
    num_passes = int(prefix > 0) + int(longest > prefix)
    return len(batch) * prefix + rows * (longest - prefix) + pass_tokens * num_passes


def _split(group: Group, batch_tokens: int) -> Iterator[Group]:
    size = max(1, batch_tokens // _longest(group))
    for start in range(0, len(group.requests), size):
        part = group.requests[start : start + size]
        yield Group(part, group.prefix if len(part) > 1 else 0)


def _longest(group: Group) -> int:
    return max(len(item.inputs) for item in group.requests)


def _num_common(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (x, y) in pairs if x != y), min(len(a), len(b)))


class Scorer:
    """Scores requests with a decoder, `batch_tokens` padded tokens at a time."""

    def __init__(self, decoder: Decoder, *, batch_tokens: int, autocast: torch.dtype | None = None) -> None:
        self.decoder = decoder
        self.batch_tokens = batch_tokens
        self.autocast = autocast
        self.device = decoder.embed_tokens.weight.device

    def __call__(self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None) -> list[Score]:
        """Return scores in the order of `requests`. `progress` is called with the number of requests scored so far.

        Raises `ValueError` for log-likelihoods that are not finite, with which the first choice would look best.
        """
        counts = Counter(requests)  # equal requests are scored once
        scores: dict[Request, Score] = {}
        done = 0
        for groups in plan(list(counts), self.batch_tokens, PASS_TOKENS.get(self.device.type, PASS_TOKENS_ELSEWHERE)):
            scores |= self._score_batch(groups)
            done += sum(counts[item] for group in groups for item in group.requests)
            progress(done)
        return [scores[item] for item in requests]

    @torch.inference_mode()
    def _score_batch(self, groups: list[Group]) -> dict[Request, Score]:
        items = [item for group in groups for item in group.requests]
        with self.precision():
            states, positions = self._forward(groups, items, groups[0].prefix)
            # Requests may share a (position, target) pair; each pair is scored once.
            index_of_pair: dict[tuple[int, int], int] = {}
            pair_indices = [
                index_of_pair.setdefault(pair, len(index_of_pair))
                for item, item_positions in zip(items, positions, strict=True)
                for pair in zip(item_positions, item.targets, strict=True)
            ]
            position_N, target_N = torch.tensor(list(index_of_pair), device=self.device).T
            nats_N, is_greedy_N = self._head(states[position_N], target_N)
            log_likelihood, is_greedy = nats_N.cpu()[pair_indices], is_greedy_N.cpu()[pair_indices]
        if not log_likelihood.isfinite().all():
            raise ValueError(
                "log-likelihoods are not finite, so no choice is better than another: the model has diverged, or "
                f"{dtype_name(states.dtype)} overflows and dtype=float32 would not"
            )
        sizes = [len(item.targets) for item in items]
        parts = zip(items, log_likelihood.double().split(sizes), is_greedy.split(sizes), strict=True)
        return {item: Score(values.sum().item(), bool(greedy.all())) for item, values, greedy in parts}

    def _forward(self, groups: list[Group], items: list[Request], L: int) -> tuple[Tensor, list[list[int]]]:
        """Return hidden states (positions of all passes, D), and per request the positions that predict its targets."""
        T = max(len(item.inputs) for item in items) - L
        group_of_row = [g for g, group in enumerate(groups) for _ in group.requests]
        passes: list[Tensor] = []
        cache: KVCache | None = None
        if L:
            cache = self._cache(len(groups), L) if T else None
            prefixes = [group.requests[0].inputs[:L] for group in groups]
            passes.append(self.decoder.hidden(self._padded(prefixes, L), cache))
            if cache:  # each row continues from a copy of the cache of its group
                row_cache = self._cache(len(items), L + T)
                row_cache.select(cache, torch.tensor(group_of_row, device=self.device))
                cache = row_cache
        if T:
            passes.append(self.decoder.hidden(self._padded([item.inputs[L:] for item in items], T), cache))

        def position(row: int, token: int) -> int:
            # The states of all prefixes come first, then for each row the states of its other tokens.
            return group_of_row[row] * L + token if token < L else len(groups) * L + row * T + token - L

        positions = [
            [position(row, token) for token in range(len(item.inputs) - len(item.targets), len(item.inputs))]
            for row, item in enumerate(items)
        ]
        return torch.cat([states.flatten(0, 1) for states in passes]), positions

    def _head(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability (at least float32) of each target, and whether it is the most likely id."""
        log_probabilities, is_greedy = [], []
        for hidden_nD, targets_n in zip(hidden_ND.split(HEAD_ROWS), targets_N.split(HEAD_ROWS), strict=True):
            logits_nV = F.linear(hidden_nD, self.decoder.head_weight)
            logits_nV = logits_nV if logits_nV.dtype == torch.float64 else logits_nV.float()
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

    def _cache(self, batch_size: int, max_length: int) -> KVCache:
        dtype = self.autocast or self.decoder.embed_tokens.weight.dtype
        return KVCache(
            self.decoder.config, batch_size=batch_size, max_length=max_length, device=self.device, dtype=dtype
        )
