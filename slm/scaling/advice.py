"""Advice on how to detect a smaller difference of exponents: more seeds, more sizes, or a wider span."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_SEEDS = 100
MAX_SIZES = 1000
MAX_SPAN = 1_000_000
"""Limits of the search for a sufficient design. A span is the ratio of the largest to the smallest size."""


@dataclass(frozen=True)
class Advice:
    """Three ways to detect `difference`: change only the seeds, only the number of sizes, or only the span of sizes.

    `seeds` is the least number of runs per size (None if `noise` is unknown), `sizes` the least number of sizes in the
    same span, and `span` the least span of as many sizes as now. A field is None if its maximum does not suffice.
    """

    difference: float
    seeds: int | None
    sizes: int | None
    span: float | None
    seeds_now: int  # `..._now` are of the present design
    sizes_now: int
    span_now: float
    noise: float | None  # noise and misfit as in `slm.scaling.power.PairedDesign`
    misfit: float

    @property
    def text(self) -> str:
        """The possible changes in words, and the reason if more seeds are not among them."""
        changes = []
        if self.seeds is not None:
            changes.append(f"{self.seeds} seeds per size instead of {self.seeds_now}")
        if self.sizes is not None:
            changes.append(f"{self.sizes} sizes in the same span instead of {self.sizes_now}")
        if self.span is not None:
            changes.append(f"sizes that span a factor of {_rounded(self.span)} instead of {_rounded(self.span_now)}")
        if not changes:
            changes = [f"more than {MAX_SIZES:,} sizes in the same span", f"a span of a factor above {MAX_SPAN:,}"]
        text = ", or ".join(changes)
        if self.seeds is not None:
            return text
        if self.noise is None:
            return f"{text}; whether more seeds would help is unknown, because both families have two seeds at no size"
        return (
            f"{text}; more seeds do not suffice, because even the mean over many seeds deviates from a smooth law "
            f"by {self.misfit:.2g} in log loss (the seeds of one size differ by {self.noise:.2g})"
        )

    def entry(self) -> dict[str, Any]:
        """Return the fields and the text, for a JSON file."""
        return {**vars(self), "text": self.text}


def _rounded(value: float) -> str:
    """Write three significant digits, as in 2,000 (not 2e+03)."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def advise(suffices: Callable[..., bool], difference: float, design: Any, log_span: float) -> Advice:
    """Find the least changes of `design` (a design of `slm.scaling.power`) that suffice.

    `suffices` takes one change as a keyword: `seeds`, `sizes`, or `stretch`, a factor on the log of the span.
    """
    stretch = _least_stretch(lambda factor: suffices(stretch=factor), log_span)
    return Advice(
        difference=difference,
        seeds=_least(lambda n: suffices(seeds=n), design.seeds, MAX_SEEDS) if design.noise else None,
        sizes=_least(lambda n: suffices(sizes=n), design.num_sizes, MAX_SIZES) if log_span > 0 else None,
        span=None if stretch is None else math.exp(stretch * log_span),
        seeds_now=design.seeds,
        sizes_now=design.num_sizes,
        span_now=math.exp(log_span),
        noise=design.noise,
        misfit=design.misfit,
    )


def _least(suffices: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the least whole number from `low` to `high` that suffices; None if `high` does not suffice."""
    if low > high or not suffices(high):
        return None
    return low + bisect_left(range(low, high), True, key=suffices)  # the tests are False up to some number, then True


def _least_stretch(suffices: Callable[[float], bool], log_span: float) -> float | None:
    """Return the least factor on the log span that suffices, to 0.1%; None if the span `MAX_SPAN` does not suffice."""
    max_stretch = math.log(MAX_SPAN) / log_span if log_span > 0 else 0.0
    if max_stretch <= 1 or not suffices(max_stretch):
        return None
    low, high = 1.0, max_stretch
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
