"""Report sections on size: the power law of each family, and the gain per doubling of N."""

import math
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from slm.evaluation.report.quality import SIGNIFICANCE_TEXT, paired_error, target_error
from slm.evaluation.report.results import (
    UNNAMED,
    Entry,
    Results,
    difference_error,
    family_of,
    has_same_extent,
    is_significant,
)
from slm.report.markdown import Columns, Section, bullets, figure, table_by_column
from slm.runtime import words
from slm.scaling.describe import exponent_text, family_name, notes, status
from slm.scaling.entries import Task, fit_group, to_json_types
from slm.scaling.laws import get_law
from slm.scaling.settings import Settings
from slm.scaling.tables import table_from_frame

MIN_SIZE_RATIO = 1.05  # compared sizes differ at least by this factor; the gain of closer sizes would be mostly noise
MIN_SIZES = 3  # fewest sizes to which a power law is fitted
FEW_SIZES = 6  # with fewer sizes, a power law cannot be distinguished from other laws


class Gain(NamedTuple):
    """The decrease of loss or bits per byte between two sizes of a family, per doubling of N."""

    family: str
    smaller_N: float
    larger_N: float
    value: float
    se: float | None
    is_paired: bool  # whether `se` is paired over blocks of the text; if not, it combines two independent errors
    has_same_extent: bool  # whether all scores cover equally many bytes of the text

    @property
    def is_significant(self) -> bool | None:
        """Whether the gain exceeds two standard errors; None if unknown, as for scores of different parts of a text."""
        return is_significant(self.value, self.se) if self.has_same_extent else None


def scores_by_size(results: Results) -> dict[str, dict[int, list[Entry]]]:
    """Return family -> N -> the scores under the primary measure that have the fitted metric, smallest N first."""
    families: dict[str, dict[int, list[Entry]]] = {}
    for entry, score in results.scores_under(results.primary):
        if words.is_number(score.get(results.fit_metric)):
            scores_by_N = families.setdefault(family_of(entry), {})
            scores_by_N.setdefault(entry["params_total"], []).append(score)
    return {family: dict(sorted(scores_by_N.items())) for family, scores_by_N in families.items()}


def gains(results: Results) -> list[Gain]:
    """Return the gain per doubling of N, with its standard error, between consecutive sizes of each family."""
    return [
        _gain(family, scores_by_N, smaller_N, larger_N, results.fit_metric)
        for family, scores_by_N in scores_by_size(results).items()
        for smaller_N, larger_N in pairwise(scores_by_N)
        if larger_N >= MIN_SIZE_RATIO * smaller_N
    ]


def _gain(family: str, scores_by_N: dict[int, list[Entry]], smaller_N: int, larger_N: int, target: str) -> Gain:
    smaller, larger = scores_by_N[smaller_N], scores_by_N[larger_N]
    # A sum with these weights is the mean of the smaller models minus the mean of the larger models.
    weights_and_scores = [(1 / len(smaller), score) for score in smaller]
    weights_and_scores += [(-1 / len(larger), score) for score in larger]
    num_doublings = math.log2(larger_N / smaller_N)
    value = sum(weight * score[target] for weight, score in weights_and_scores) / num_doublings
    error = paired_error(weights_and_scores, target)
    se = error.se
    if not error.num_blocks:
        se = difference_error(_mean_error(smaller, target), _mean_error(larger, target))
    if se is not None:
        se /= num_doublings
    same_extent = has_same_extent(score for _, score in weights_and_scores)
    return Gain(family, smaller_N, larger_N, value, se, bool(error.num_blocks), same_extent)


def _mean_error(scores: Sequence[Entry], target: str) -> float | None:
    """Return the mean standard error; None if a score has none. Errors from the same text do not average out."""
    errors = [error for score in scores if (error := target_error(score, target)) is not None]
    return sum(errors) / len(errors) if len(errors) == len(scores) else None


def fit_laws(results: Results) -> list[Entry]:
    """Fit law `power` in params_total to each family with three sizes or more; return entries as in fits.json."""
    families = scores_by_size(results).items()
    return [_fit(family, scores, results.fit_metric) for family, scores in families if len(scores) >= MIN_SIZES]


