"""Read the entries of results.json for the report: what was measured, and which results are comparable.

Notable: a *measure* is a text with its fingerprint and a protocol. Scores are compared only under the same measure, and
losses per token only if the checkpoints cut the text into the same tokens; otherwise bits per byte are compared.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from slm.report.style import short_name
from slm.runtime.words import escape_markdown, is_number

Entry = dict[str, Any]
UNNAMED = "unnamed"  # family of checkpoints that state no family and have no size in their names
SIGNIFICANT_ERRORS = 2.0  # a difference is significant if it exceeds this number of standard errors
PUBLISHED = ("sliding", 1024, 512)  # the published study's protocol: name, max_length and stride, as in `Measure`
_SIZE = re.compile(r"[-_ ]?(?<![A-Za-z0-9.])\d+(\.\d+)?[kKmMbB](?![A-Za-z0-9])")  # such as "-125M"


class Measure(NamedTuple):
    """A text and a protocol. Scores under the same measure are comparable."""

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
        """Text and protocol as a suffix for the names of columns."""
        stride = f"_{self.stride}" if self.protocol == "sliding" else ""
        return re.sub(r"\W+", "_", f"{self.data}_{self.protocol}_{self.max_length}{stride}")


def is_wikitext2(data: str) -> bool:
    """Whether a text has the name of WikiText-2, or of the file of its raw test split."""
    return data == "wiki.test.raw" or re.sub(r"\W|_", "", data.lower()).startswith("wikitext2")


def nearly_equal(counts: Collection[float]) -> bool:
    """Whether counts differ by at most 0.1%: tokenizers may leave out the ends of a text. True without any counts."""
    return not counts or max(counts) <= 1.001 * min(counts)


def has_same_extent(scores: Iterable[Entry]) -> bool:
    """Whether the scores, of one text, cover equally many of its bytes; only then are differences tested."""
    return nearly_equal([num_bytes for score in scores if (num_bytes := number(score, "bytes"))])


def measure_of(score: Entry) -> Measure:
    """Return the measure of an entry of `perplexity_results`."""
    return Measure(*(score[key] for key in ("data", "data_fingerprint", "protocol", "max_length", "stride")))


class Results:
    """The entries of results.json in the given order, the evaluation directory, and the fitted laws."""

    def __init__(
        self, entries: Sequence[Entry], folder: Path = Path(), laws: Sequence[Entry] = (), limits: Entry | None = None
    ) -> None:
        """`folder` is the evaluation directory; `laws` are of `report.scaling.fit_laws`; `limits` is `ship`."""
        defaults = {"perplexity_results": [], "speed": {}, "tasks": {}, "shape": {}, "notes": [], "status": "completed"}
        self.entries = [entry | {key: entry.get(key) or value for key, value in defaults.items()} for entry in entries]
        self.folder = folder
        self.laws = laws
        self.limits = limits or {}

    @cached_property
    def measures(self) -> list[Measure]:
        """All measures under which some checkpoint has a score, the primary measure first."""
        scores = [score for entry in self.entries for score in entry["perplexity_results"]]
        num_losses = Counter(measure_of(score) for score in scores if has_loss(score))

        def rank(measure: Measure) -> tuple[int, bool, bool]:  # false sorts before true
            return -num_losses[measure], not is_wikitext2(measure.data), measure[2:] != PUBLISHED

        return sorted(dict.fromkeys(map(measure_of, scores)), key=rank)

    @property
    def primary(self) -> Measure | None:
        """The measure that most checkpoints have; in a tie, WikiText-2, then the study's protocol, then the first."""
        return self.measures[0] if self.measures else None

    @cached_property
    def labels(self) -> dict[str, str]:
        """Name of a checkpoint -> short, unique label for figures."""
        names = [str(entry["name"]) for entry in self.entries]
        return dict(zip(names, unique_labels(names), strict=True))

    def scores_under(self, measure: Measure | None) -> list[tuple[Entry, Entry]]:
        """Return a pair (entry, score) for each entry that has a loss under `measure`."""
        return [(entry, score) for entry in self.entries if has_loss(score := score_for(entry, measure))]

    def has_same_tokens(self, measure: Measure | None) -> bool:
        """Whether all checkpoints cut the text into the same tokens, so that losses per token are comparable."""
        return len({score.get("segmentation") for _, score in self.scores_under(measure)}) <= 1

    def metric_for(self, measure: Measure | None) -> str:
        """Return the name of the metric to compare: bits_per_byte, or loss if a score has no bits per byte."""
        have_bits_per_byte = all(is_number(score.get("bits_per_byte")) for _, score in self.scores_under(measure))
        return "bits_per_byte" if have_bits_per_byte else "loss"

    @cached_property
    def fit_metric(self) -> str:
        """Name of the metric to fit against the number of parameters: bits_per_byte if tokenizers differ, else loss."""
        return "loss" if self.has_same_tokens(self.primary) else self.metric_for(self.primary)


