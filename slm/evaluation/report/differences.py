"""Differences between checkpoints that were scored on one text, with errors of their own.

Notable: checkpoints tend to err on the same documents, so the error of a difference is taken from what each block of
the text adds to it (`slm.evaluation.bootstrap.influences`). That needs the blocks of both to be the same parts of the
text. Where blocks are unknown or differ, two errors are added as if the figures were independent, and the report says
so.
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
from slm.evaluation.report.results import (
    SIGNIFICANT_ERRORS,
    Entry,
    Measure,
    Results,
    difference_error,
    name_of,
    nearly_equal,
    number,
)
from slm.report.markdown import table
from slm.runtime.words import NOTHING, TARGET_NAMES, is_number, measured
from slm.scaling.pairs import holm

MAX_ALL_PAIRS = 4
"""Most checkpoints for which all pairs are shown; of more, neighbours in rank."""
BORDER_TOLERANCE = 0.01
"""Of a block's mean bytes: borders nearer than this count as one. A token that only one tokenizer scores, or that lies
across a border, is within it; what is misplaced adds to the error, so the error is rather too large."""
LEVEL = 0.05
NOT_AFTER_HOLM = "yes, not after Holm"
TEXT_NOTE = (
    "Errors cover the sampling of text: another text of its kind would give other figures. They do not cover training: "
    "another seed would give another checkpoint."
)
PAIRED_NOTE = (
    "The error of a difference is *paired* where both checkpoints were scored on the same blocks of the text: it is "
    "taken from the difference in each block (delta method), so that what makes a block hard for both cancels, and may "
    "be much smaller than the errors of the two figures."
)
INDEPENDENT_NOTE = (
    "*Independent* errors are two errors added as if each checkpoint had read its own text. They are too large where "
    "both err on the same parts: a difference beyond them is all the more certain, and one within them may be real."
)
HOLM_NOTE = (
    f"*Not after Holm*: beyond 2 standard errors, but not different at {LEVEL:.0%} after Holm's correction for all "
    "differences of the table."
)


class Error(NamedTuple):
    """A standard error: paired over `blocks` blocks, or with `blocks` None and the reason."""

    se: float | None
    blocks: int | None
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """A difference of one figure, first minus second checkpoint."""

    value: float
    error: Error

    @property
    def is_significant(self) -> bool | None:
        """Whether it is larger than two standard errors; None if there is no error."""
        return None if self.error.se is None else abs(self.value) > SIGNIFICANT_ERRORS * self.error.se

    @property
    def p(self) -> float | None:
        """Two-sided p-value: Student's t over the blocks, normal for independent errors."""
        if self.error.se is None:
            return None
        if not self.error.se:
            return float(self.value == 0)
        df = self.error.blocks - 1 if self.error.blocks else math.inf
        return float(2 * stats.t.sf(abs(self.value) / self.error.se, df))


class Pair(NamedTuple):
    """Two checkpoints by one measure: differences in bits per byte, and in loss where both have the same tokens."""

    first: Entry
    second: Entry
    differences: dict[str, Difference]


def target_error(score: Entry, target: str) -> float | None:
    """Standard error of loss or bits per byte."""
    return number(score, "se_loss" if target == "loss" else "se_bits_per_byte")


def paired_error(weighted: Sequence[tuple[float, Entry]], target: str) -> Error:
    """Error of a weighted sum of scores by one measure, over common blocks; no `se` if their blocks differ."""
    stored = [score.get("blocks") for _, score in weighted]
    if not all(stored):
        return Error(None, None, "no blocks stored")
    sums = [{name: np.asarray(values, dtype=float) for name, values in blocks.items()} for blocks in stored if blocks]
    if not all(_have_same_borders(sums[0]["bytes"], other["bytes"]) for other in sums[1:]):
        return Error(None, None, "blocks end elsewhere")
    size, unit = ("tokens", 1.0) if target == "loss" else ("bytes", math.log(2))
    parts = [
        weight * influences(blocks["nats"], blocks[size]) for (weight, _), blocks in zip(weighted, sums, strict=True)
    ]
    error = influence_error(np.sum(parts, axis=0)) / unit
    return Error(error, len(parts[0])) if math.isfinite(error) else Error(None, None, "a single block")


def _have_same_borders(a_bytes: np.ndarray, b_bytes: np.ndarray) -> bool:
    if len(a_bytes) != len(b_bytes):
        return False
    return bool(np.abs(np.cumsum(a_bytes) - np.cumsum(b_bytes)).max() <= BORDER_TOLERANCE * a_bytes.mean())