def _fit(family: str, scores_by_N: dict[int, list[Entry]], target: str) -> Entry:
    frame = pd.DataFrame(
        {"family": family, "params_total": N, target: score[target]}
        for N, scores in scores_by_N.items()
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
    num_sizes = {family: len(scores_by_N) for family, scores_by_N in scores_by_size(results).items()}
    caveats = []
    for entry in results.laws:
        family = entry["family"]
        if entry["fitted"] and num_sizes[family] < FEW_SIZES:
            caveats.append(
                f"{family_name(entry)}: {words.plural(num_sizes[family], 'size')} are enough only for an average "
                "slope. They do not show whether there is a floor, which law holds, or what larger models reach."
            )
        caveats += _caveats(family, results)
    columns: Columns = {
        "family": family_name,
        "sizes": lambda entry: str(num_sizes[entry["family"]]),
        "alpha": lambda entry: exponent_text(entry, "alpha"),
        "R2": lambda entry: words.format_number(entry["r2"]),
        "status": status,
    }
    failures = [
        f"{family_name(e)}: {words.escape_markdown('; '.join(e['notes']))}." for e in results.laws if not e["fitted"]
    ]
    command = shlex.join(["python", "sweep.py", f"runs={results.folder / 'results.csv'}"])
    return Section("Scaling").add(
        f"The law L = A N^-alpha, where L is {words.TARGET_NAMES[results.fit_metric]} and N counts all parameters. "
        "Intervals are 95% (Student's t over the sizes).",
        table_by_column(fitted, columns),
        bullets(failures),
        bullets(notes(fitted)),
        bullets(caveats),
        "This command fits other laws with intervals, uses other definitions of N, and compares the families:\n\n"
        f"    {command}",
    )


def _caveats(family: str, results: Results) -> list[str]:
    rows = [(entry, score) for entry, score in results.scores_under(results.primary) if family_of(entry) == family]
    budgets = {entry.get("train_tokens") for entry, _ in rows}
    caveats = []
    if not has_same_extent(score for _, score in rows):
        caveats.append("different parts of the text were scored, so no gain between them is called significant")
    if family == UNNAMED:
        caveats.append("these checkpoints state no family and are taken as a single family, which may be wrong")
    if budgets == {None}:
        caveats.append("training tokens are unknown, so this only describes these models as trained")
    if len(budgets) > 1:
        caveats.append("training tokens differ or are partly unknown, so this mixes the effects of N and tokens")
    return [f"{words.escape_markdown(family)}: {caveat}." for caveat in caveats]


def gain_section(results: Results) -> Section | None:
    """Return the gain per doubling of N from each size of a family to the next; None if no family has two sizes."""
    all_gains = gains(results)
    if not all_gains:
        return None
    metric = words.TARGET_NAMES[results.fit_metric]
    families = dict.fromkeys(gain.family for gain in all_gains)
    columns: Columns = {
        "family": lambda gain: words.escape_markdown(gain.family),
        "from N": lambda gain: words.count(gain.smaller_N),
        "to N": lambda gain: words.count(gain.larger_N),
        f"decrease of {metric} per doubling of N": lambda gain: words.with_error(gain.value, gain.se),
        "more than 2 se from 0": lambda gain: SIGNIFICANCE_TEXT[gain.is_significant],
    }
    caption = (
        "Vertical bars are 2 standard errors; horizontal bars span the two sizes. Lines are the laws of families with "
        f"{MIN_SIZES} sizes or more, with 95% bands."
    )
    return Section("Gain of doubling").add(
        f"Difference of {metric} between neighbouring sizes of a family, per doubling of N. {_error_note(all_gains)}",
        table_by_column(all_gains, columns),
        bullets([line for family in families for line in _caveats(family, results)]),
        figure(results.folder, "doubling", caption),
    )


def _error_note(all_gains: Sequence[Gain]) -> str:
    unpaired = [
        f"{words.escape_markdown(gain.family)} from {words.count(gain.smaller_N)} to {words.count(gain.larger_N)}"
        for gain in all_gains
        if not gain.is_paired
    ]
    if not unpaired:
        return "Errors are paired over blocks of the text."
    explanation = "combine two errors as if they were independent: too large if both models find the same parts hard."
    if len(unpaired) == len(all_gains):
        return f"Errors {explanation}"
    return f"Errors of {words.join_names(unpaired)} {explanation} The other errors are paired over blocks of the text."
