"""The entries of results.json as figures, tables and sentences see them: what was measured, and what compares.

Notable: a *measure* is a text with its fingerprint and a protocol. Nothing is ever compared across measures, and losses
per token only within one tokenizer; where tokenizers differ, the quantity is bits per byte.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from slm.report.style import short_name
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
    def title(self) -> str:
        """Text and protocol in words."""
        stride = f" every {self.stride}" if self.protocol == "sliding" else ""
        return f"{self.data}, {self.protocol.replace('_', '-')} windows of {self.max_length} tokens{stride}"

    @property
    def key(self) -> str:
        """Text and protocol as the end of a column's name."""
        stride = f"_{self.stride}" if self.protocol == "sliding" else ""
        return re.sub(r"\W+", "_", f"{self.data}_{self.protocol}_{self.max_length}{stride}")


def is_wikitext2(data: str) -> bool:
    """Whether a text is called WikiText-2, or as the file of its raw test split is."""
    return data == "wiki.test.raw" or re.sub(r"\W|_", "", data.lower()).startswith("wikitext2")


def nearly_equal(counts: Collection[float]) -> bool:
    """Whether counts differ by no more than the ends of a text can explain: a thousandth. True without counts."""
    return not counts or max(counts) <= 1.001 * min(counts)


def measure_of(score: Entry) -> Measure:
    """The measure of an entry of `perplexity_results`."""
    return Measure(*(score[key] for key in ("data", "data_fingerprint", "protocol", "max_length", "stride")))


class Results:
    """All entries, in the order given, and what the report needs besides. Names are unique."""

    def __init__(self, entries: Sequence[Entry], folder: Path = Path(), laws: Sequence[Entry] = ()) -> None:
        """`folder` is the evaluation directory; `laws` are the entries of fits.json that `scaling.fits` returns."""
        self.entries, self.folder, self.laws = [_complete(entry) for entry in entries], folder, laws

    @cached_property
    def measures(self) -> list[Measure]:
        """Every measure that any checkpoint has, the primary one first."""
        scores = [score for entry in self.entries for score in entry["perplexity_results"]]
        counts = Counter(measure_of(score) for score in scores if has_loss(score))
        return sorted(
            dict.fromkeys(map(measure_of, scores)),
            key=lambda measure: (-counts[measure], not is_wikitext2(measure.data), measure[2:] != PUBLISHED),
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
        return [(entry, score) for entry in self.entries if has_loss(score := score_by(entry, measure))]

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
    shorts = [short_name(name) for name in (lasts if len(set(lasts)) == len(names) else names)]
    return [name if shorts.count(name) == 1 else f"{name[:19]} #{place}" for place, name in enumerate(shorts, start=1)]


def number(entry: Mapping[str, Any], key: str) -> float | None:
    """A value of an entry; None if it is missing, null or not a number."""
    value = entry.get(key)
    return value if is_number(value) else None


def _complete(entry: Entry) -> Entry:
    """The entry with an empty value for each part that is missing or null."""
    empty: Entry = {"perplexity_results": [], "speed": {}, "tasks": {}, "shape": {}, "notes": [], "status": "completed"}
    return entry | {name: entry.get(name) or value for name, value in empty.items()}


def name_of(entry: Entry) -> str:
    """The name of a checkpoint for Markdown."""
    return escape_markdown(entry["name"])


def score_by(entry: Entry, measure: Measure | None) -> Entry:
    """The result by one measure; empty if there is none."""
    return next((score for score in entry["perplexity_results"] if measure_of(score) == measure), {})


def has_loss(score: Entry) -> bool:
    """Whether the result has a loss that is a number."""
    return is_number(score.get("loss"))


def tasks_of(entry: Entry) -> dict[str, Entry]:
    """The task results of a checkpoint that have a value, by task."""
    return {name: result for name, result in entry["tasks"].items() if is_number(result.get("value"))}


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


def is_significant(difference: float, se: float | None) -> bool | None:
    """Whether a difference is larger than two of its standard errors; None if the error is not known."""
    return None if se is None else abs(difference) > SIGNIFICANT_ERRORS * se


def differ_significantly(a: tuple[float, float | None], b: tuple[float, float | None]) -> bool | None:
    """Whether two independent figures, each with its error, differ significantly."""
    return is_significant(a[0] - b[0], difference_error(a[1], b[1]))


def training_caveats(entry: Entry, results: Mapping[str, Entry], unit: str) -> list[str]:
    """A sentence for each of the `results`, by text or task, on which the checkpoint was trained in part or whole."""
    return [
        f"{name_of(entry)} was trained on {100 * share:.3g}% of the {unit} of {escape_markdown(name)}, so its figures "
        "there say little about text that it has not seen."
        for name, result in results.items()
        if (share := result.get("in_training"))
    ]
