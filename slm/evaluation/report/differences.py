"""Differences between checkpoints that read one text, with errors of their own.

Notable: checkpoints tend to err on the same documents, so the error of a difference is taken from what each block of
the text adds to it (`slm.evaluation.bootstrap.influences`). That needs the blocks of both to be the same parts of the
text; where they are not known, or are others, two errors are added as if the figures were independent, and that is
said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from scipy import stats

from slm.evaluation.bootstrap import influence_error, influences
from slm.evaluation.report.average import DISTINGUISHED, difference_error
from slm.evaluation.report.results import Entry, Measure, Results, alike, number
from slm.runtime.words import is_number

ALL_PAIRS = 4
"""Checkpoints up to which all pairs are shown; of more, neighbours in rank."""
SAME_BORDER = 0.01
"""Of a block's mean bytes: borders nearer than this are one. A token that only one tokenizer scores, or that lies
across a border, is within it; what is misplaced adds to the error, so that it is rather too large."""
LEVEL = 0.05
UNSTORED, ELSEWHERE = "no blocks stored", "blocks end elsewhere"


class Error(NamedTuple):
    """A standard error: paired over so many blocks, or None blocks and why not."""

    se: float | None
    blocks: int | None
    why: str = ""


@dataclass(frozen=True)
class Difference:
    """Of one figure, first minus second checkpoint."""

    value: float
    error: Error

    @property
    def beyond(self) -> bool | None:
        """Whether it is larger than two standard errors; None where there is no error."""
        return None if self.error.se is None else abs(self.value) > DISTINGUISHED * self.error.se

    @property
    def p(self) -> float | None:
        """Two-sided p-value: Student's t over the blocks, normal for independent errors."""
        if self.error.se is None:
            return None
        if not self.error.se:
            return float(self.value == 0)
        freedom = self.error.blocks - 1 if self.error.blocks else math.inf
        return float(2 * stats.t.sf(abs(self.value) / self.error.se, freedom))


class Compared(NamedTuple):
    """Two checkpoints by one measure: differences in bits per byte, and in loss where both have the same tokens."""

    first: Entry
    second: Entry
    figures: dict[str, Difference]


def target_error(score: Entry, target: str) -> float | None:
    """Standard error of loss or bits per byte."""
    return number(score, "se_loss" if target == "loss" else "se_bits_per_byte")


def paired_error(shares: Sequence[tuple[float, Entry]], target: str) -> Error:
    """Error of a sum of figures of one measure, each times its share, over the same blocks; no `se` if they are not."""
    kept = [score.get("blocks") for _, score in shares]
    if not all(kept):
        return Error(None, None, UNSTORED)
    sums = [{name: np.asarray(values, dtype=float) for name, values in blocks.items()} for blocks in kept if blocks]
    if not all(_same_blocks(sums[0]["bytes"], other["bytes"]) for other in sums[1:]):
        return Error(None, None, ELSEWHERE)
    size, unit = ("tokens", 1.0) if target == "loss" else ("bytes", math.log(2))
    parts = [share * influences(of["nats"], of[size]) for (share, _), of in zip(shares, sums, strict=True)]
    error = influence_error(np.sum(parts, axis=0)) / unit
    return Error(error, len(parts[0])) if math.isfinite(error) else Error(None, None, "a single block")


def _same_blocks(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether blocks of so many bytes end at the same places of a text."""
    if len(one) != len(other):
        return False
    return bool(np.abs(np.cumsum(one) - np.cumsum(other)).max() <= SAME_BORDER * one.mean())


def compare(first: Entry, second: Entry, target: str) -> Difference:
    """Difference of two scores of one measure in loss or bits per byte."""
    error = paired_error([(1.0, first), (-1.0, second)], target)
    if error.blocks is None:
        independent = difference_error(target_error(first, target), target_error(second, target))
        error = error._replace(se=independent)
    return Difference(first[target] - second[target], error)


def ranked(results: Results, measure: Measure | None) -> list[tuple[Entry, Entry]]:
    """Checkpoints with their scores by one measure, best first; empty where they do not compare."""
    target = results.target_by(measure)
    if target == "loss" and not results.same_tokens(measure):
        return []
    return sorted(results.scored(measure), key=lambda row: float(row[1][target]))


def compared(results: Results, measure: Measure) -> list[Compared]:
    """All pairs of few checkpoints, neighbours in rank of many, better first; none of unlike parts of the text."""
    rows = ranked(results, measure)
    pairs = combinations(rows, 2) if len(rows) <= ALL_PAIRS else pairwise(rows)
    return [Compared(a, b, _figures(one, other)) for (a, one), (b, other) in pairs if _like_parts(one, other)]


def _like_parts(one: Entry, other: Entry) -> bool:
    sizes = [size for score in (one, other) if (size := number(score, "bytes"))]
    return not sizes or alike(sizes)


def _figures(one: Entry, other: Entry) -> dict[str, Difference]:
    same = one.get("segmentation") == other.get("segmentation")
    targets = ["bits_per_byte", *(["loss"] if same else [])]
    both = [name for name in targets if is_number(one.get(name)) and is_number(other.get(name))]
    return {name: compare(one, other, name) for name in both}
