"""Report section on perplexity: a table per measure, and the differences between checkpoints with standard errors.

Notable: two checkpoints tend to find the same documents hard. If both were scored on the same blocks of a text, the
error of their difference is *paired*: computed from the contribution of each block to the difference. Otherwise the two
errors are combined as if they were independent, and the report says so.
"""

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from slm.evaluation.bootstrap import influence_error, influences
from slm.evaluation.report.results import (
    Entry,
    Measure,
    Results,
    difference_error,
    has_same_extent,
    is_significant,
    name_of,
    nearly_equal,
    number,
    training_caveats,
)
from slm.evaluation.report.study import published_points
from slm.report.markdown import Columns, Section, figure, table, table_by_column
from slm.runtime import words
from slm.scaling.pairs import holm

MAX_CHECKPOINTS = 4  # up to this number, all pairs are compared; of more checkpoints, only neighbours in rank
BORDER_TOLERANCE = 0.01
"""Two block borders count as equal if they differ by at most this share of the mean bytes per block. They may differ by
a token that crosses a border, or a first token that is scored for only one of the checkpoints."""
SIGNIFICANCE_LEVEL = 0.05
SIGNIFICANCE_TEXT = {True: "yes", False: "no", None: "not known"}
NOT_AFTER_HOLM = "yes, not after Holm"
TEXT_NOTE = (
    "Errors cover the sampling of the text: another text of the same kind would give other numbers. They do not cover "
    "training: another seed would give another checkpoint."
)
NOTES = {
    "paired, ": "The error of a difference is *paired* if both checkpoints were scored on the same blocks of the text. "
    "It is computed from the difference in each block (delta method), so whatever makes a block hard for both "
    "checkpoints cancels. A paired error may be much smaller than the errors of the two checkpoints.",
    "independent: ": "*Independent* errors combine two errors as if each checkpoint had read its own text. They are "
    "too large if both checkpoints find the same parts of the text hard. A difference beyond 2 such errors is "
    "therefore clear; a smaller difference may still be real.",
    NOT_AFTER_HOLM: "*Not after Holm*: beyond 2 standard errors, but not significant at the "
    f"{SIGNIFICANCE_LEVEL:.0%} level after Holm's correction for the number of differences in the table.",
}
"""Words in a cell of a table of differences -> the explanation that follows the tables if a cell has these words."""


def quality_section(results: Results) -> Section | None:
    """Return loss, perplexity and bits per byte under every measure; None if there is no measure."""
    if not results.measures:
        return None
    caveats = []
    for entry in results.entries:
        scores_by_text = {score["data"]: score for score in entry["perplexity_results"]}
        caveats += training_caveats(entry, scores_by_text, "bytes")
    section = Section("Quality").add(
        "**Bits per byte is the only column to compare across tokenizers**: loss and perplexity are per token, and "
        "with a tokenizer that cuts the text into fewer tokens, an equally good model has a higher loss per token. "
        "Lower is better in all three.",
        *(f"**Caution:** {line}" for line in warnings(results) + caveats),
    )
    tables_text = ""  # all tables of differences
    for measure in results.measures:
        rows = results.scores_under(measure)
        names = [entry["name"] for entry, _ in rows]
        missing = [name_of(e) for e in results.entries if e["perplexity_results"] and e["name"] not in names]
        differences_table = _differences_table(results, measure)
        tables_text += differences_table
        section.add(
            f"**{words.escape_markdown(measure.title)}**",
            table_by_column([entry | score for entry, score in rows], COLUMNS),
            f"Checkpoints without a loss under this measure: {words.join_names(missing)}." if missing else "",
            differences_table,
        )
    notes = [note for words_in_cell, note in NOTES.items() if words_in_cell in tables_text]
    section.add(" ".join([TEXT_NOTE, *notes]) if tables_text else "")
    caption = "Bars are 2 standard errors."
    if results.laws:
        caption += " Grey lines are the power laws of families with three sizes or more, with 95% bands."
    if published_points(results):
        caption += " Grey diamonds are the published losses, under the same protocol."
    return section.add(figure(results.folder, "size", caption))


def _perplexity(score: Entry) -> str:
    perplexity, loss_error = number(score, "perplexity"), number(score, "se_loss")
    if perplexity is None or loss_error is None:
        return words.with_error(perplexity, None)
    return words.with_error(perplexity, perplexity * loss_error)  # delta method: d exp(loss) = exp(loss) d loss


