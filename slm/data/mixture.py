"""Which source each training window of a mix comes from: shares by weight, spread as evenly as whole windows allow.

Notable: the windows of a run are numbered, and window n belongs to a source by a rule, not by chance. Window j of a
source with the share w has the place (j + 1/2) / w, and all windows are taken in the order of their places. This is
the method of Webster and Sainte-Lague for dividing seats by votes. After any n windows, a source with the share w of K
sources has n w windows, to within (1 + K w) / 2. Shares are fractions of integers, so window n is found directly,
without the windows before it and without rounding.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from slm.data.sources import MIX, SOURCES, source_of
from slm.runtime.settings import as_typed
from slm.runtime.words import is_number

_MAX_RATIO = 10**9
_NAME = re.compile(r"[A-Za-z0-9_-]+")  # names of sources become parts of the names of columns


@dataclass(frozen=True)
class Phase:
    """Weights that hold from a fraction of the run on."""

    at: Fraction
    weights: tuple[int, ...]
    """One whole number per source, in proportion to its share of the tokens."""

    @property
    def shares(self) -> list[float]:
        """The share of each source; they sum to 1."""
        return [weight / sum(self.weights) for weight in self.weights]


@dataclass(frozen=True)
class Mixture:
    """Sources, and their shares in each phase of a run. The first phase begins at step 0."""

    names: tuple[str, ...]
    phases: tuple[Phase, ...]

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source in the tokens of a whole run, by name."""
        ends = [*(phase.at for phase in self.phases[1:]), Fraction(1)]
        lengths = [float(end - phase.at) for phase, end in zip(self.phases, ends, strict=True)]
        parts = [[length * share for share in phase.shares] for length, phase in zip(lengths, self.phases, strict=True)]
        return dict(zip(self.names, map(sum, zip(*parts, strict=True)), strict=True))

    @property
    def identity(self) -> list[Any]:
        """What enters the fingerprint of a mix, besides the fingerprints of its sources."""
        return [[str(phase.at), list(phase.weights)] for phase in self.phases]

    def first_steps(self, steps: int) -> list[int]:
        """Return the step at which each phase begins in a run of `steps` steps; ValueError if one has no step."""
        first_steps = [math.ceil(phase.at * steps) for phase in self.phases]
        for number, (before, first) in enumerate(pairwise([*first_steps, steps])):
            if first <= before:
                weights = f"the weights of data.schedule[{number - 1}]" if number else "data.weights"
                raise ValueError(
                    f"data.schedule leaves {weights} without a step, because the run has only "
                    f"{steps} steps: train longer, or set another data.schedule"
                )
        return first_steps

    def describe(self, steps: int) -> list[str]:
        """Return the shares of each phase in words, such as `from step 80 web 50.0%, code 50.0%`."""
        texts = []
        for first, phase in zip(self.first_steps(steps), self.phases, strict=True):
            shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(self.names, phase.shares, strict=True))
            texts.append(f"from step {first} {shares}" if first else shares)
        return texts

    def drawn(self, num_windows: int, first_windows: Sequence[int]) -> list[int]:
        """Return how many of the first `num_windows` windows of a run come from each source.

        `first_windows` has the number of the window with which each phase begins.
        """
        totals = [0] * len(self.names)
        for phase, (first, end) in zip(self.phases, pairwise([*first_windows, num_windows]), strict=True):
            counts = count_windows(phase.weights, max(0, min(end, num_windows) - first))
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
        return totals


