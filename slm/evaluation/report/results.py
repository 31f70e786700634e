"""The entries of results.json as figures, tables and sentences see them: what was measured, and what compares.

Notable: a *measure* is a text with its fingerprint and a protocol. Nothing is ever compared across measures, and losses
per token only within one tokenizer; where tokenizers differ, the quantity is bits per byte.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from slm.report.style import short
from slm.runtime.words import escape_markdown, is_number

Entry = dict[str, Any]
UNNAMED = "unnamed"
"""Family of checkpoints that state none and whose names hold no size."""
SIGNIFICANT_ERRORS = 2.0
"""Standard errors beyond which a difference counts."""
PUBLISHED = ("sliding", 1024, 512)
"""The published study's protocol, on WikiText-2."""
_SIZE = re.compile(r"[-_ ]?(?<![A-Za-z0-9.])\d+(\.\d+)?[kKmMbB](?![A-Za-z0-9])")


class Measure(NamedTuple):
    """A text and a protocol: figures of equal measures compare."""

    data: str
    fingerprint: str
    protocol: str
    max_length: int
    stride: int

    @property
    def windows(self) -> str:
        """The protocol in words."""
        if self.protocol == "sliding":
            return f"sliding windows of {self.max_length} tokens every {self.stride}"
        return f"{self.protocol.replace('_', '-')} windows of {self.max_length} tokens"

    @property
    def title(self) -> str:
        """Text and protocol in words."""
        return f"{self.data}, {self.windows}"

    @property
    def key(self) -> str:
        """Text and protocol as the end of a column's name."""
        stride = f"_{self.stride}" if self.protocol == "sliding" else ""
        return re.sub(r"\W+", "_", f"{self.data}_{self.protocol}_{self.max_length}{stride}")


def is_wikitext2(data: str) -> bool:
    """Whether a text is called WikiText-2, or as the file of its raw test split is."""
    return data == "wiki.test.raw" or re.sub(r"\W|_", "", data.lower()).startswith("wikitext2")


def nearly_equal(counts: Iterable[float]) -> bool:
    """Whether counts differ by no more than the ends of a text can explain: a thousandth."""
    counts = list(counts)
    return max(counts) <= 1.001 * min(counts)


def measure_of(score: Entry) -> Measure:
    """The measure of an entry of `perplexity_results`."""
    return Measure(*(score[key] for key in ("data", "data_fingerprint", "protocol", "max_length", "stride")))


@dataclass(frozen=True)
class Results:
    """All entries, in the order given. Names are unique."""

    entries: list[Entry]

    @cached_property
    def measures(self) -> list[Measure]:
        """Every measure that any checkpoint has, the primary one first."""
        counts = Counter(measure_of(score) for entry in self.entries for score in scores(entry) if has_loss(score))
        every = dict.fromkeys(measure_of(score) for entry in self.entries for score in scores(entry))
        return sorted(
            every, key=lambda measure: (-counts[measure], not is_wikitext2(measure.data), measure[2:] != PUBLISHED)
        )

    @property
    def primary(self) -> Measure | None:
        """The measure that most checkpoints have; ties go to WikiText-2, then the study's protocol, then the first."""
        return self.measures[0] if self.measures else None

    @cached_property
    def labels(self) -> dict[str, str]:
        """A short, unique label of each name, for figures."""
        names = [str(entry["name"]) for entry in self.entries]
        return dict(zip(names, unique_labels(names), strict=True))

    def scored(self, measure: Measure | None) -> list[tuple[Entry, Entry]]:
        """Entries with a loss by `measure`, each with its score."""
        pairs = ((entry, score_by(entry, measure)) for entry in self.entries)
        return [(entry, score) for entry, score in pairs if score and has_loss(score)]

    def same_tokens(self, measure: Measure | None) -> bool:
        """Whether all checkpoints cut the text into the same tokens, so that losses per token compare."""
        return len({score.get("segmentation") for _, score in self.scored(measure)}) <= 1

    def target_by(self, measure: Measure | None) -> str:
        """What checkpoints are compared by on a measure: bits_per_byte, or loss if one has no bytes."""
        bits = all(is_number(score.get("bits_per_byte")) for _, score in self.scored(measure))
        return "bits_per_byte" if bits else "loss"

    @cached_property
    def fit_target(self) -> str:
        """What is fitted against N: loss, as in published laws, or bits per byte where tokenizers differ."""
        return "loss" if self.same_tokens(self.primary) else self.target_by(self.primary)


