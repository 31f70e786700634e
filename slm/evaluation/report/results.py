"""The entries of results.json as figures, tables and sentences see them: what was measured, and what compares.

Notable: a *measure* is a text with its fingerprint and a protocol. Nothing is ever compared across measures, and losses
per token only within one tokenizer; where tokenizers differ, the quantity is bits per byte.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from slm.report.style import short
from slm.runtime.words import is_number

Entry = dict[str, Any]
UNNAMED = "unnamed"
"""Family of checkpoints that state none, and whose names hold no size to leave out."""
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


PUBLISHED = ("sliding", 1024, 512)
"""The published study's protocol, on WikiText-2."""


def is_wikitext2(data: str) -> bool:
    """Whether a text is called WikiText-2, or as the file of its raw test split is."""
    return data == "wiki.test.raw" or re.sub(r"\W|_", "", data.lower()).startswith("wikitext2")


def alike(values: Iterable[float]) -> bool:
    """Whether counts differ by no more than what the ends of a text make: a thousandth."""
    held = list(values)
    return max(held) <= 1.001 * min(held)


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
        return sorted(every, key=lambda one: (-counts[one], not is_wikitext2(one.data), one[2:] != PUBLISHED))

    @property
    def primary(self) -> Measure | None:
        """The measure that most checkpoints have; of equals WikiText-2, the study's protocol, the first."""
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
        """What checkpoints are compared by on one measure, as `target` is on the primary one."""
        bits = all(is_number(score.get("bits_per_byte")) for _, score in self.scored(measure))
        return "bits_per_byte" if bits else "loss"

    @cached_property
    def target(self) -> str:
        """What checkpoints are compared by: bits_per_byte, or loss where bytes are not known and tokenizers agree."""
        return self.target_by(self.primary)

    @cached_property
    def fit_target(self) -> str:
        """What is set against N: loss, as published laws are of; bits per byte where tokenizers differ."""
        return "loss" if self.same_tokens(self.primary) else self.target


def unique_labels(names: Sequence[str]) -> list[str]:
    """Names short enough for a figure: their last parts if those differ, numbered where shortening makes them equal."""
    lasts = [name.rstrip("/").rpartition("/")[2] for name in names]
    shorts = [short(name) for name in (lasts if len(set(lasts)) == len(names) else names)]
    return [name if shorts.count(name) == 1 else f"{name[:19]} #{place}" for place, name in enumerate(shorts, start=1)]


def number(of: Entry, key: str) -> float | None:
    """A figure of an entry; None where it is missing, null or no number."""
    value = of.get(key)
    return value if value is not None and is_number(value) else None


def scores(entry: Entry) -> list[Entry]:
    """The perplexity results of a checkpoint, none if there are none."""
    return list(entry.get("perplexity_results") or [])


def score_by(entry: Entry, measure: Measure | None) -> Entry | None:
    """The result by one measure."""
    return next((score for score in scores(entry) if measure_of(score) == measure), None)


def has_loss(score: Entry) -> bool:
    """Whether the result has a loss, and not a null."""
    return is_number(score.get("loss"))


def tasks_of(entry: Entry) -> dict[str, Entry]:
    """Tasks of a checkpoint that were evaluated, with a value."""
    return {name: one for name, one in (entry.get("tasks") or {}).items() if is_number(one.get("value"))}


def family_of(entry: Entry) -> str:
    """The stated family, or the name without the size in it: MobileLLM of MobileLLM-125M."""
    name = str(entry["name"])
    bare = _SIZE.sub("", name).strip("-_ ")
    return str(entry.get("family") or (bare if bare and bare != name else UNNAMED))


def common_tasks(entries: Sequence[Entry]) -> list[str]:
    """Tasks of which every checkpoint that has any value has one."""
    having = [found for entry in entries if (found := tasks_of(entry))]
    return [name for name in (having[0] if having else {}) if all(name in one for one in having)]
