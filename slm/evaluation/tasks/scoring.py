"""Log-likelihoods of many (context, continuation) pairs, each token computed as seldom as possible.

Notable: requests that begin alike (the choices of a question, WinoGrande's two readings of a sentence, a fixed few-shot
preamble) run their common tokens once and continue from copies of the cache; requests with equal inputs (one-token
continuations) need no second pass at all; which requests go together is the partition that saves most tokens. Only rows
that predict a continuation token reach the head, in chunks, so (batch x T x V) logits never exist.

Legend: G groups of requests that share a prefix, R requests, L tokens of a prefix, T tokens after it, D hidden,
N scored rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model import Decoder
from slm.model.cache import KVCache

MAX_GROUP = 64
"""Most requests that share one prefix; bounds the search for the best partition."""
MIN_SAVING = 0.15
"""Part of their tokens that requests must have in common to be grouped."""
MAX_GROUPS = 128
"""Most groups in a batch; bounds the search for the best batches."""
PASS_TOKENS = {"cpu": 24}
"""What a pass costs besides its tokens, in tokens (docs/tasks.md)."""
PASS_TOKENS_ELSEWHERE = 2048
"""A GPU is idle for most of a smaller pass; an estimate, not measured."""
HEAD_ROWS = 256
"""Rows whose (V,) logits are alive at once."""


class Score(NamedTuple):
    """What the harness asks of a continuation."""

    log_likelihood: float
    """Nats, summed over the continuation's tokens."""
    is_greedy: bool
    """Whether each token is the likeliest one given those before it."""


