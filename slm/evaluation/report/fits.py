"""Power laws of what was evaluated, and the gain from one checkpoint to the next larger of its family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from slm.evaluation.report.average import difference_error
from slm.evaluation.report.differences import paired_error, target_error
from slm.evaluation.report.results import Entry, Results, family_of
from slm.runtime.words import is_number
from slm.scaling.entries import Task, fit_group, plain
from slm.scaling.laws import get_law
from slm.scaling.settings import Settings
from slm.scaling.tables import table_from_frame

LEAST_STEP = 1.05
FEWEST_SIZES = 3


@dataclass(frozen=True)
class Point:
    """One size of a family: the mean over its checkpoints of that size."""

    size: float
    value: float
    se: float | None
    scores: tuple[Entry, ...]


@dataclass(frozen=True)
class Gain:
    """From one size of a family to the next, the target falls by `value` each time that N doubles."""

    family: str
    smaller: float
    larger: float
    value: float
    se: float | None
    paired: bool
    """Whether the error is that of the difference itself, and not of two independent figures."""


def points(results: Results) -> dict[str, list[Point]]:
    """Sizes of each family with its figure by the primary measure, smallest first."""
    target = results.fit_target
    found: dict[str, dict[float, list[Entry]]] = {}
    for entry, score in results.scored(results.primary):
        if is_number(score.get(target)):
            found.setdefault(family_of(entry), {}).setdefault(entry["params_total"], []).append(score)
    return {family: [_point(size, sizes[size], target) for size in sorted(sizes)] for family, sizes in found.items()}


def _point(size: float, mine: list[Entry], target: str) -> Point:
    errors = [target_error(score, target) for score in mine]
    # The same text is in all of them: the error of a mean is no smaller than that of one.
    known = [error for error in errors if error is not None]
    error = sum(known) / len(known) if len(known) == len(errors) else None
    return Point(float(size), sum(score[target] for score in mine) / len(mine), error, tuple(mine))


def gains(results: Results) -> list[Gain]:
    """Gain per doubling of N between consecutive sizes of each family, with the errors of the differences.

    Sizes nearer than `LEAST_STEP` have none: a difference over next to nothing says nothing of size.
    """
    target = results.fit_target
    return [
        _gain(family, a, b, target)
        for family, sizes in points(results).items()
        for a, b in pairwise(sizes)
        if b.size >= LEAST_STEP * a.size
    ]


def _gain(family: str, a: Point, b: Point, target: str) -> Gain:
    shares = [(1 / len(a.scores), score) for score in a.scores] + [(-1 / len(b.scores), score) for score in b.scores]
    paired, doublings = paired_error(shares, target), math.log2(b.size / a.size)
    error = paired.se if paired.blocks else difference_error(a.se, b.se)
    scaled = None if error is None else error / doublings
    return Gain(family, a.size, b.size, (a.value - b.value) / doublings, scaled, bool(paired.blocks))


def fits(results: Results) -> list[Entry]:
    """`power` in params_total for each family with three sizes or more, as entries of fits.json.

    An entry that could not be fitted has `fitted` False and says why in `notes`.
    """
    found = []
    for family, sizes in points(results).items():
        if len(sizes) >= FEWEST_SIZES:
            found.append(_fit(family, results))
    return found


def _fit(family: str, results: Results) -> Entry:
    target = results.fit_target
    mine = [(entry, score) for entry, score in results.scored(results.primary) if family_of(entry) == family]
    frame = pd.DataFrame(
        [{"family": family, "params_total": e["params_total"], target: score[target]} for e, score in mine]
    )
    rng, settings = np.random.default_rng(1), Settings(bootstrap=400)
    try:
        table = table_from_frame(frame, name="results.csv")
        task = Task(get_law("power"), target, "params_total", settings.fit_loss)
        group = fit_group(table, task, settings, rng, thorough=True)
    except ValueError as refused:
        return {"family": family, "fitted": False, "notes": [str(refused)], "target": target}
    return dict(plain(group[family].entry))
