"""Functions for the audit that compare values between families, to a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling.matching import SAME_SIZE
from slm.scaling.tables.columns import SIZES

MAX_VALUES = 24
"""Most numbers of a family that are listed; otherwise their range is given."""
MIXED = -1
"""The level of values of which neighbours agree, but the smallest and largest do not."""


def values_of(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series | None:
    """The first of these columns that has a value in every row; None if no column has."""
    return next((frame[name] for name in columns if name in frame and not frame[name].isna().any()), None)


def by_family(frame: pd.DataFrame, values: pd.Series) -> dict[str, list[Any]]:
    """The distinct values of each family, sorted, as plain Python values. Many numbers become one text, their range."""

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
    """Number the groups of values that agree to a relative `tolerance`; texts agree if they are equal.

    Sorted values are split where they grow by more than the tolerance. A group that spans more than twice the tolerance
    gets the number `MIXED`.
    """
    if not pd.api.types.is_numeric_dtype(values):
        return pd.Series(pd.factorize(values)[0], values.index)
    ordered = values.astype(float).sort_values(kind="stable")
    groups = (ordered / ordered.shift(1) > 1 + tolerance).cumsum()
    spread = ordered.groupby(groups).transform("max") / ordered.groupby(groups).transform("min")
    return groups.where(spread <= 1 + 2 * tolerance, MIXED).reindex(values.index)


def has_same_levels(frame: pd.DataFrame, groups: pd.Series) -> bool:
    """Whether all families have the same levels: at each size if they have the same sizes, otherwise over all sizes."""

    def are_same(labels: pd.Series) -> bool:
        return len({frozenset(rows) for _, rows in labels.groupby(frame["family"])}) == 1

    if (groups == MIXED).any():
        return False
    sizes = levels(frame[size_of(frame)], SAME_SIZE)
    if (sizes == MIXED).any() or not are_same(sizes):
        return are_same(groups)
    num_levels = int(np.max(groups)) + 1
    return are_same(sizes * num_levels + groups)  # one number for each pair of size and level


def sizes_of(frame: pd.DataFrame) -> list[str]:
    """The size columns that have a value in every row. Raises `ValueError` if there is no such column."""
    names = [name for name in SIZES if name in frame and not frame[name].isna().any()]
    if not names:
        raise ValueError(f"the audit needs the size of every run, as a column {' or '.join(SIZES)}")
    return names


def size_of(frame: pd.DataFrame) -> str:
    """The first complete size column in which families have the same sizes, or else the first complete one."""
    names = sizes_of(frame)
    return next((name for name in names if has_same_sizes(frame, name)), names[0])


def has_same_sizes(frame: pd.DataFrame, size: str) -> bool:
    """Whether, to 10%, every family has each size of every other family."""
    log_sizes = [np.log(rows[size].to_numpy(float)) for _, rows in frame.groupby("family")]
    differences = [np.abs(a[:, None] - b).min(axis=1).max() for a in log_sizes for b in log_sizes]
    return bool(max(differences) <= np.log1p(SAME_SIZE))
