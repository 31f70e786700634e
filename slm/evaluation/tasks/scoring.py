"""Log-likelihoods of many (context, continuation) pairs, each token computed as seldom as possible.

Notable: requests with a common beginning (the choices of a question, WinoGrande's two readings of a sentence, a fixed
few-shot preamble) run their common tokens once and continue from copies of the cache; requests with equal inputs
(one-token continuations) need no second pass at all. Only rows that predict a continuation token reach the head, in
chunks, so (batch x T x V) logits never exist.

Legend: G groups of requests that share a prefix, R requests, L tokens of a prefix, T tokens after it, D hidden,
N scored rows, V vocabulary.
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

PASS_TOKENS = {"cpu": 24}
"""What a pass costs besides its tokens, in tokens (docs/tasks.md)."""
PASS_TOKENS_ELSEWHERE = 2048
"""A GPU is idle for most of a smaller pass; an estimate, not measured."""
HEAD_ROWS = 256
"""Rows whose (V,) logits are alive at once."""
MIN_SHARED = 0.5
"""Share of a request's inputs that it must have in common with a group to join it."""


class Request(NamedTuple):
    """One row of a forward pass: `targets` are predicted by the last `len(targets)` of `inputs`."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


class Group(NamedTuple):
    """Requests whose inputs begin with the same `prefix` tokens."""

    requests: tuple[Request, ...]
    prefix: int


class Score(NamedTuple):
    """What the harness asks of a continuation."""

    log_likelihood: float
    """Nats, summed over the continuation's tokens."""
    is_greedy: bool
    """Whether each token is the likeliest one given those before it."""


def make_request(context: Sequence[int], continuation: Sequence[int], max_length: int) -> Request:
    """The pair as inputs and targets, cut from the left to the model's context of `max_length` tokens.

    `context` has at least one token. Raises `ValueError` where the continuation has none, or more than fit.
    """
    if not 1 <= len(continuation) <= max_length:
        raise ValueError(
            f"a continuation of {len(continuation)} tokens cannot be scored: it must have 1 to {max_length} tokens"
        )
    tokens = (*context, *continuation)[-(max_length + 1) :]
    return Request(tokens[:-1], tuple(continuation))


def plan(requests: Sequence[Request], batch_tokens: int, pass_tokens: int) -> list[list[Group]]:
    """Batches of the distinct `requests`, with shared prefixes or without, whichever costs fewer tokens."""
    grouped, alone = share_prefixes(requests), [Group((item,), 0) for item in requests]
    plans = [make_batches(groups, batch_tokens, pass_tokens) for groups in (grouped, alone)]
    return min(plans, key=lambda batches: sum(_cost(batch, pass_tokens) for batch in batches))


def share_prefixes(requests: Sequence[Request]) -> list[Group]:
    """Group requests with a common beginning: in sorted order, each joins the group before it or begins one.

    It joins if `MIN_SHARED` of its inputs are in the prefix that is then common, and the group saves no less than
    before. The best partition, by dynamic programming, computes 3% fewer tokens (docs/log.md, 2026-11-28).
    """
    groups: list[Group] = []
    for item in sorted(requests):
        if groups:
            members, prefix = groups[-1]
            common = min(prefix, _num_common(members[-1].inputs, item.inputs))
            if common >= MIN_SHARED * len(item.inputs) and len(members) * common >= (len(members) - 1) * prefix:
                groups[-1] = Group((*members, item), common)
                continue
        groups.append(Group((item,), len(item.inputs)))
    return groups


def make_batches(groups: Sequence[Group], batch_tokens: int, pass_tokens: int) -> list[list[Group]]:
    """Groups, longest first, in batches of up to `batch_tokens` padded tokens and of one prefix length.

    That is the shortest prefix in the batch: what a group shares beyond it is computed for each of its requests. A
    batch ends where this and padding would cost more than the passes of a new batch.
    """
    parts = [part for group in groups for part in _split(group, batch_tokens)]
    # The longest come first: what does not fit into memory shows at once, and the time left is not underestimated.
    parts.sort(key=lambda part: (part.prefix, _longest(part)), reverse=True)
    batches: list[list[Group]] = []
    rows = longest = unpadded = 0
    for part in parts:
        count, length, cost = len(part.requests), _longest(part), _cost([part], 0)
        rows, longest, unpadded = rows + count, max(longest, length), unpadded + cost
        padded = (len(batches[-1]) + 1) * part.prefix + rows * (longest - part.prefix) if batches else 0
        is_full = rows * longest > batch_tokens or padded - unpadded > pass_tokens * (1 + bool(part.prefix))
        if is_full or not batches:
            batches.append([])
            rows, longest, unpadded = count, length, cost
        batches[-1].append(part)
    return [[part._replace(prefix=batch[-1].prefix) for part in batch] for batch in batches]


def _cost(batch: Sequence[Group], pass_tokens: int) -> int:
    """Tokens computed, padding included, and `pass_tokens` for each of the one or two passes."""
    rows, longest, prefix = sum(len(group.requests) for group in batch), max(map(_longest, batch)), batch[-1].prefix
    return len(batch) * prefix + rows * (longest - prefix) + pass_tokens * ((prefix > 0) + (longest > prefix))


