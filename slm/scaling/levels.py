"""Compare families by their losses at each size, without a law: means over seeds, differences, and their errors.

Notable:
- Two families are compared at the sizes that both have (`matching.nearest`: sizes within 10%, equal tokens).
- Runs with equal seeds saw the same data in the same order, so they are paired if one family has no other seeds; other
  runs are compared by Welch's method. If a family has one run at a size, the difference there has no error from seeds.
- The mean difference over sizes has its error from the seeds if every size has one, else from the scatter of the
  differences between sizes.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from slm.runtime.words import count, format_number, interval, p_text, plural, target_name, with_article
from slm.scaling.caveats import (
    FEW_SIZES,
    INCOMPARABLE,
    MAX_LEVEL_SENTENCES,
    NARROW_SPAN,
    NOT_CONTROLLED,
    common_sizes,
    lower_mean_first,
)
from slm.scaling.entries import Entry
from slm.scaling.forms import Floats
from slm.scaling.matching import SAME_SIZE, Points, nearest, paired_seeds, points_of
from slm.scaling.pairs import holm, welch_df
from slm.scaling.tables import Table

MIN_SIZES = 3
"""Fewest sizes of a family to which a law in N is fitted: two for its parameters, one more to estimate the scatter."""


def compare_levels(table: Table, target: str, size: str, level: float) -> Entry:
    """Return `levels` of comparison.json: the target of every family at each size, and the differences of pairs.

    `cells` has one row per family, N and tokens: `losses` by seed, their `mean`, and its standard error `se` (None for
    one run). `pairs` has one row per two families: `sizes`, a row for each common size, and `mean`, the mean difference
    over these sizes (None without a common size). A difference is a minus b, with `se`, the interval `low` to `high`,
    `df` and `p`; these are None if nothing shows the scatter. `error` says what it was computed from: `seeds`,
    `paired seeds`, or `sizes`. `p_adjusted` is adjusted over all pairs (Holm).
    """
    points = {family: points_of(table.family(family).frame, target, size) for family in table.families}
    pairs = [_pair(a, b, points[a], points[b], level) for a, b in combinations(points, 2)]
    means = [pair["mean"] for pair in pairs if pair["mean"]]
    for mean, adjusted in zip(means, holm([mean["p"] for mean in means]), strict=True):
        mean["p_adjusted"] = adjusted
    cells = [cell for family, of_family in points.items() for cell in _cells(family, of_family)]
    return {"target": target, "size": size, "level": level, "cells": cells, "pairs": pairs}


def _cells(family: str, points: Points) -> list[Entry]:
    rows = []
    for log_N, log_D, runs in zip(points.log_N, points.log_D, points.runs, strict=True):
        losses = np.exp(runs.to_numpy(float))
        seeds = runs.index.tolist() if points.has_seeds else None
        cell: Entry = {"family": family, "N": _count(log_N), "tokens": _count(log_D), "seeds": seeds}
        rows.append(cell | {"losses": losses.tolist(), "mean": float(losses.mean()), "se": _error(losses)})
    return rows


def _count(log: float) -> float:
    """The count that has this logarithm, without the rounding error of its last digits."""
    return float(f"{math.exp(log):.12g}")


def _error(values: Floats) -> float | None:
    """The standard error of the mean; None for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _pair(a: str, b: str, points_a: Points, points_b: Points, level: float) -> Entry:
    rows = []
    for i, j in zip(*nearest(points_a, points_b), strict=True):
        sizes = {"N_a": _count(points_a.log_N[i]), "N_b": _count(points_b.log_N[j])}
        has_seeds = points_a.has_seeds and points_b.has_seeds
        row = _difference(points_a.runs[i], points_b.runs[j], has_seeds=has_seeds)
        rows.append(sizes | {"tokens": _count(points_a.log_D[i])} | _with_interval(row, level))
    return {"a": a, "b": b, "sizes": rows, "mean": _with_interval(_mean(rows), level) if rows else None}


def _difference(log_a: pd.Series, log_b: pd.Series, *, has_seeds: bool) -> Entry:
    """The mean of `a` minus that of `b` at one size, from log targets indexed by seed, with its error."""
    if paired := paired_seeds(log_a, log_b, has_seeds=has_seeds):
        differences = np.exp(log_a[paired].to_numpy(float)) - np.exp(log_b[paired].to_numpy(float))
        row: Entry = {"difference": float(differences.mean()), "se": _error(differences), "error": "paired seeds"}
        return row | {"df": len(paired) - 1, "runs": [len(paired)] * 2}
    left, right = np.exp(log_a.to_numpy(float)), np.exp(log_b.to_numpy(float))
    row = {"difference": float(left.mean() - right.mean()), "se": None, "error": "seeds", "df": 0}
    row["runs"] = [len(left), len(right)]
    errors = [_error(left), _error(right)]
    if errors[0] is not None and errors[1] is not None and max(errors[0], errors[1]) > 0:
        row["se"] = math.hypot(errors[0], errors[1])
        row["df"] = welch_df([errors[0], errors[1]], [len(left) - 1, len(right) - 1])
    return row


