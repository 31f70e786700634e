"""The sections on size: the power law of each family, and what doubling N gains."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from slm.evaluation.report.differences import paired_error, target_error
from slm.evaluation.report.results import SIGNIFICANT_ERRORS, UNNAMED, Entry, Results, difference_error, family_of
from slm.report.markdown import Section, bullets, figure, table
from slm.runtime.words import TARGET_NAMES, count, escape_markdown, is_number, listed, measured, plural, sig
from slm.scaling.describe import exponent_text, notes, status
from slm.scaling.entries import Task, fit_group, plain
from slm.scaling.laws import get_law
from slm.scaling.settings import Settings
from slm.scaling.tables import table_from_frame

MIN_STEP = 1.05
"""Least ratio of two sizes that are compared: a difference over next to no change of size says nothing about size."""
MIN_SIZES = 3
"""Fewest sizes to which a power law is fitted."""
FEW_SIZES = 6
"""Sizes below which one power law cannot be told from another law."""


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
    is_paired: bool
    """Whether the error is that of the difference itself, and not of two independent figures."""


def points(results: Results) -> dict[str, list[Point]]:
    """Sizes of each family with its figure by the primary measure, smallest first."""
    target = results.fit_target
    families: dict[str, dict[float, list[Entry]]] = {}
    for entry, score in results.scored(results.primary):
        if is_number(score.get(target)):
            families.setdefault(family_of(entry), {}).setdefault(entry["params_total"], []).append(score)
    return {family: [_point(size, sizes[size], target) for size in sorted(sizes)] for family, sizes in families.items()}


def _point(size: float, scores: list[Entry], target: str) -> Point:
    errors = [error for score in scores if (error := target_error(score, target)) is not None]
    # All were scored on the same text, so the error of their mean is no smaller than that of one.
    error = sum(errors) / len(errors) if len(errors) == len(scores) else None
    return Point(float(size), sum(score[target] for score in scores) / len(scores), error, tuple(scores))


def gains(results: Results) -> list[Gain]:
    """Gain per doubling of N between consecutive sizes of each family, with the errors of the differences."""
    return [
        _gain(family, a, b, results.fit_target)
        for family, sizes in points(results).items()
        for a, b in pairwise(sizes)
        if b.size >= MIN_STEP * a.size
    ]


def _gain(family: str, a: Point, b: Point, target: str) -> Gain:
    weighted = [(1 / len(a.scores), score) for score in a.scores] + [(-1 / len(b.scores), score) for score in b.scores]
    paired, doublings = paired_error(weighted, target), math.log2(b.size / a.size)
    error = paired.se if paired.blocks else difference_error(a.se, b.se)
    se = None if error is None else error / doublings
    return Gain(family, a.size, b.size, (a.value - b.value) / doublings, se, bool(paired.blocks))


def fits(results: Results) -> list[Entry]:
    """`power` in params_total for each family with three sizes or more, as entries of fits.json.

    An entry that could not be fitted has `fitted` False and says why in `notes`.
    """
    return [_fit(family, results) for family, sizes in points(results).items() if len(sizes) >= MIN_SIZES]


def _fit(family: str, results: Results) -> Entry:
    target = results.fit_target
    frame = pd.DataFrame(
        {"family": family, "params_total": entry["params_total"], target: score[target]}
        for entry, score in results.scored(results.primary)
        if family_of(entry) == family
    )
    settings = Settings(bootstrap=400)
    task = Task(get_law("power"), target, "params_total", settings.fit_loss)
    try:
        runs = table_from_frame(frame, name="results.csv")
        group = fit_group(runs, task, settings, np.random.default_rng(1), thorough=True)
    except ValueError as error:
        return {"family": family, "fitted": False, "notes": [str(error)], "target": target}
    return dict(plain(group[family].entry))


def scaling_section(results: Results, fits: Sequence[Entry], folder: Path) -> Section | None:
    """Exponents of families with three sizes or more, and the command for the whole analysis."""
    if not fits:
        return None
    fitted = [entry for entry in fits if entry["fitted"]]
    sizes = {family: len(family_points) for family, family_points in points(results).items()}
    limits = []
    for entry in fits:
        family, num_sizes = entry["family"], sizes[entry["family"]]
        if entry["fitted"] and num_sizes < FEW_SIZES:
            limits.append(
                f"{escape_markdown(family)}: {plural(num_sizes, 'size')} support at best the slope from smallest to "
                "largest. They cannot tell a floor from none, nor one law from another, nor what larger models reach."
            )
        limits += _caveats(family, results)
    command = shlex.join(["python", "sweep.py", f"runs={folder / 'results.csv'}"])
    target = TARGET_NAMES[results.fit_target]
    return Section("Scaling").add(
        f"`L = A N^-alpha` of {target}, N being all parameters, with 95% intervals (Student's t over the sizes).",
        table(
            ("family", "sizes", "alpha", "R2", "status"),
            [
                [
                    escape_markdown(e["family"]),
                    str(sizes[e["family"]]),
                    exponent_text(e, "alpha"),
                    sig(e["r2"]),
                    status(e),
                ]
                for e in fitted
            ],
        ),
        bullets(
            [
                f"{escape_markdown(e['family'])}: {escape_markdown('; '.join(e['notes']))}."
                for e in fits
                if not e["fitted"]
            ]
        ),
        bullets(notes(fitted)),
        bullets(limits),
        f"Other laws, other N, intervals of all of them, and the comparison of families:\n\n    {command}",
    )


def _caveats(family: str, results: Results) -> list[str]:
    """Why a difference within a family may not be due to N alone."""
    name = escape_markdown(family)
    caveats = []
    if family == UNNAMED:
        caveats.append(
            f"{name}: these checkpoints state no family and are taken as a single family; if they are not, ignore this."
        )
    budgets = {e.get("train_tokens") for e, _ in results.scored(results.primary) if family_of(e) == family}
    if budgets == {None}:
        caveats.append(f"{name}: training tokens are not known, so this holds for these models as trained.")
    elif len(budgets) > 1:
        caveats.append(f"{name}: training tokens differ or are partly unknown, so this mixes N with tokens.")
    return caveats


def gain_section(results: Results, folder: Path) -> Section | None:
    """What doubling N gains from each size of a family to the next."""
    steps = gains(results)
    if not steps:
        return None
    target = TARGET_NAMES[results.fit_target]
    rows = [
        [
            *(escape_markdown(step.family), count(step.smaller), count(step.larger), measured(step.value, step.se)),
            "not known" if step.se is None else "yes" if abs(step.value) > SIGNIFICANT_ERRORS * step.se else "no",
        ]
        for step in steps
    ]
    law = f"Line: the law of a family with {MIN_SIZES} sizes or more, and its 95% band."
    return Section("Gain of doubling").add(
        f"Difference of {target} between neighbouring sizes of a family, for each doubling of N. {_error_note(steps)}",
        table(("family", "from N", "to N", f"fall of {target} per doubling of N", "more than 2 se from 0"), rows),
        bullets(
            [line for family in dict.fromkeys(step.family for step in steps) for line in _caveats(family, results)]
        ),
        figure(folder, "doubling", f"Bars: 2 standard errors, and the two sizes. {law}"),
    )


def _error_note(steps: Sequence[Gain]) -> str:
    """Which of the errors are of differences, and which of independent figures."""
    independent = [
        f"{escape_markdown(step.family)} from {count(step.smaller)} to {count(step.larger)}"
        for step in steps
        if not step.is_paired
    ]
    if not independent:
        return "Errors are of the differences, paired by blocks of the text."
    are_some_paired = len(independent) < len(steps)
    which = f"Errors of {listed(independent)}" if are_some_paired else "Errors"
    rest = " The others are paired by blocks of the text." if are_some_paired else ""
    return f"{which} are those of two independent figures, too large where both err on the same parts.{rest}"
