"""Report sections on size: the power law of each family, and the gain per doubling of N."""

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
from slm.scaling.entries import Task, fit_group, to_json_types
from slm.scaling.laws import get_law
from slm.scaling.settings import Settings
from slm.scaling.tables import table_from_frame

MIN_STEP = 1.05  # smallest ratio of compared sizes; the gain per doubling of closer sizes would be mostly noise
MIN_SIZES = 3  # fewest sizes to which a power law is fitted
FEW_SIZES = 6  # with fewer sizes, a power law cannot be distinguished from other laws


class Gain(NamedTuple):
    """The decrease `value` of the target per doubling of N, between the sizes `smaller` and `larger` of a family."""

    family: str
    smaller: float
    larger: float
    value: float
    se: float | None
    is_paired: bool  # whether `se` is paired by blocks of the text; if not, it combines two independent errors


def scores_by_size(results: Results) -> dict[str, dict[int, list[Entry]]]:
    """Return the scores by the primary measure that can be fitted: family -> N -> scores, smallest N first."""
    families: dict[str, dict[int, list[Entry]]] = {}
    for entry, score in results.scored(results.primary):
        if is_number(score.get(results.fit_target)):
            sizes = families.setdefault(family_of(entry), {})
            sizes.setdefault(entry["params_total"], []).append(score)
    return {family: dict(sorted(sizes.items())) for family, sizes in families.items()}


def gains(results: Results) -> list[Gain]:
    """Return the gain per doubling of N, with its standard error, between consecutive sizes of each family."""
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
    num_doublings = math.log2(b_size / a_size)
    paired = paired_error(weighted, target)
    error = paired.se if paired.blocks else difference_error(_mean_error(a, target), _mean_error(b, target))
    se = None if error is None else error / num_doublings
    return Gain(family, a_size, b_size, value / num_doublings, se, bool(paired.blocks))


def _mean_error(scores: Sequence[Entry], target: str) -> float | None:
    """Mean error of scores at one size, not divided by sqrt(n): all were scored on the same text."""
    errors = [error for score in scores if (error := target_error(score, target)) is not None]
    return sum(errors) / len(errors) if len(errors) == len(scores) else None


def fit_laws(results: Results) -> list[Entry]:
    """Fit law `power` in params_total to each family with three sizes or more; return entries as in fits.json.

    An entry whose fit failed has `fitted` False and the reason in `notes`.
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
    return dict(to_json_types(group[family].entry))


def scaling_section(results: Results) -> Section | None:
    """Return the exponents of families with three sizes or more, and the command for the full analysis."""
    if not results.laws:
        return None
    fitted = [entry for entry in results.laws if entry["fitted"]]
    num_sizes = {family: len(scores) for family, scores in scores_by_size(results).items()}
    caveats = []
    for entry in results.laws:
        family = entry["family"]
        if entry["fitted"] and num_sizes[family] < FEW_SIZES:
            caveats.append(
                f"{family_name(entry)}: {plural(num_sizes[family], 'size')} support at best the slope from smallest to "
                "largest. They do not show whether there is a floor, which law holds, or what larger models reach."
            )
        caveats += _caveats(family, results)
    columns: Columns = {
        "family": family_name,
        "sizes": lambda entry: str(num_sizes[entry["family"]]),
        "alpha": lambda entry: exponent_text(entry, "alpha"),
        "R2": lambda entry: format_number(entry["r2"]),
        "status": status,
    }
    failures = [f"{family_name(e)}: {escape_markdown('; '.join(e['notes']))}." for e in results.laws if not e["fitted"]]
    command = shlex.join(["python", "sweep.py", f"runs={results.folder / 'results.csv'}"])
    return Section("Scaling").add(
        f"The law `L = A N^-alpha`, where L is {TARGET_NAMES[results.fit_target]} and N counts all parameters. "
        "Intervals are 95% (Student's t over the sizes).",
        table_by_column(fitted, columns),
        bullets(failures),
        bullets(notes(fitted)),
        bullets(caveats),
        "This command fits other laws with intervals, uses other definitions of N, and compares the families:\n\n"
        f"    {command}",
    )


def _caveats(family: str, results: Results) -> list[str]:
    budgets = {e.get("train_tokens") for e, _ in results.scored(results.primary) if family_of(e) == family}
    caveats = {
        "these checkpoints state no family and are taken as a single family; if they are not one, ignore this": (
            family == UNNAMED
        ),
        "training tokens are unknown, so this only describes these models as trained": budgets == {None},
        "training tokens differ or are partly unknown, so this mixes the effects of N and tokens": len(budgets) > 1,
    }
    return [f"{escape_markdown(family)}: {caveat}." for caveat, applies in caveats.items() if applies]


def gain_section(results: Results) -> Section | None:
    """Return the gain per doubling of N from each size of a family to the next; None if no family has two sizes."""
    steps = gains(results)
    if not steps:
        return None
    target = TARGET_NAMES[results.fit_target]
    families = dict.fromkeys(step.family for step in steps)
    columns: Columns = {
        "family": lambda step: escape_markdown(step.family),
        "from N": lambda step: count(step.smaller),
        "to N": lambda step: count(step.larger),
        f"decrease of {target} per doubling of N": lambda step: with_error(step.value, step.se),
        "more than 2 se from 0": lambda step: SIGNIFICANCE_TEXT[is_significant(step.value, step.se)],
    }
    caption = (
        "Vertical bars: 2 standard errors; horizontal bars: from the smaller to the larger size. Lines: the law of a "
        f"family with {MIN_SIZES} sizes or more, and its 95% band."
    )
    return Section("Gain of doubling").add(
        f"Difference of {target} between neighbouring sizes of a family, per doubling of N. {_error_note(steps)}",
        table_by_column(steps, columns),
        bullets([line for family in families for line in _caveats(family, results)]),
        figure(results.folder, "doubling", caption),
    )


def _error_note(steps: Sequence[Gain]) -> str:
    independent = [
        f"{escape_markdown(step.family)} from {count(step.smaller)} to {count(step.larger)}"
        for step in steps
        if not step.is_paired
    ]
    if not independent:
        return "Errors are paired by blocks of the text."
    subject = "Errors"
    others = ""
    if len(independent) < len(steps):
        subject = f"Errors of {join_names(independent)}"
        others = " The other errors are paired by blocks of the text."
    return f"{subject} combine two independent errors, too large if both sizes err on the same parts.{others}"
