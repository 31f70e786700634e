"""Log-likelihoods of many (context, continuation) pairs, each token computed as seldom as possible.

Notable: requests that begin alike (the choices of a question, WinoGrande's two readings of a sentence, a fixed few-shot
preamble) run their common tokens once and continue from copies of the cache; requests with equal inputs (one-token
continuations) need no second pass at all; which requests go together is for `batching` to say. Only rows that predict
a continuation token reach the head, in chunks, so (batch x T x V) logits never exist.

Legend: G groups of requests that share a prefix, R requests, L tokens of a prefix, T tokens after it, D hidden,
N scored rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.checkpoints.weights import dtype_name
from slm.evaluation.tasks.batching import Group, Request, plan
from slm.model import Decoder
from slm.model.cache import KVCache

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
            raise ValueError(
                "log-likelihoods are not finite, so no choice is better than another: the model has diverged, or "
                f"{dtype_name(states_ND.dtype)} overflows and dtype=float32 would not"
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
        wide.select(cache, torch.tensor(group_of, device=self.device))
        return wide
