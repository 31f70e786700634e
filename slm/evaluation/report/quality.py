"""The section on perplexity: for each measure a table, and the differences between checkpoints with their errors.

Notable: checkpoints tend to err on the same documents, so the error of a difference is computed from what each block of
the text adds to it (`slm.evaluation.bootstrap.influences`). For this, both must have been scored on the same blocks.
Where blocks are unknown or differ, the two errors are combined as if they were independent, and the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from scipy import stats

from slm.evaluation.bootstrap import influence_error, influences
from slm.evaluation.report.results import (
    Entry,
    Measure,
    Results,
    difference_error,
    is_significant,
    name_of,
    nearly_equal,
    number,
    training_caveats,
)
from slm.evaluation.report.study import published_points
from slm.report.markdown import Columns, Section, figure, table, table_by_column
from slm.runtime.words import (
    NO_VALUE,
    TARGET_NAMES,
    count,
    escape_markdown,
    exact_count,
    format_number,
    is_number,
    join_names,
    plural,
    with_error,
)
from slm.scaling.pairs import holm

MAX_ALL_PAIRS = 4
"""Most checkpoints for which all pairs are shown; of more, neighbours in rank."""
BORDER_TOLERANCE = 0.01
"""Share of a block's mean bytes by which two borders may differ and still count as equal. A token that only one
tokenizer scores, or that crosses a border, is within it; misplaced bytes make the error slightly too large."""
LEVEL = 0.05
SIGNIFICANCE_TEXT = {True: "yes", False: "no", None: "not known"}
NOT_AFTER_HOLM = "yes, not after Holm"
TEXT_NOTE = (
    "Errors cover the sampling of text: another text of its kind would give other figures. They do not cover training: "
    "another seed would give another checkpoint."
)
NOTES = {
    "paired, ": "The error of a difference is *paired* where both checkpoints were scored on the same blocks of the "
    "text: it is computed from the difference in each block (delta method), so that what makes a block hard for both "
    "cancels, and may be much smaller than the errors of the two figures.",
    "independent: ": "*Independent* errors combine two errors as if each checkpoint had read its own text. They are "
    "too large where both err on the same parts: a difference beyond them is all the more certain, and one within them "
    "may be real.",
    NOT_AFTER_HOLM: f"*Not after Holm*: beyond 2 standard errors, but not different at {LEVEL:.0%} after Holm's "
    "correction for all differences of the table.",
}
"""Explanations of the words that the table of differences may contain."""


def quality_section(results: Results) -> Section | None:
    """Loss, perplexity and bits per byte by every measure."""
    if not results.measures:
        return None
    caveats = [
        line
        for entry in results.entries
        for line in training_caveats(entry, {score["data"]: score for score in entry["perplexity_results"]}, "bytes")
    ]
    section = Section("Quality").add(
        "**Bits per byte is the only column to compare across tokenizers**: loss and perplexity are per token, and a "
        "tokenizer that cuts a text into fewer tokens has a higher loss for the same skill. Lower is better "
        "everywhere.",
        *(f"**Caution:** {line}" for line in warnings(results) + caveats),
    )
    differences = []
    for measure in results.measures:
        scored = results.scored(measure)
        names = [entry["name"] for entry, _ in scored]
        missing = [name_of(e) for e in results.entries if e["perplexity_results"] and e["name"] not in names]
        differences.append(_differences_table(results, measure))
        section.add(
            f"**{escape_markdown(measure.title)}**",
            table_by_column([entry | score for entry, score in scored], COLUMNS),
            f"No figure by this measure: {join_names(missing)}." if missing else "",
            differences[-1],
        )
    words = "".join(differences)
    notes = [note for word, note in NOTES.items() if word in words]
    section.add(" ".join([TEXT_NOTE, *notes]) if words else "")
    caption = "Bars: 2 standard errors."
    if results.laws:
        caption += " Grey: the power law of each family with three sizes or more, and its 95% band."
    if published_points(results):
        caption += " Grey diamonds: the published figures, by the same protocol."
    return section.add(figure(results.folder, "size", caption))


def _perplexity(score: Entry) -> str:
    perplexity, error = number(score, "perplexity"), number(score, "se_loss")
    # d exp(loss) = exp(loss) d loss
    return with_error(perplexity, None if perplexity is None or error is None else perplexity * error)


COLUMNS: Columns = {
    "checkpoint": name_of,
    "N": lambda score: count(score["params_total"]),
    "**bits per byte**": lambda score: with_error(score.get("bits_per_byte"), score.get("se_bits_per_byte")),
    "perplexity": _perplexity,
    "loss (nats per token)": lambda score: with_error(score["loss"], score.get("se_loss")),
    "per word": lambda score: format_number(score.get("word_perplexity")),
    "tokens": lambda score: exact_count(score.get("tokens")),
    "bytes": lambda score: exact_count(score.get("bytes")),
}


def warnings(results: Results) -> list[str]:
    """Sentences on why figures of different checkpoints cannot be compared."""
    sentences = []
    texts: dict[str, set[str]] = {}
    for measure in results.measures:
        title = escape_markdown(measure.title)
        texts.setdefault(measure.data, set()).add(measure.fingerprint)
        if not results.same_tokens(measure):
            sentences.append(
                f"on {title} the tokenizers differ, so losses and perplexities do not compare between checkpoints; "
                "bits per byte do, if the bytes scored are equal."
            )
        sizes = {size for _, score in results.scored(measure) if (size := number(score, "bytes"))}
        if not nearly_equal(sizes):
            shown = join_names([exact_count(size) for size in sorted(sizes)])
            sentences.append(f"on {title} different parts of the text were scored ({shown} bytes).")
    return sentences + [
        f"{plural(len(prints), 'different text')} are called {escape_markdown(data)} (fingerprints "
        f"{join_names(sorted(prints))}): their figures are in separate tables and do not compare."
        for data, prints in texts.items()
        if len(prints) > 1
    ]


class Error(NamedTuple):
    """A standard error: paired over `blocks` blocks, or with `blocks` None and the reason."""

    se: float | None
    blocks: int | None
    reason: str = ""


class Difference(NamedTuple):
    """A difference of one figure, first minus second checkpoint."""

    value: float
    error: Error

    @property
    def is_significant(self) -> bool | None:
        """Whether it is larger than two standard errors; None if there is no error."""
        return is_significant(self.value, self.error.se)

    @property
    def p(self) -> float | None:
        """Two-sided p-value: Student's t over the blocks, normal for independent errors."""
        if not self.error.se:
            return None if self.error.se is None else float(self.value == 0)
        df = self.error.blocks - 1 if self.error.blocks else math.inf
        return float(2 * stats.t.sf(abs(self.value) / self.error.se, df))

    @property
    def text(self) -> str:
        """Value and error for a table."""
        return with_error(self.value, self.error.se, 2)