def compare(first: Entry, second: Entry, target: str) -> Difference:
    """Difference of two scores of one measure in loss or bits per byte."""
    error = paired_error([(1.0, first), (-1.0, second)], target)
    if error.blocks is None:
        independent = difference_error(target_error(first, target), target_error(second, target))
        error = error._replace(se=independent)
    return Difference(first[target] - second[target], error)


def ranked(results: Results, measure: Measure | None) -> list[tuple[Entry, Entry]]:
    """Checkpoints with their scores by one measure, best first; empty if they do not compare."""
    target = results.target_by(measure)
    if target == "loss" and not results.same_tokens(measure):
        return []
    return sorted(results.scored(measure), key=lambda row: float(row[1][target]))


def compared_pairs(results: Results, measure: Measure) -> list[Pair]:
    """All pairs of few checkpoints, neighbours in rank of many, better first; none if other parts were scored."""
    rows = ranked(results, measure)
    pairs = combinations(rows, 2) if len(rows) <= MAX_ALL_PAIRS else pairwise(rows)
    return [Pair(a, b, _differences(one, other)) for (a, one), (b, other) in pairs if _have_same_size(one, other)]


def _have_same_size(a: Entry, b: Entry) -> bool:
    sizes = [size for score in (a, b) if (size := number(score, "bytes"))]
    return not sizes or nearly_equal(sizes)


def _differences(a: Entry, b: Entry) -> dict[str, Difference]:
    targets = ["bits_per_byte", *(["loss"] if a.get("segmentation") == b.get("segmentation") else [])]
    return {name: compare(a, b, name) for name in targets if is_number(a.get(name)) and is_number(b.get(name))}


def difference_table(results: Results, measure: Measure) -> list[str]:
    """A line and a table; nothing if fewer than two checkpoints compare."""
    pairs = compared_pairs(results, measure)
    if not pairs:
        return []
    has_all = len(ranked(results, measure)) <= MAX_ALL_PAIRS
    line = "**Differences**, A - B: below zero, A is better." + ("" if has_all else " Neighbours in rank only.")
    target = results.target_by(measure)
    targets = [target, *(["loss"] if target != "loss" and any("loss" in pair.differences for pair in pairs) else [])]
    header = ["A", "B", *(TARGET_NAMES[name] for name in targets), "error", "beyond 2 se"]
    words = verdicts([pair.differences[target] for pair in pairs])
    return [line, table(header, [_row(pair, targets, verdict) for pair, verdict in zip(pairs, words, strict=True)])]


def _row(pair: Pair, targets: list[str], verdict: str) -> list[str]:
    names = [name_of(entry) for entry in (pair.first, pair.second)]
    values = [
        measured(difference.value, difference.error.se, 2) if difference else NOTHING
        for difference in map(pair.differences.get, targets)
    ]
    error = pair.differences[targets[0]].error
    kind = NOTHING if error.se is None else f"independent: {error.reason}"
    return [*names, *values, f"paired, {error.blocks} blocks" if error.blocks else kind, verdict]


def verdicts(differences: list[Difference]) -> list[str]:
    """Whether each is beyond two standard errors, and whether it still is significant among all of them."""
    words = {True: "yes", False: "no", None: "not known"}
    # A single difference needs no correction, though with few blocks t has p > 5% just beyond 2 standard errors.
    adjusted = holm([difference.p for difference in differences]) if len(differences) > 1 else [None] * len(differences)
    return [
        NOT_AFTER_HOLM
        if difference.is_significant and p is not None and p > LEVEL
        else words[difference.is_significant]
        for difference, p in zip(differences, adjusted, strict=True)
    ]


def difference_notes(results: Results) -> str:
    """What the words in the tables mean, for those that occur."""
    tables = [
        [pair.differences[results.target_by(measure)] for pair in compared_pairs(results, measure)]
        for measure in results.measures
    ]
    differences = [difference for rows in tables for difference in rows]
    if not differences:
        return ""
    notes = [TEXT_NOTE]
    notes += [PAIRED_NOTE] * any(difference.error.blocks for difference in differences)
    notes += [INDEPENDENT_NOTE] * any(d.error.blocks is None and d.error.se is not None for d in differences)
    notes += [HOLM_NOTE] * any(NOT_AFTER_HOLM in verdicts(rows) for rows in tables)
    return " ".join(notes)