COLUMNS: Columns = {
    "checkpoint": name_of,
    "N": lambda score: words.count(score["params_total"]),
    "**bits per byte**": lambda score: words.with_error(score.get("bits_per_byte"), score.get("se_bits_per_byte")),
    "perplexity": _perplexity,
    "loss (nats per token)": lambda score: words.with_error(score["loss"], score.get("se_loss")),
    "perplexity per word": lambda score: words.format_number(score.get("word_perplexity")),
    "tokens scored": lambda score: words.exact_count(score.get("tokens")),
    "bytes scored": lambda score: words.exact_count(score.get("bytes")),
}


def warnings(results: Results) -> list[str]:
    """Return sentences on why results of different checkpoints cannot be compared."""
    sentences = []
    fingerprints_by_text: dict[str, set[str]] = {}
    for measure in results.measures:
        title = words.escape_markdown(measure.title)
        fingerprints_by_text.setdefault(measure.data, set()).add(measure.fingerprint)
        if not results.has_same_tokens(measure):
            sentences.append(
                f"on {title} the tokenizers differ, so losses and perplexities are not comparable between checkpoints; "
                "bits per byte are, if the bytes scored are equal."
            )
        byte_counts = {count for _, score in results.scores_under(measure) if (count := number(score, "bytes"))}
        if not nearly_equal(byte_counts):
            counts_text = words.join_names([words.exact_count(count) for count in sorted(byte_counts)])
            sentences.append(f"on {title} different parts of the text were scored ({counts_text} bytes).")
    return sentences + [
        f"{words.plural(len(fingerprints), 'different text')} are called {words.escape_markdown(data)} (fingerprints "
        f"{words.join_names(sorted(fingerprints))}): results on them are in separate tables and are not comparable."
        for data, fingerprints in fingerprints_by_text.items()
        if len(fingerprints) > 1
    ]


class Error(NamedTuple):
    """A standard error, and whether it is paired."""

    se: float | None
    num_blocks: int | None  # number of blocks of a paired error; None if the error is not paired
    reason: str = ""  # why the error is not paired


class Difference(NamedTuple):
    """A difference in loss or bits per byte, first minus second checkpoint."""

    value: float
    error: Error

    @property
    def text(self) -> str:
        """The difference with its error."""
        return words.with_error(self.value, self.error.se, 2)

    @property
    def is_significant(self) -> bool | None:
        """Whether the difference is larger than two standard errors; None if there is no error."""
        return is_significant(self.value, self.error.se)

    @property
    def p(self) -> float | None:
        """Two-sided p-value: from Student's t over the blocks for a paired error, else from the normal distribution."""
        if self.error.se is None:
            return None
        if self.error.se == 0:  # any difference other than 0 is certain
            return 1.0 if self.value == 0 else 0.0
        df = self.error.num_blocks - 1 if self.error.num_blocks else math.inf
        return float(2 * stats.t.sf(abs(self.value) / self.error.se, df))


def target_error(score: Entry, target: str) -> float | None:
    """Return the standard error of loss or bits per byte; None if the score has none."""
    return number(score, f"se_{target}")


def paired_error(weights_and_scores: Sequence[tuple[float, Entry]], target: str) -> Error:
    """Return the error of a weighted sum of scores. If it cannot be paired, it has a reason and no `se`."""
    scores = [score for _, score in weights_and_scores]
    if not all(score.get("blocks") for score in scores):
        return Error(None, None, "no blocks stored")
    blocks = [{key: np.asarray(sums, float) for key, sums in score["blocks"].items()} for score in scores]
    if not all(_have_same_borders(blocks[0]["bytes"], other["bytes"]) for other in blocks[1:]):
        return Error(None, None, "different block borders")
    denominator, nats_per_unit = ("tokens", 1.0) if target == "loss" else ("bytes", math.log(2))
    influence_K = np.zeros(len(blocks[0]["nats"]))  # influence of each of K blocks on the weighted sum
    for (weight, _), sums in zip(weights_and_scores, blocks, strict=True):
        influence_K += weight * influences(sums["nats"], sums[denominator])
    error = influence_error(influence_K) / nats_per_unit
    return Error(error, len(influence_K)) if math.isfinite(error) else Error(None, None, "a single block")