class Request(NamedTuple):
    """One forward pass: `targets` are predicted by the last `len(targets)` of `inputs`."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


class Group(NamedTuple):
    """Requests whose inputs begin with the same `prefix` tokens."""

    requests: tuple[Request, ...]
    prefix: int


def request(context: Sequence[int], continuation: Sequence[int], max_length: int) -> Request:
    """The pair as inputs and targets, cut from the left to the model's context of `max_length` tokens.

    `context` has at least one token. Raises `ValueError` where the continuation has none, or more than fit.
    """
    if not 1 <= len(continuation) <= max_length:
        raise ValueError(
            f"a continuation of {len(continuation)} tokens cannot be scored; wants 1 to {max_length}, which fit"
        )
    tokens = (*context, *continuation)[-(max_length + 1) :]
    return Request(tokens[:-1], tuple(continuation))


class Scorer:
    """Scores requests with a decoder, `batch_tokens` padded tokens at a time."""

    def __init__(self, decoder: Decoder, *, batch_tokens: int, autocast: torch.dtype | None = None) -> None:
        self.decoder = decoder
        self.batch_tokens = batch_tokens
        self.autocast = autocast
        self.device = decoder.embed_tokens.weight.device

    def __call__(self, requests: Sequence[Request], progress: Callable[[int], None] = lambda n: None) -> list[Score]:
        """Scores in the order of `requests`; equal requests are scored once. `progress` gets requests done.

        Raises `ValueError` for log-likelihoods that are not finite: the first choice of every question would look best.
        """
        repeats: dict[Request, int] = {}
        for item in requests:
            repeats[item] = repeats.get(item, 0) + 1
        scores: dict[Request, Score] = {}
        for groups in plan(list(repeats), self.batch_tokens, PASS_TOKENS.get(self.device.type, PASS_TOKENS_ELSEWHERE)):
            scores |= self._score_batch(groups)
            progress(sum(repeats[item] for group in groups for item in group.requests))
        return [scores[item] for item in requests]

    @torch.inference_mode()
    def _score_batch(self, groups: list[Group]) -> dict[Request, Score]:
        items = [item for group in groups for item in group.requests]
        with self.precision():
            states_ND, rows = self._forward(groups, items, groups[0].prefix)
            pairs: dict[tuple[int, int], int] = {}  # scored once: (row, target), which requests may have in common
            place = [
                pairs.setdefault(pair, len(pairs))
                for item, own in zip(items, rows, strict=True)
                for pair in zip(own, item.targets, strict=True)
            ]
            row_N, target_N = torch.tensor(list(pairs), device=self.device).T
            log_likelihood, greedy = (scored.cpu()[place] for scored in self._head(states_ND[row_N], target_N))
        if not log_likelihood.isfinite().all():
            dtype = str(states_ND.dtype).removeprefix("torch.")
            raise ValueError(
                "log-likelihoods are not finite, so no choice is better than another: the model has diverged, or "
                f"{dtype} overflows and dtype=float32 would not"
            )
        sizes = [len(item.targets) for item in items]
        sums = [part.sum().item() for part in log_likelihood.double().split(sizes)]
        hits = [bool(part.all()) for part in greedy.split(sizes)]
        return {item: Score(total, hit) for item, total, hit in zip(items, sums, hits, strict=True)}

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
        index = torch.tensor(group_of, device=self.device)
        for use in range(cache.store.shape[0]):
            wide.store[use, :, :, :, : cache.length] = cache.store[use, :, :, :, : cache.length].index_select(1, index)
        wide.length = cache.length
        return wide


def plan(requests: Sequence[Request], batch_tokens: int, pass_tokens: int) -> list[list[Group]]:
    """Batches of the distinct `requests`, sharing prefixes or not, whichever costs fewer tokens (`batches`)."""
    requests = sorted(requests)
    ways = (share(requests), [Group((item,), 0) for item in requests])
    return min((batches(groups, batch_tokens, pass_tokens) for groups in ways), key=lambda way: way[0])[1]


def share(requests: Sequence[Request]) -> list[Group]:
    """Partition requests, *sorted*, into runs with a common prefix so that the most tokens are computed once.

    A run of r requests whose inputs agree in L tokens saves (r - 1) L of them; the best partition into runs of up to
    `MAX_GROUP` is found by dynamic programming over the ends of runs, in which a run that saves less than `MIN_SAVING`
    of its tokens counts for nothing.
    """
    lengths = [len(item.inputs) for item in requests]
    common = [0, *(_common(a.inputs, b.inputs) for a, b in pairwise(requests))]
    best, cut = [0.0], [0]  # tokens saved in the first n requests, and where their last run begins
    for end in range(1, len(requests) + 1):
        saved, start = best[end - 1], end - 1
        prefix, tokens = lengths[end - 1], lengths[end - 1]
        for begin in range(end - 2, max(end - MAX_GROUP, 0) - 1, -1):
            prefix, tokens = min(prefix, common[begin + 1]), tokens + lengths[begin]
            if not prefix:
                break
            own = (end - begin - 1) * prefix
            if own >= MIN_SAVING * tokens and best[begin] + own > saved:
                saved, start = best[begin] + own, begin
        best.append(saved)
        cut.append(start)
    groups, end = [], len(requests)
    while end:
        run = tuple(requests[cut[end] : end])
        groups.append(Group(run, min(common[cut[end] + 1 : end]) if len(run) > 1 else 0))
        end = cut[end]
    return groups


def batches(groups: Sequence[Group], batch_tokens: int, pass_tokens: int) -> tuple[float, list[list[Group]]]:
    """Groups in batches of up to `batch_tokens` padded tokens, with one prefix length within a batch (0: plain).

    Groups are sorted by length and cut where it costs least, by dynamic programming: a pass costs its padded tokens and
    `pass_tokens` besides. What a group shares beyond its batch's prefix is computed for each of its requests. Returns
    the cost in tokens too.
    """
    parts = [part for group in groups for part in _split(group, batch_tokens)]
    parts.sort(key=lambda part: (part.prefix, _longest(part)), reverse=True)
    best: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # of the first n: cost, where the last batch begins, its prefix
    for end in range(1, len(parts) + 1):
        choices: list[tuple[float, int, int]] = []
        rows = longest = 0
        for begin in range(end - 1, max(end - MAX_GROUPS, 0) - 1, -1):
            rows, longest = rows + len(parts[begin].requests), max(longest, _longest(parts[begin]))
            if choices and rows * longest > batch_tokens:
                break
            prefix = parts[end - 1].prefix  # the shortest: parts are sorted
            shared = (end - begin) * prefix + rows * (longest - prefix) + pass_tokens * (1 + (longest > prefix))
            plain = rows * longest + pass_tokens
            cost, prefix = min((plain, 0), (shared, prefix)) if prefix else (plain, 0)
            choices.append((best[begin][0] + cost, begin, prefix))
        best.append(min(choices))
    cut, end = [], len(parts)
    while end:
        _, begin, prefix = best[end]
        cut.append([part._replace(prefix=prefix) for part in parts[begin:end]])
        end = begin
    # The longest first: what does not fit into memory shows at once, and the time left is not underestimated.
    return best[-1][0], cut[::-1]


def _split(group: Group, batch_tokens: int) -> Iterator[Group]:
    size = max(1, batch_tokens // _longest(group))
    for start in range(0, len(group.requests), size):
        part = group.requests[start : start + size]
        yield Group(part, group.prefix if len(part) > 1 else 0)


def _length(item: Request) -> int:
    return len(item.inputs)


def _longest(group: Group) -> int:
    return max(map(_length, group.requests))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))