def count_windows(weights: Sequence[int], num_windows: int) -> list[int]:
    """Return how many of the first `num_windows` windows of a phase belong to each source."""
    total, num_active = sum(weights), sum(weight > 0 for weight in weights)
    # All windows with a place of at most num_windows - num_active / 2: never more than num_windows, and at most
    # num_active fewer. The others follow one by one.
    counts = [max(0, ((2 * num_windows - num_active) * weight + total) // (2 * total)) for weight in weights]
    for _ in range(num_windows - sum(counts)):
        active = [source for source, weight in enumerate(weights) if weight > 0]
        counts[min(active, key=lambda source: (Fraction(2 * counts[source] + 1, weights[source]), source))] += 1
    return counts


def windows_in_order(weights: Sequence[int], first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the source of each window in [first, end) of a phase, and its number in its source, both as int64."""
    ranges = list(zip(count_windows(weights, first), count_windows(weights, end), strict=True))
    numbers = np.concatenate([np.arange(*pair, dtype=np.int64) for pair in ranges])
    sources = np.repeat(np.arange(len(weights)), [stop - start for start, stop in ranges])
    places = (2 * numbers + 1) / np.asarray(weights, dtype=np.float64)[sources]
    order = np.lexsort((sources, places))
    return sources[order], numbers[order]


def read_mixture(data: Mapping[str, Any]) -> Mixture:
    """Return the mixture of a data config. Raises ValueError for wrong sources, weights or schedule."""
    sources = data["sources"]
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError(
            "data.sources is not set: give each source a name and a data config, as in "
            "'data.sources={web: fineweb_edu, mine: {data: local, paths: texts}}'"
        )
    for name, source in sources.items():
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"data.sources has the name {name!r}, which must consist of letters, digits, _ and -")
        kind = source.get("source") if isinstance(source, Mapping) else None
        if kind == MIX:
            raise ValueError(f"data.sources.{name} is itself a mix: list its sources in data.sources instead")
        if kind in SOURCES and source_of(source).holds_conversations:
            raise ValueError(
                f"data.sources.{name} holds conversations, whose windows are packed by another rule: train on the text "
                "first and on data=chat afterwards"
            )
    names = tuple(map(str, sources))
    phases = [Phase(Fraction(0), _read_weights(data["weights"], names, "data.weights"))]
    schedule = data["schedule"] or []
    for number, entry in enumerate(schedule if isinstance(schedule, list) else [schedule]):
        key = f"data.schedule[{number}]"
        if not isinstance(entry, Mapping) or set(entry) != {"at", "weights"}:
            raise ValueError(f"{key}={entry} must have `at` and `weights`, as in {{at: 0.8, weights: {{web: 1, ...}}}}")
        at = entry["at"]
        if not is_number(at) or not 0 < at < 1:
            raise ValueError(f"{key}.at={as_typed(at)} must be a fraction of the run, above 0 and below 1")
        if Fraction(str(at)) <= phases[-1].at:
            raise ValueError(f"{key}.at={at} must be above the entry before it: list data.schedule in rising order")
        phases.append(Phase(Fraction(str(at)), _read_weights(entry["weights"], names, f"{key}.weights")))
    for index, name in enumerate(names):
        if not any(phase.weights[index] for phase in phases):
            raise ValueError(f"data.sources.{name} has the weight 0 throughout: give it a weight, or leave it out")
    return Mixture(names, tuple(phases))


def count_common_steps(data: Mapping[str, Any], steps: int, other_steps: int) -> int:
    """Return at how many of their first steps two runs on `data`, of so many steps, see the same text."""
    if data["source"] != MIX:
        return min(steps, other_steps)
    mixture = read_mixture(data)
    changes = zip(mixture.first_steps(steps), mixture.first_steps(other_steps), strict=True)
    return min([steps, other_steps, *(min(pair) for pair in changes if pair[0] != pair[1])])


def check_phases(data: Mapping[str, Any], steps: int) -> None:
    """Raise ValueError if a run of `steps` steps is too short for the `data.schedule` of a mix."""
    if data["source"] == MIX:
        read_mixture(data).first_steps(steps)


def _read_weights(given: Any, names: Sequence[str], key: str) -> tuple[int, ...]:
    """Return weights as whole numbers in the same proportion, in the order of `names`."""
    example = ", ".join(f"{name}: {1 / len(names):.2g}" for name in names)
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{key}={as_typed(given)} must have a weight for each source, as in '{key}={{{example}}}'")
    weights = {str(name): value for name, value in given.items()}
    if unknown := [name for name in weights if name not in names]:
        raise ValueError(f"{key} has {unknown[0]}, but the sources are {', '.join(names)}")
    if missing := [name for name in names if name not in weights]:
        raise ValueError(f"{key} has no weight for {missing[0]}: give each source a weight, 0 for none")
    for name, weight in weights.items():
        if not is_number(weight) or weight < 0:
            raise ValueError(f"{key}.{name}={as_typed(weight)} must be a number of at least 0")
    fractions = [Fraction(str(weights[name])) for name in names]
    positive = [fraction for fraction in fractions if fraction]
    if not positive:
        raise ValueError(f"{key} must have at least one weight above 0")
    if max(positive) > _MAX_RATIO * min(positive):
        raise ValueError(f"{key} has weights that differ by more than a factor of {_MAX_RATIO:.0e}: use 0 for none")
    unit = math.lcm(*(fraction.denominator for fraction in fractions))
    integers = [int(fraction * unit) for fraction in fractions]
    return tuple(weight // math.gcd(*integers) for weight in integers)