def target_error(score: Entry, target: str) -> float | None:
    """Standard error of loss or bits per byte."""
    return number(score, f"se_{target}")


def paired_error(weighted: Sequence[tuple[float, Entry]], target: str) -> Error:
    """Error of a weighted sum of scores by one measure, over common blocks; no `se` if their blocks differ."""
    if not all(score.get("blocks") for _, score in weighted):
        return Error(None, None, "no blocks stored")
    blocks = [{name: np.asarray(v, dtype=float) for name, v in score["blocks"].items()} for _, score in weighted]
    if not all(_have_same_borders(blocks[0]["bytes"], other["bytes"]) for other in blocks[1:]):
        return Error(None, None, "blocks end elsewhere")
    size, unit = ("tokens", 1.0) if target == "loss" else ("bytes", math.log(2))
    parts = [weight * influences(sums["nats"], sums[size]) for (weight, _), sums in zip(weighted, blocks, strict=True)]
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
        error = error._replace(se=difference_error(target_error(first, target), target_error(second, target)))
    return Difference(first[target] - second[target], error)


def ranked(results: Results, measure: Measure | None) -> list[tuple[Entry, Entry]]:
    """Checkpoints with their scores by one measure, best first; empty if they do not compare."""
    target = results.target_by(measure)
    if target == "loss" and not results.same_tokens(measure):
        return []
    return sorted(results.scored(measure), key=lambda row: float(row[1][target]))


def _differences(a: Entry, b: Entry) -> dict[str, Difference]:
    """In bits per byte, and in loss if both have the same tokens."""
    targets = ["bits_per_byte", "loss"] if a.get("segmentation") == b.get("segmentation") else ["bits_per_byte"]
    return {name: compare(a, b, name) for name in targets if is_number(a.get(name)) and is_number(b.get(name))}


def _differences_table(results: Results, measure: Measure) -> str:
    """All pairs of few checkpoints, neighbours in rank of many, better first; empty if no two compare."""
    ranking, target = ranked(results, measure), results.target_by(measure)
    pairs = [
        (name_of(a), name_of(b), _differences(a_score, b_score))
        for (a, a_score), (b, b_score) in (
            combinations(ranking, 2) if len(ranking) <= MAX_ALL_PAIRS else pairwise(ranking)
        )
        if nearly_equal([size for score in (a_score, b_score) if (size := number(score, "bytes"))])
    ]
    if not pairs:
        return ""
    line = "**Differences**, A - B: below zero, A is better."
    if len(ranking) > MAX_ALL_PAIRS:
        line += " Neighbours in rank only."
    targets = [target, "loss"] if target != "loss" and any("loss" in row for *_, row in pairs) else [target]
    significance = verdicts([differences[target] for *_, differences in pairs])
    rows = [
        [
            *names,
            *(differences[name].text if name in differences else NO_VALUE for name in targets),
            _error_kind(differences[target].error),
            verdict,
        ]
        for (*names, differences), verdict in zip(pairs, significance, strict=True)
    ]
    return f"{line}\n\n{table(['A', 'B', *(TARGET_NAMES[name] for name in targets), 'error', 'beyond 2 se'], rows)}"


def _error_kind(error: Error) -> str:
    if error.blocks:
        return f"paired, {error.blocks} blocks"
    return NO_VALUE if error.se is None else f"independent: {error.reason}"


def verdicts(differences: Sequence[Difference]) -> list[str]:
    """Whether each is beyond two standard errors, and whether it still is significant among all of them."""
    # A single difference needs no correction, though with few blocks t has p > 5% just beyond 2 standard errors.
    adjusted = holm([difference.p for difference in differences]) if len(differences) > 1 else [None]
    return [
        NOT_AFTER_HOLM
        if difference.is_significant and p is not None and p > LEVEL
        else SIGNIFICANCE_TEXT[difference.is_significant]
        for difference, p in zip(differences, adjusted, strict=True)
    ]
