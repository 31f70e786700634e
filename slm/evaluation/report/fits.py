"""Power laws of what was evaluated, and the gain from one checkpoint to the next larger of its family."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from slm.evaluation.report.average import difference_error
from slm.evaluation.report.results import Entry, Results, family_of, number
from slm.scaling.entries import fit_group, plain
from slm.scaling.laws import get_law
from slm.scaling.report.wording import is_number
from slm.scaling.settings import Settings
from slm.scaling.tables import table_from_frame

FEWEST_SIZES = 3


@dataclass(frozen=True)
class Point:
    """One size of a family: the mean over its checkpoints of that size."""

    size: float
    value: float
    se: float | None


@dataclass(frozen=True)
class Gain:
    """From one size of a family to the next, a million parameters lower the target by `value`."""

    family: str
    smaller: float
    larger: float
    value: float
    se: float | None


def target_error(score: Entry, target: str) -> float | None:
    """Standard error of loss or bits per byte."""
    return number(score, "se_loss" if target == "loss" else "se_bits_per_byte")


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
    return Point(float(size), sum(score[target] for score in mine) / len(mine), error)


def gains(results: Results) -> list[Gain]:
    """Gain per million parameters between consecutive sizes of each family, errors of both ends propagated."""
    return [
        Gain(family, a.size, b.size, 1e6 * (a.value - b.value) / (b.size - a.size), _scaled(a, b))
        for family, sizes in points(results).items()
        for a, b in pairwise(sizes)
    ]


def _scaled(a: Point, b: Point) -> float | None:
    error = difference_error(a.se, b.se)
    return None if error is None else 1e6 * error / (b.size - a.size)


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
        group = fit_group(
            table, get_law("power"), target, "params_total", settings, rng, loss=settings.fit_loss, thorough=True
        )
    except ValueError as refused:
        return {"family": family, "fitted": False, "notes": [str(refused)], "target": target}
    return dict(plain(group[family].entry))