def unique_labels(names: Sequence[str]) -> list[str]:
    """Names short enough for a figure: their last parts if those differ, numbered where shortening makes them equal."""
    lasts = [name.rstrip("/").rpartition("/")[2] for name in names]
    shorts = [short(name) for name in (lasts if len(set(lasts)) == len(names) else names)]
    return [name if shorts.count(name) == 1 else f"{name[:19]} #{place}" for place, name in enumerate(shorts, start=1)]


def number(entry: Mapping[str, Any], key: str) -> float | None:
    """A value of an entry; None if it is missing, null or not a number."""
    value = entry.get(key)
    return value if value is not None and is_number(value) else None


def name_of(entry: Entry) -> str:
    """The name of a checkpoint for Markdown."""
    return escape_markdown(entry["name"])


def scores(entry: Entry) -> list[Entry]:
    """The perplexity results of a checkpoint."""
    return list(entry.get("perplexity_results") or [])


def score_by(entry: Entry, measure: Measure | None) -> Entry | None:
    """The result by one measure."""
    return next((score for score in scores(entry) if measure_of(score) == measure), None)


def has_loss(score: Entry) -> bool:
    """Whether the result has a loss that is a number."""
    return is_number(score.get("loss"))


def tasks_of(entry: Entry) -> dict[str, Entry]:
    """The task results of a checkpoint that have a value, by task."""
    return {name: result for name, result in (entry.get("tasks") or {}).items() if is_number(result.get("value"))}


def family_of(entry: Entry) -> str:
    """The stated family, or the name without the size in it: MobileLLM of MobileLLM-125M."""
    name = str(entry["name"])
    bare = _SIZE.sub("", name).strip("-_ ")
    return str(entry.get("family") or (bare if bare and bare != name else UNNAMED))


def common_tasks(entries: Sequence[Entry]) -> list[str]:
    """Tasks that have a value for every checkpoint that has a value for any task."""
    results = [tasks for entry in entries if (tasks := tasks_of(entry))]
    return [name for name in (results[0] if results else {}) if all(name in tasks for tasks in results)]


def average(entry: Entry, tasks: Sequence[str]) -> tuple[float, float | None]:
    """Unweighted mean over tasks and its standard error, sqrt(sum se^2) / k: tasks are independent samples of items.

    The error covers the sampling of items within these tasks, not the choice of tasks. None if a task has no error.
    """
    results = [tasks_of(entry)[name] for name in tasks]
    errors = [error for result in results if (error := number(result, "se")) is not None]
    value = sum(result["value"] for result in results) / len(results)
    return value, math.hypot(*errors) / len(results) if len(errors) == len(results) else None


def difference_error(a: float | None, b: float | None) -> float | None:
    """sqrt(a^2 + b^2), the standard error of a difference of independent figures; None if one is not known.

    Two models tend to err on the same parts of a text and on the same items, so the true error of their difference is
    smaller.
    """
    return None if a is None or b is None else math.hypot(a, b)


def differ_significantly(a: tuple[float, float | None], b: tuple[float, float | None]) -> bool | None:
    """Whether two figures differ by more than two standard errors of their difference; None if these are unknown."""
    error = difference_error(a[1], b[1])
    return None if error is None else abs(a[0] - b[0]) > SIGNIFICANT_ERRORS * error


def text_caveats(entry: Entry) -> list[str]:
    """A sentence for each text of an entry that the checkpoint was trained on, in part or whole."""
    return _caveats(entry, {score["data"]: score for score in scores(entry)}, "bytes")


def task_caveats(entry: Entry) -> list[str]:
    """The same for its tasks."""
    return _caveats(entry, entry.get("tasks") or {}, "questions")


def _caveats(entry: Entry, results: Mapping[str, Entry], unit: str) -> list[str]:
    return [
        f"{entry['name']} was trained on {100 * share:.3g}% of the {unit} of {name}, so its figures there say little "
        "about text that it has not seen."
        for name, result in results.items()
        if (share := result.get("in_training"))
    ]