def _split(group: Group, batch_tokens: int) -> Iterator[Group]:
    size = max(1, batch_tokens // _longest(group))
    for start in range(0, len(group.requests), size):
        part = group.requests[start : start + size]
        yield Group(part, group.prefix if len(part) > 1 else 0)


def _longest(group: Group) -> int:
    return max(len(item.inputs) for item in group.requests)


def _num_common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Scorer:
    """Scores requests with a decoder, `batch_tokens` padded tokens at a time."""

    def __init__(self, decoder: Decoder, *, batch_tokens: int, autocast: torch.dtype | None = None) -> None:
        self.decoder = decoder
        self.batch_tokens = batch_tokens
        self.autocast = autocast
        self.device = decoder.embed_tokens.weight.device

    def __call__(self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None) -> list[Score]:
        """Scores in the order of `requests`; equal requests are scored once. `progress` gets the number done so far.

        Raises `ValueError` for log-likelihoods that are not finite: the first choice of every question would look best.
        """
        repeats = Counter(requests)
        scores: dict[Request, Score] = {}
        done = 0
        for groups in plan(list(repeats), self.batch_tokens, PASS_TOKENS.get(self.device.type, PASS_TOKENS_ELSEWHERE)):
            scores |= self._score_batch(groups)
            done += sum(repeats[item] for group in groups for item in group.requests)
            progress(done)
        return [scores[item] for item in requests]

    @torch.inference_mode()
    def _score_batch(self, groups: list[Group]) -> dict[Request, Score]:
        items = [item for group in groups for item in group.requests]
        with self.precision():
            states_ND, rows = self._forward(groups, items, groups[0].prefix)
            pairs: dict[tuple[int, int], int] = {}  # scored once: (row, target), which requests may have in common
            place = [
                pairs.setdefault(pair, len(pairs))
                for item, item_rows in zip(items, rows, strict=True)
                for pair in zip(item_rows, item.targets, strict=True)
            ]
            row_N, target_N = torch.tensor(list(pairs), device=self.device).T
            log_likelihood, greedy = (scored.cpu()[place] for scored in self._head(states_ND[row_N], target_N))
        if not log_likelihood.isfinite().all():
            raise ValueError(
                "log-likelihoods are not finite, so no choice is better than another: the model has diverged, or "
                f"{dtype_name(states_ND.dtype)} overflows and dtype=float32 would not"
            )
        sizes = [len(item.targets) for item in items]
        parts = zip(items, log_likelihood.double().split(sizes), greedy.split(sizes), strict=True)
        return {item: Score(values.sum().item(), bool(hits.all())) for item, values, hits in parts}

    def _forward(self, groups: list[Group], items: list[Request], L: int) -> tuple[Tensor, list[list[int]]]:
        """Hidden states (tokens of all passes, D), and for each request the rows there that predict its targets."""
        T = max(len(item.inputs) for item in items) - L
        group_of = [g for g, group in enumerate(groups) for _ in group.requests]
        passes: list[Tensor] = []
        cache: KVCache | None = None
        if L:
            cache = self._cache(len(groups), L) if T else None
            passes.append(self.decoder.hidden(self._padded([g.requests[0].inputs[:L] for g in groups], L), cache))
        if T:
            cache = self._fan_out(cache, group_of, T) if cache else None
            passes.append(self.decoder.hidden(self._padded([item.inputs[L:] for item in items], T), cache))
        rows = [
            [
                group_of[r] * L + p if p < L else len(groups) * L + r * T + p - L
                for p in range(len(item.inputs) - len(item.targets), len(item.inputs))
            ]
            for r, item in enumerate(items)
        ]
        return torch.cat([states.flatten(0, 1) for states in passes]), rows

    def _head(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability (float32 at least) of each target, and whether it is the likeliest id."""
        picked, greedy = [], []
        for hidden_nD, targets_n in zip(hidden_ND.split(HEAD_ROWS), targets_N.split(HEAD_ROWS), strict=True):
            logits_nV = F.linear(hidden_nD, self.decoder.head_weight)
            logits_nV = logits_nV if logits_nV.dtype == torch.float64 else logits_nV.float()
            target = logits_nV.gather(1, targets_n[:, None]).squeeze(1)
            picked.append(target - logits_nV.logsumexp(-1))
            greedy.append(logits_nV.argmax(-1) == targets_n)
        return torch.cat(picked), torch.cat(greedy)

    def precision(self) -> torch.autocast | nullcontext[None]:
        """The context in which the decoder runs: autocast, or nothing."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()

    def _padded(self, rows: list[tuple[int, ...]], length: int) -> Tensor:
        # Padding comes after a row's own tokens, where causal attention keeps it out of what is scored.
        return torch.tensor([row + (0,) * (length - len(row)) for row in rows], device=self.device)

    def _cache(self, batch_size: int, max_length: int) -> KVCache:
        dtype = self.autocast or self.decoder.embed_tokens.weight.dtype
        return KVCache(
            self.decoder.config, batch_size=batch_size, max_length=max_length, device=self.device, dtype=dtype
        )

    def _fan_out(self, cache: KVCache, group_of: list[int], room: int) -> KVCache:
        """A cache in which row r continues group `group_of[r]`, with room for more tokens."""
        wide = self._cache(len(group_of), cache.length + room)
        wide.select(cache, torch.tensor(group_of, device=self.device))
        return wide