def _mean(rows: Sequence[Entry]) -> Entry:
    """The mean difference over sizes, and its error.

    Degrees of freedom of the sizes add up, as if runs scattered equally at all of them; Satterthwaite's would be near 1
    with two seeds a size. Budgets of one size may be checkpoints of the same runs, so their errors are averaged.
    """
    sizes = [[row for row in rows if row["N_a"] == N] for N in dict.fromkeys(row["N_a"] for row in rows)]
    differences = np.array([np.mean([row["difference"] for row in budgets]) for budgets in sizes])
    mean: Entry = {"difference": float(differences.mean()), "error": "seeds"}
    if any(row["se"] is None for row in rows):
        return mean | {"se": _error(differences), "df": len(sizes) - 1, "error": "sizes"}
    errors = [float(np.mean([row["se"] for row in budgets])) for budgets in sizes]
    df = sum(min(row["df"] for row in budgets) for budgets in sizes)
    return mean | {"se": float(np.linalg.norm(errors) / len(sizes)), "df": df}


def _with_interval(row: Entry, level: float) -> Entry:
    """`row` with the t interval and the p of its difference; `error` and these are None without a standard error."""
    if not row["se"]:  # None, or 0 for results that agree to all digits, which show no scatter
        return row | dict.fromkeys(("se", "df", "low", "high", "p", "error"))
    half_width = float(stats.t.ppf(0.5 + level / 2, row["df"]) * row["se"])
    ends = {"low": row["difference"] - half_width, "high": row["difference"] + half_width}
    return row | ends | {"p": float(2 * stats.t.sf(abs(row["difference"]) / row["se"], row["df"]))}


def is_too_small(table: Table, size: str) -> bool:
    """Whether every family has too few sizes for any law in N."""
    return bool(table.frame.groupby("family")[size].nunique().max() < MIN_SIZES)


def verdict_without_law(comparison: Entry, is_controlled: bool | None) -> Entry:
    """Return the entry `verdict` of comparison.json for a table to which no law was fitted; see `verdict.verdict`."""
    levels = comparison["levels"]
    means = [pair for pair in levels["pairs"] if pair["mean"]]
    headline = f"The table is too small for a law, so how {_subject(comparison)} with size is unknown"
    if len(comparison["families"]) > 1:
        headline += f"; {INCOMPARABLE if comparison['incomparable'] else _finding(means, levels)}"
    if comparison["incomparable"]:
        means = []
    means.sort(key=lambda pair: -abs(pair["mean"]["difference"]))
    sentences = [_sentence(pair, levels) for pair in means[:MAX_LEVEL_SENTENCES]]
    if len(means) > MAX_LEVEL_SENTENCES:
        sentences.append(f"{plural(len(means) - MAX_LEVEL_SENTENCES, 'more pair')} in the report.")
    if is_controlled is False and len(comparison["families"]) > 1:
        sentences.append(NOT_CONTROLLED)
    num_sizes = max(len({cell["N"] for cell in levels["cells"] if cell["family"] == f}) for f in comparison["families"])
    reason = f"a law in N needs {MIN_SIZES} sizes of a family, and no family has more than {num_sizes}"
    enough = f"{FEW_SIZES} or more, over a factor of {NARROW_SPAN} or more, bound an exponent well"
    sentences.append(f"No law was fitted: {reason}. {enough}.")
    return {"headline": f"{headline}.", "distinguishable": None, "sentences": sentences, "pairs": []}


def _subject(comparison: Entry) -> str:
    name = target_name(comparison["primary"]["target"])
    return f"the {name} falls" if len(comparison["families"]) == 1 else "the families scale"


def _finding(means: Sequence[Entry], levels: Entry) -> str:
    """What the differences at the same sizes show, as the second half of the headline."""
    target = target_name(levels["target"])
    if not means:
        return f"no two families have a size in common (within {SAME_SIZE:.0%}, at the same tokens)"
    p_values = [pair["mean"]["p_adjusted"] for pair in means if pair["mean"]["p_adjusted"] is not None]
    if not p_values:
        return f"differences in {target} at the same size have no error, for lack of a second seed or size"
    differ = "differ" if min(p_values) < 1 - levels["level"] else "do not differ significantly"
    return f"at the same size the families {differ} in {target} (smallest Holm-adjusted {p_text(min(p_values))})"


def _sentence(pair: Entry, levels: Entry) -> str:
    mean, target = pair["mean"], target_name(levels["target"])
    lower, higher = lower_mean_first(pair)
    where = f"At N = {count(pair['sizes'][0]['N_a'])}"
    if len(pair["sizes"]) > 1:
        where = f"On average over {common_sizes(pair)}"
    text = f"{where} {lower} reaches {with_article(target)} {format_number(abs(mean['difference']), 3)}"
    if mean["se"] is None:
        return f"{text} lower than {higher}; a second seed would show how much of this is chance."
    ends = [-mean["high"], -mean["low"]] if lower == pair["a"] else [mean["low"], mean["high"]]
    source = "scatter between seeds" if mean["error"] != "sizes" else "scatter between sizes"
    return f"{text} {interval(ends, 3)} lower than {higher} ({p_text(mean['p_adjusted'])}, from the {source})."
