"""Which requests are scored together: the partition into shared prefixes, and into batches, that computes least.

Notable: both are found by dynamic programming over sorted requests, by where the last run, or batch, begins; the
constants bound the search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

MAX_GROUP = 64
"""Most requests that share one prefix; bounds the search for the best partition."""
MIN_SAVING = 0.15
"""Part of their tokens that requests must have in common to be grouped."""
MAX_GROUPS = 128
"""Most groups in a batch; bounds the search for the best batches."""


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
