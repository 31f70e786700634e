"""Which rows of a table are kept: each function leaves some out, with a note that names them."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd

from slm.runtime.words import shortened, shortlist, were
from slm.scaling.tables.columns import CELL, TARGETS, Columns, complete, groups, typed
from slm.scaling.tables.values import COMPLETED, is_blank, number, shown, status_word, truths

DIVERGED = 1.5
"""Times the loss of a run that differs in a lower learning rate alone: no rate that trains a model costs so much."""


def selected(raw: pd.DataFrame, where: str | None, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """The rows where a query of pandas is true; `ValueError` for one that fails or keeps no row."""
    if where is None or not where.strip():
        return raw
    there = shortlist(raw.columns, 12)
    frame = typed(raw)
    if re.search(r"""(["'])(true|false)\1""", where, re.IGNORECASE):  # compares with the text of the file
        frame = frame.assign(**{name: raw[name] for name in frame if truths(raw[name]) is not None})
    try:
        kept = frame.eval(where, engine="python")
    except Exception as error:  # a query can go wrong in every way that Python can
        reason = shortened(error, 120) or type(error).__name__
        raise ValueError(
            f"where={shortened(where, 200)} does not work on {columns.table}: {reason}; its columns are {there}"
        ) from None
    if not isinstance(kept, pd.Series) or not all(isinstance(v, (bool, np.bool_)) or is_blank(v) for v in kept):
        raise ValueError(
            f"where={shortened(where, 200)} must be a condition that is true or false for a row, such as: tokens > 1e9"
        )
    kept = kept.map(_is_true).astype(bool)
    if not kept.any():
        raise ValueError(f"where={shortened(where, 200)} leaves no row of {columns.table}; its columns are {there}")
    if not kept.all():
        notes.append(f"Of {len(raw)} rows, the {int(kept.sum())} where {shortened(where, 200)} were kept.")
    return raw[kept]


def _is_true(value: Any) -> bool:
    return not is_blank(value) and bool(value)


def completed(raw: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """The rows whose status is a word for a complete run, if there is a status."""
    if "status" not in raw:
        return raw
    status = raw["status"].map(status_word)
    out = status[~status.isin(COMPLETED)]
    if len(out) == len(raw):
        raise ValueError(
            f"{columns.table} has no row whose status is completed: they are {shortlist(sorted(set(out)))}"
        )
    if len(out):
        words = [
            f"{len(rows)} {shortened(word, 30)} (row{'s'[: len(rows) > 1]} {shortlist(rows.index)})"
            for word, rows in out.groupby(out, sort=False)
        ]
        notes.append(f"{were(len(out), 'row')} left out whose run did not complete: {shortlist(words, 3, longest=90)}.")
    others = sorted(set(status) - set(out) - {"completed"})
    if others:
        notes.append(f"The status {' and '.join(others)} was taken for completed.")
    return raw[status.isin(COMPLETED)]


def without_duplicates(raw: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The rows that are not equal, in all columns, to one above them."""
    again = groups(raw, list(raw.columns)).duplicated()
    if again.any():
        which = shortlist(raw.index[again])
        notes.append(f"{were(int(again.sum()), 'row')} left out as exact duplicates of rows above them: {which}.")
    return raw[~again]


def without_diverged(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.Index:
    """The rows of runs that did not diverge: as a column `diverged` says, or else as results tell.

    A run diverged if its loss is `DIVERGED` times that of a run that differs in a lower `lr` alone, or if its result is
    written as `nan` or `inf` and its status says that it ended. `raw` holds what was written.
    """
    result = _results(frame)
    if "diverged" in frame and all(value in (True, False) or is_blank(value) for value in frame["diverged"]):
        out = frame["diverged"].map(_is_true).astype(bool)
        why = f"the column {columns.own.get('diverged', 'diverged')} says so"
    else:
        out = _far_above_lower_rates(frame, result) | _no_finite_result(raw)
        why = (
            f"a loss that is not finite, or {DIVERGED:g} times that of a lower lr at the same size and tokens; "
            "a column diverged that says false keeps them"
        )
    if out.all():
        raise ValueError(f"{columns.table} has no run that did not diverge: {why}")
    if out.any():
        which = shortlist(
            f"{row} ({'nan' if math.isnan(result[row]) else shown(result[row])})" for row in out.index[out]
        )
        notes.append(f"{were(int(out.sum()), 'row')} left out as diverged: {which} ({why}).")
    return frame.index[~out]


def _results(frame: pd.DataFrame) -> pd.Series:
    """The loss of each row, where it has none the logarithm of its perplexity, else its bits per byte."""
    nothing = pd.Series(math.nan, frame.index)
    if "loss" not in frame and "perplexity" not in frame:
        return frame.get("bits_per_byte", nothing)
    perplexity = frame.get("perplexity", nothing)
    return frame.get("loss", nothing).fillna(np.log(perplexity.where(perplexity > 1)))


def _far_above_lower_rates(frame: pd.DataFrame, result: pd.Series) -> pd.Series:
    out = pd.Series(False, frame.index)
    if "lr" not in frame:
        return out
    setting = groups(frame, [name for name in CELL if name != "lr"])
    suspects = result >= DIVERGED * result.groupby(setting).transform("min")
    for _, rows in result[setting.isin(setting[suspects])].groupby(setting):
        rates = frame.loc[rows.index, "lr"]
        # The lowest result at each rate and below, then at the rate before.
        lowest = rows.groupby(rates).min().cummin().shift(1)
        out[rows.index] = rows >= DIVERGED * rates.map(lowest)
    return out


def _no_finite_result(raw: pd.DataFrame) -> pd.Series:
    """Results that are written, as `nan` or `inf`, for runs whose status has been looked at."""

    def is_written(value: Any) -> bool:
        return (isinstance(value, str) and value.strip().lower() == "nan") or math.isinf(number(value) or 0.0)

    names = [name for name in TARGETS if name in raw] if "status" in raw else []
    return raw[names].map(is_written).any(axis=1) if names else pd.Series(False, raw.index)


def ranked_by(frame: pd.DataFrame) -> str:
    """The result by which rows are better or worse."""
    return "loss" if complete(frame, "loss") else "bits_per_byte"


def without_worst(frame: pd.DataFrame, drop_worst: int, notes: list[str]) -> pd.DataFrame:
    """All rows but those of the highest result; `ValueError` for a number that leaves none."""
    if not isinstance(drop_worst, int) or isinstance(drop_worst, bool) or not 0 <= drop_worst < len(frame):
        raise ValueError(
            f"drop_worst={drop_worst} must be a whole number from 0 to {len(frame) - 1}: some rows must stay"
        )
    target = ranked_by(frame)
    worst = frame[target].sort_values(ascending=False, kind="stable").head(drop_worst)
    if drop_worst:
        which = shortlist(f"{row} ({shown(float(value))})" for row, value in worst.items())
        notes.append(f"drop_worst={drop_worst} left out the rows of the highest {target}: {which}.")
    return frame.drop(index=worst.index)
