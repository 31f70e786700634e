"""The sections on size: the power law of each family, and what doubling N gains."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from slm.evaluation.report.quality import SIGNIFICANCE_TEXT, paired_error, target_error
from slm.evaluation.report.results import UNNAMED, Entry, Results, difference_error, family_of, is_significant
from slm.report.markdown import Columns, Section, bullets, figure, table_by_column
from slm.runtime.words import (
    TARGET_NAMES,
    count,
    escape_markdown,
    format_number,
    is_number,
    join_names,
    plural,
    with_error,
)
from slm.scaling.describe import exponent_text, family_name, notes, status
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


class Gain(NamedTuple):
    """From one size of a family to the next, the target falls by `value` each time that N doubles."""

    family: str
    smaller: float
    larger: float
    value: float
    se: float | None
    is_paired: bool
    """Whether the error is that of the difference itself, and not of two independent figures."""


def scores_by_size(results: Results) -> dict[str, dict[int, list[Entry]]]:
    """Scores by the primary measure that have the fit's target, by family and then by N, smallest first."""
    families: dict[str, dict[int, list[Entry]]] = {}
    for entry, score in results.scored(results.primary):
        if is_number(score.get(results.fit_target)):
            families.setdefault(family_of(entry), {}).setdefault(entry["params_total"], []).append(score)
    return {family: dict(sorted(sizes.items())) for family, sizes in families.items()}


def gains(results: Results) -> list[Gain]:
    """Gain per doubling of N between consecutive sizes of each family, with the errors of the differences."""
    return [
        _gain(family, smaller, larger, results.fit_target)
        for family, sizes in scores_by_size(results).items()
        for smaller, larger in pairwise(sizes.items())
        if larger[0] >= MIN_STEP * smaller[0]
    ]


def _gain(family: str, smaller: tuple[int, list[Entry]], larger: tuple[int, list[Entry]], target: str) -> Gain:
    (a_size, a), (b_size, b) = smaller, larger
    weighted = [(1 / len(a), score) for score in a] + [(-1 / len(b), score) for score in b]
    value = sum(weight * score[target] for weight, score in weighted)
    paired, doublings = paired_error(weighted, target), math.log2(b_size / a_size)
    error = paired.se if paired.blocks else difference_error(_mean_error(a, target), _mean_error(b, target))
    se = None if error is None else error / doublings
    return Gain(family, a_size, b_size, value / doublings, se, bool(paired.blocks))


def _mean_error(scores: Sequence[Entry], target: str) -> float | None:
    """Error of the mean score: no smaller than that of one score, since all were scored on the same text."""
    errors = [error for score in scores if (error := target_error(score, target)) is not None]
    return sum(errors) / len(errors) if len(errors) == len(scores) else None


def fit_laws(results: Results) -> list[Entry]:
    """`power` in params_total for each family with three sizes or more, as entries of fits.json.

    An entry that could not be fitted has `fitted` False and says why in `notes`.
    """
    families = {name: sizes for name, sizes in scores_by_size(results).items() if len(sizes) >= MIN_SIZES}
    return [_fit(family, sizes, results.fit_target) for family, sizes in families.items()]


def _fit(family: str, sizes: dict[int, list[Entry]], target: str) -> Entry:
    frame = pd.DataFrame(
        {"family": family, "params_total": size, target: score[target]}
        for size, scores in sizes.items()
        for score in scores
    )
    settings = Settings(bootstrap=400)
    task = Task(get_law("power"), target, "params_total", settings.fit_loss)
    try:
        runs = table_from_frame(frame, name="results.csv")
        group = fit_group(runs, task, settings, np.random.default_rng(1), thorough=True)
    except ValueError as error:
        return {"family": family, "fitted": False, "notes": [str(error)], "target": target}
    return dict(plain(group[family].entry))


def scaling_section(results: Results) -> Section | None:
    """Exponents of families with three sizes or more, and the command for the whole analysis."""
    if not results.laws:
        return None
    fitted = [entry for entry in results.laws if entry["fitted"]]
    sizes = {family: len(scores) for family, scores in scores_by_size(results).items()}
    limits = []
    for entry in results.laws:
        num_sizes = sizes[entry["family"]]
        if entry["fitted"] and num_sizes < FEW_SIZES:
            limits.append(
                f"{family_name(entry)}: {plural(num_sizes, 'size')} support at best the slope from smallest to "
                "largest. They cannot tell a floor from none, nor one law from another, nor what larger models reach."
            )
        limits += _caveats(entry["family"], results)
    columns: Columns = {
        "family": family_name,
        "sizes": lambda entry: str(sizes[entry["family"]]),
        "alpha": lambda entry: exponent_text(entry, "alpha"),
        "R2": lambda entry: format_number(entry["r2"]),
        "status": status,
    }
    failures = [f"{family_name(e)}: {escape_markdown('; '.join(e['notes']))}." for e in results.laws if not e["fitted"]]
    command = shlex.join(["python", "sweep.py", f"runs={results.folder / 'results.csv'}"])
    return Section("Scaling").add(
        f"`L = A N^-alpha` of {TARGET_NAMES[results.fit_target]}, N being all parameters, with 95% intervals "
        "(Student's t over the sizes).",
        table_by_column(fitted, columns),
        bullets(failures),
        bullets(notes(fitted)),
        bullets(limits),
        f"Other laws, other N, intervals of all of them, and the comparison of families:\n\n    {command}",
    )


def _caveats(family: str, results: Results) -> list[str]:
    """Why a difference within a family may not be due to N alone."""
    budgets = {e.get("train_tokens") for e, _ in results.scored(results.primary) if family_of(e) == family}
    caveats = {
        "these checkpoints state no family and are taken as a single family; if they are not, ignore this": (
            family == UNNAMED
        ),
        "training tokens are not known, so this holds for these models as trained": budgets == {None},
        "training tokens differ or are partly unknown, so this mixes N with tokens": len(budgets) > 1,
    }
    return [f"{escape_markdown(family)}: {words}." for words, applies in caveats.items() if applies]


def gain_section(results: Results) -> Section | None:
    """What doubling N gains from each size of a family to the next."""
    steps = gains(results)
    if not steps:
        return None
    target, families = TARGET_NAMES[results.fit_target], dict.fromkeys(step.family for step in steps)
    columns: Columns = {
        "family": lambda step: escape_markdown(step.family),
        "from N": lambda step: count(step.smaller),
        "to N": lambda step: count(step.larger),
        f"fall of {target} per doubling of N": lambda step: with_error(step.value, step.se),
        "more than 2 se from 0": lambda step: SIGNIFICANCE_TEXT[is_significant(step.value, step.se)],
    }
    law = f"Line: the law of a family with {MIN_SIZES} sizes or more, and its 95% band."
    return Section("Gain of doubling").add(
        f"Difference of {target} between neighbouring sizes of a family, for each doubling of N. {_error_note(steps)}",
        table_by_column(steps, columns),
        bullets([line for family in families for line in _caveats(family, results)]),
        figure(results.folder, "doubling", f"Bars: 2 standard errors, and the two sizes. {law}"),
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
    which, rest = "Errors", ""
    if len(independent) < len(steps):
        which, rest = f"Errors of {join_names(independent)}", " The others are paired by blocks of the text."
    return f"{which} are those of two independent figures, too large where both err on the same parts.{rest}"