def joint_errors(scores: Sequence[Entry], target: str, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw errors of scores under one measure (num_draws, scores), from the same blocks where borders are the same.

    A draw gives each block a normal weight; its covariances are those of `paired_error`. Others are independent.
    """
    first = next((score for score in scores if score.get("blocks")), None)
    borders = np.asarray(first["blocks"]["bytes"], float) if first else np.zeros(0)
    weights = rng.standard_normal((num_draws, len(borders)))
    drawn = []
    for score in scores:
        se = target_error(score, target) or 0.0
        drawn.append(se * rng.standard_normal(num_draws))
        blocks = score.get("blocks")
        if blocks and len(borders) > 1 and _have_same_borders(borders, np.asarray(blocks["bytes"], float)):
            denominator, nats_per_unit = ("tokens", 1.0) if target == "loss" else ("bytes", math.log(2))
            influence_K = influences(*(np.asarray(blocks[key], float) for key in ("nats", denominator)))
            K = len(influence_K)
            drawn[-1] = weights @ influence_K * math.sqrt(K / (K - 1)) / nats_per_unit
    return np.stack(drawn, axis=1)


def _have_same_borders(block_bytes: np.ndarray, other_block_bytes: np.ndarray) -> bool:
    if len(block_bytes) != len(other_block_bytes):
        return False
    offsets = np.abs(np.cumsum(block_bytes) - np.cumsum(other_block_bytes))
    return bool(offsets.max() <= BORDER_TOLERANCE * block_bytes.mean())


def compare(first: Entry, second: Entry, target: str) -> Difference:
    """Return the difference of two scores under one measure; `target` is "loss" or "bits_per_byte"."""
    error = paired_error([(1.0, first), (-1.0, second)], target)
    if error.num_blocks is None:
        error = error._replace(se=difference_error(target_error(first, target), target_error(second, target)))
    return Difference(first[target] - second[target], error)


def rank_checkpoints(results: Results, measure: Measure | None) -> list[tuple[Entry, Entry]]:
    """Return pairs (entry, score) under one measure, best first; empty if the scores are not comparable."""
    metric = results.metric_for(measure)
    if metric == "loss" and not results.has_same_tokens(measure):
        return []
    return sorted(results.scores_under(measure), key=lambda row: float(row[1][metric]))


def pairs_to_compare(ranking: Sequence[Any]) -> tuple[list[tuple[Any, Any]], str]:
    """Return pairs of a ranking, the better one first, and a remark for the report if these are not all pairs."""
    if len(ranking) > MAX_CHECKPOINTS:
        return list(pairwise(ranking)), " Neighbours in rank only."
    return list(combinations(ranking, 2)), ""


def _differences(first: Entry, second: Entry) -> dict[str, Difference]:
    """Return the differences in bits per byte, and in loss if both checkpoints cut the text into the same tokens."""
    targets = ["bits_per_byte"]
    if first.get("segmentation") == second.get("segmentation"):
        targets.append("loss")
    in_both = [key for key in targets if words.is_number(first.get(key)) and words.is_number(second.get(key))]
    return {target: compare(first, second, target) for target in in_both}


def _differences_table(results: Results, measure: Measure) -> str:
    """Return a table of pairs of checkpoints, the better one first; empty if no pair is comparable."""
    candidates, remark = pairs_to_compare(rank_checkpoints(results, measure))
    metric = results.metric_for(measure)
    pairs = []
    for (a, a_score), (b, b_score) in candidates:
        if has_same_extent((a_score, b_score)):
            pairs.append((name_of(a), name_of(b), _differences(a_score, b_score)))
    if not pairs:
        return ""
    metrics = [metric]
    if metric == "bits_per_byte" and any("loss" in differences for _, _, differences in pairs):
        metrics.append("loss")
    significance = significance_texts([differences[metric] for _, _, differences in pairs])
    rows = []
    for (a_name, b_name, differences), significance_text in zip(pairs, significance, strict=True):
        values = [differences[name].text if name in differences else words.NO_VALUE for name in metrics]
        rows.append([a_name, b_name, *values, _error_text(differences[metric].error), significance_text])
    header = ["A", "B", *(words.TARGET_NAMES[name] for name in metrics), "error", "beyond 2 se"]
    return f"**Differences**, A - B: below zero, A is better.{remark}\n\n{table(header, rows)}"


def _error_text(error: Error) -> str:
    if error.num_blocks:
        return f"paired, {error.num_blocks} blocks"
    return words.NO_VALUE if error.se is None else f"independent: {error.reason}"


def significance_texts(differences: Sequence[Difference]) -> list[str]:
    """Say of each difference whether it exceeds two standard errors, and is significant after Holm's correction."""
    # The p-value of a single difference is ignored: with few blocks, p can be > 5% just beyond 2 standard errors.
    adjusted_p = holm([difference.p for difference in differences]) if len(differences) > 1 else [None]
    texts = []
    for difference, p in zip(differences, adjusted_p, strict=True):
        text = SIGNIFICANCE_TEXT[difference.is_significant]
        if difference.is_significant and p is not None and p > SIGNIFICANCE_LEVEL:
            text = NOT_AFTER_HOLM
        texts.append(text)
    return texts
