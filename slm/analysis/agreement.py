"""Values that agree to a tolerance, compared between families: the arithmetic of the audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling.matching import SAME_SIZE
from slm.scaling.tables.columns import SIZES

MAX_VALUES = 24
"""Numbers of a family that are listed; of more, their range."""
MIXED = -1
"""The level of values whose neighbours agree and whose ends do not."""


def values_of(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series | None:
    """The first of these columns that has a value in every row."""
    return next((frame[name] for name in columns if name in frame and not frame[name].isna().any()), None)


def by_family(frame: pd.DataFrame, values: pd.Series) -> dict[str, list[Any]]:
    """The different values of each family, sorted, as plain Python values; of many numbers, their range."""

    def sort_key(value: Any) -> tuple[bool, Any]:
        return (False, value) if isinstance(value, (int, float)) else (True, str(value))

    lists = {}
    for family, rows in values.groupby(frame["family"], sort=False):
        distinct = sorted(set(rows.tolist()), key=sort_key)
        if len(distinct) > MAX_VALUES and isinstance(distinct[-1], (int, float)):
            distinct = [f"{len(distinct)} values from {distinct[0]:.6g} to {distinct[-1]:.6g}"]
        lists[str(family)] = distinct
    return lists


def levels(values: pd.Series, tolerance: float) -> pd.Series:
    """A number for each group of values that agree to `tolerance`; `MIXED` if neighbours do and the ends do not.

    Text agrees if it is equal. Groups are split where sorted values grow by more than the tolerance.
    """
    if not pd.api.types.is_numeric_dtype(values):
        return pd.Series(pd.factorize(values)[0], values.index)
    ordered = values.astype(float).sort_values(kind="stable")
    groups = (ordered / ordered.shift(1) > 1 + tolerance).cumsum()
    spread = ordered.groupby(groups).transform("max") / ordered.groupby(groups).transform("min")
    return groups.where(spread <= 1 + 2 * tolerance, MIXED).reindex(values.index)


def has_same_levels(frame: pd.DataFrame, groups: pd.Series) -> bool:
    """Whether all families have the same levels: at each size if they have the same sizes, else in all."""

    def are_same(labels: pd.Series) -> bool:
        return len({frozenset(rows) for _, rows in labels.groupby(frame["family"])}) == 1

    if (groups == MIXED).any():
        return False
    sizes = levels(frame[size_of(frame)], SAME_SIZE)
    if (sizes == MIXED).any() or not are_same(sizes):
        return are_same(groups)
    return are_same(sizes * (int(np.max(groups)) + 1) + groups)


def sizes_of(frame: pd.DataFrame) -> list[str]:
    """The columns of size that every row has; `ValueError` if there is none."""
    names = [name for name in SIZES if name in frame and not frame[name].isna().any()]
    if not names:
        raise ValueError(f"an audit needs a size of every run: {' or '.join(SIZES)}")
    return names


def size_of(frame: pd.DataFrame) -> str:
    """The first column of size in which families have the same sizes, else the first that every row has."""
    names = sizes_of(frame)
    return next((name for name in names if has_same_sizes(frame, name)), names[0])


def has_same_sizes(frame: pd.DataFrame, size: str) -> bool:
    """Whether each size of a family is, to 10%, a size of every other."""
    logs = [np.log(rows[size].to_numpy(float)) for _, rows in frame.groupby("family")]
    return all(np.abs(a[:, None] - b).min(1).max() <= np.log1p(SAME_SIZE) for a in logs for b in logs)