def unique_labels(names: Sequence[str]) -> list[str]:
    """Shorten names for a figure: to the last parts of paths, if these all differ. Equal short names get numbers."""
    last_parts = [name.rstrip("/").rpartition("/")[2] for name in names]
    if len(set(last_parts)) == len(names):
        names = last_parts
    labels = [short_name(name) for name in names]
    return [label if labels.count(label) == 1 else f"{label[:19]} #{i}" for i, label in enumerate(labels, start=1)]


def number(entry: Mapping[str, Any], key: str) -> float | None:
    """Return a value of an entry; None if it is missing, null or not a number."""
    value = entry.get(key)
    return value if is_number(value) else None


def name_of(entry: Entry) -> str:
    """Return the name of a checkpoint for Markdown."""
    return escape_markdown(entry["name"])


def score_for(entry: Entry, measure: Measure | None) -> Entry:
    """Return the score of a checkpoint under one measure; empty if there is none."""
    return next((score for score in entry["perplexity_results"] if measure_of(score) == measure), {})


def has_loss(score: Entry) -> bool:
    """Whether the loss of a score is a number."""
    return is_number(score.get("loss"))


def tasks_of(entry: Entry) -> dict[str, Entry]:
    """Return task -> result for the tasks of a checkpoint that have a value."""
    return {name: result for name, result in entry["tasks"].items() if is_number(result.get("value"))}


def family_of(entry: Entry) -> str:
    """Return the stated family, else the name without its size (MobileLLM for MobileLLM-125M), else `UNNAMED`.

    Quantised checkpoints are families of their own, so that no law is fitted to a mixture.
    """
    kind = entry.get("quantize")
    name = str(entry["name"]).removesuffix(f" {kind}")
    without_size = _SIZE.sub("", name).strip("-_ ")
    family = entry.get("family") or (without_size if without_size not in ("", name) else UNNAMED)
    return f"{family} {kind}" if kind else str(family)


def task_metric(result: Entry, metric: str) -> Entry:
    """Return `value` and `se` of a metric of a task result ("value" is the main one); empty if it lacks the metric."""
    measured = result if metric == "value" else (result.get("also") or {}).get(metric, {})
    return measured if is_number(measured.get("value")) else {}


def common_tasks(entries: Sequence[Entry], metric: str = "value") -> list[str]:
    """Return the tasks for which every checkpoint has the metric, ignoring checkpoints without any task results."""
    tasks_by_entry = [tasks for entry in entries if (tasks := tasks_of(entry))]
    first_tasks = tasks_by_entry[0] if tasks_by_entry else {}
    return [name for name in first_tasks if all(task_metric(t.get(name, {}), metric) for t in tasks_by_entry)]


def average(entry: Entry, tasks: Sequence[str], metric: str = "value") -> tuple[float, float | None]:
    """Return the unweighted mean over k tasks and its standard error, sqrt(sum se^2) / k (None if a task has no error).

    Tasks have independent items. The error covers the sampling of items within these tasks, not the choice of tasks.
    """
    results = [task_metric(tasks_of(entry)[name], metric) for name in tasks]
    mean = sum(result["value"] for result in results) / len(results)
    errors = [error for result in results if (error := number(result, "se")) is not None]
    if len(errors) < len(results):
        return mean, None
    return mean, math.hypot(*errors) / len(results)


def difference_error(first_error: float | None, second_error: float | None) -> float | None:
    """Return the standard error of a difference of independent values; None if one of their errors is unknown."""
    return None if first_error is None or second_error is None else math.hypot(first_error, second_error)


def is_significant(difference: float, se: float | None) -> bool | None:
    """Whether a difference exceeds `SIGNIFICANT_ERRORS` of its standard errors `se`; None if `se` is unknown."""
    return None if se is None else abs(difference) > SIGNIFICANT_ERRORS * se


def training_caveats(entry: Entry, results: Mapping[str, Entry], unit: str) -> list[str]:
    """Return a warning for each text or task in `results` that was partly in the training data of the checkpoint."""
    return [
        f"{name_of(entry)} was trained on {100 * share:.3g}% of the {unit} of {escape_markdown(name)}, so its results "
        "there say little about unseen text."
        for name, result in results.items()
        if (share := result.get("in_training"))
    ]
