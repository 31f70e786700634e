"""A column of the user's own as the target of laws: its kind, the checks of its values, and the column that is fitted.

Laws describe quantities above 0 that fall with size. An accuracy rises, so the laws of an accuracy describe its error,
one minus the accuracy, in a column of its own: `error of piqa_acc`.
"""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from slm.runtime.words import format_number, shortlist
from slm.scaling.tables import Table
from slm.scaling.tables.columns import SIZES

if TYPE_CHECKING:
    from slm.scaling.settings import Settings

OTHER_COLUMNS = (*SIZES, "family", "tokens", "flops", "seed", "cell", "cluster")  # never results
MAX_BITS = 16  # of a task's right answers per byte; a uniform guess among 256 bytes has 8
WRONG_WAY = 0.6  # Spearman's rank correlation of the fitted column with size that is suspicious
PERCENT = 1.5  # if an accuracy or error exceeds this, the column is taken to be in percent
REQUIREMENTS: Mapping[str, str] = {
    "loss": "a loss must be above 0",
    "bits_per_byte": f"bits per byte must be above 0 and at most {MAX_BITS}",
    "error": "an error must be above 0 and at most 1",
    "accuracy": "an accuracy must be at least 0 and below 1",
}
"""Kind of a column -> what its values must be."""


def fitted_column(settings: "Settings") -> str:
    """The column of a prepared table that laws are fitted to; "" if the target is not a column of the user's own."""
    if settings.target_kind is None:
        return ""
    return f"error of {settings.target}" if settings.target_kind == "accuracy" else settings.target


def with_target(table: Table, settings: "Settings") -> Table:
    """Return the table with the column that laws are fitted to, if `settings` name a column of the user's own.

    Raises a `ValueError` of one sentence for a column that is missing, or whose values contradict its kind.
    """
    kind, frame = settings.target_kind, table.frame
    if kind is None:
        return table
    values = _numbers(table, "target", settings.target, kind)
    if settings.task_loss is not None:
        frame = frame.assign(**{settings.task_loss: _numbers(table, "task_loss", settings.task_loss, "bits_per_byte")})
    column = fitted_column(settings)
    if kind == "accuracy":
        _check_above_chance(values, settings)
    frame = frame.assign(**{column: 1 - values if kind == "accuracy" else values})
    notes = [note for note in _wrong_way(frame, column, settings) if note not in table.notes]
    return replace(table, frame=frame, notes=(*notes, *table.notes))


def _numbers(table: Table, key: str, column: str, kind: str) -> pd.Series:
    """The values of a column, checked against their kind."""
    frame = table.frame
    if column not in frame or column in OTHER_COLUMNS:
        candidates = [str(name) for name in frame if name not in OTHER_COLUMNS]
        near = get_close_matches(column, candidates, n=1)
        hint = f"; did you mean {near[0]}?" if near and column not in frame else ""
        problem = "is not a result" if column in frame else "is not a column"
        problem += f"; the table has {shortlist(candidates, 12)}"
        raise ValueError(f"analysis.{key}={column} {problem}{hint}")
    values = pd.to_numeric(frame[column], errors="coerce").astype(float)
    for row, value in values.items():
        if not np.isfinite(value):
            shown = "empty" if pd.isna(frame.at[row, column]) else repr(str(frame.at[row, column]))
            remedy = f"fill it in, or leave such rows out with where='{column} == {column}'"
            raise ValueError(f"analysis.{key}={column}: the value of a row of {_run(frame, row)} is {shown}; {remedy}")
    low, high = float(values.min()), float(values.max())
    if kind in ("accuracy", "error") and high > PERCENT:
        share = f"write fractions, such as {high / 100:.4g} for {high:.4g}%"
        raise ValueError(f"analysis.{key}={column} goes up to {format_number(high)}, so it is in percent: {share}")
    limit = {"loss": np.inf, "bits_per_byte": MAX_BITS}.get(kind, 1.0)
    is_possible = low >= 0 and high < 1 if kind == "accuracy" else low > 0 and high <= limit
    if not is_possible:
        wrong = low if low < 0 or (low == 0 and kind != "accuracy") else high
        raise ValueError(f"analysis.{key}={column} has the value {format_number(wrong)}: {REQUIREMENTS[kind]}")
    return values


def _check_above_chance(accuracy: pd.Series, settings: "Settings") -> None:
    assert settings.chance is not None  # `Settings` requires it for an accuracy
    if accuracy.max() <= settings.chance:
        raise ValueError(
            f"analysis.target={settings.target} is at most {format_number(float(accuracy.max()))}, never above "
            f"analysis.chance={settings.chance:g}: there is nothing to fit, unless the chance is wrong"
        )


def _wrong_way(frame: pd.DataFrame, column: str, settings: "Settings") -> list[str]:
    """A sentence if the fitted column mostly rises with size, in most families: its kind may be wrong."""
    size = next(name for name in SIZES if name in frame)
    means = frame.groupby(["family", size])[column].mean().groupby(level="family")
    ranks = [stats.spearmanr(range(len(rows)), rows).statistic for _, rows in means if len(rows) > 3]
    if not ranks or np.median(ranks) < WRONG_WAY:
        return []
    kind, direction = settings.target_kind, "falls" if settings.target_kind == "accuracy" else "rises"
    other = {"accuracy": "error", "error": "accuracy"}.get(str(kind), "accuracy")
    return [f"Suspicious: {settings.target} {direction} with {size}: is analysis.target_kind {other} and not {kind}?"]


def _run(frame: pd.DataFrame, row: object) -> str:
    """A row in words: its family and size."""
    size = next(name for name in SIZES if name in frame)
    return f"{frame.at[row, 'family']} with {size}={format_number(float(frame.at[row, size]))}"
