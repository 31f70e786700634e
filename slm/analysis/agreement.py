"""Functions for the audit that compare values between families, to a tolerance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling.matching import SAME_SIZE
from slm.scaling.tables.columns import SIZES, is_complete

MAX_VALUES = 24  # if a family has more distinct numbers, their range is given instead of a list
MIXED = -1  # the number of every group in which neighbouring values agree, but the smallest and the largest do not


def complete_column(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series | None:
    """The first of these columns that has a value in every row; None if there is no such column."""
    return next((frame[name] for name in columns if is_complete(frame, name)), None)


def values_by_family(frame: pd.DataFrame, values: pd.Series) -> dict[str, list[Any]]:
    """The distinct values of each family, sorted. More than `MAX_VALUES` numbers become one text, with their range."""

    def sort_key(value: Any) -> tuple[bool, Any]:  # numbers before texts
        return (False, value) if isinstance(value, (int, float)) else (True, str(value))

    lists = {}
    for family, rows in values.groupby(frame["family"], sort=False):
        distinct = sorted(set(rows.tolist()), key=sort_key)
        if len(distinct) > MAX_VALUES and isinstance(distinct[-1], (int, float)):
            distinct = [f"{len(distinct)} values from {distinct[0]:.6g} to {distinct[-1]:.6g}"]
        lists[str(family)] = distinct
    return lists


def group_numbers(values: pd.Series, tolerance: float) -> pd.Series:
    """Group numbers that agree to a relative `tolerance`, or equal texts; returns the number of each value's group.

    Sorted numbers are split where they grow by more than the tolerance. A group that spans more than twice the
    tolerance gets the number `MIXED`.
    """
    if not pd.api.types.is_numeric_dtype(values):
        return pd.Series(pd.factorize(values)[0], values.index)
    ordered = values.astype(float).sort_values(kind="stable")
    groups = (ordered / ordered.shift(1) > 1 + tolerance).cumsum()
    spread = ordered.groupby(groups).transform("max") / ordered.groupby(groups).transform("min")
    return groups.where(spread <= 1 + 2 * tolerance, MIXED).reindex(values.index)


def has_same_groups(frame: pd.DataFrame, groups: pd.Series) -> bool:
    """Whether families have values in the same groups: at each size if they have the same sizes, else at any size."""

    def has_same_set_in_families(numbers: pd.Series) -> bool:
        return len({frozenset(family_numbers) for _, family_numbers in numbers.groupby(frame["family"])}) == 1

    if (groups == MIXED).any():
        return False
    sizes = group_numbers(frame[size_column(frame)], SAME_SIZE)
    if (sizes == MIXED).any() or not has_same_set_in_families(sizes):
        return has_same_set_in_families(groups)
    num_groups = int(np.max(groups)) + 1
    return has_same_set_in_families(sizes * num_groups + groups)  # one number for each pair of size and group


def size_columns(frame: pd.DataFrame) -> list[str]:
    """The size columns that have a value in every row; a table of `slm.scaling.tables` has at least one."""
    return [name for name in SIZES if is_complete(frame, name)]


def size_column(frame: pd.DataFrame) -> str:
    """The first complete size column in which families have the same sizes, else the first complete size column."""
    names = size_columns(frame)
    return next((name for name in names if has_same_sizes(frame, name)), names[0])


def has_same_sizes(frame: pd.DataFrame, size: str) -> bool:
    """Whether, to 10%, every family has each size of every other family."""
    log_sizes = [np.log(rows[size].to_numpy(float)) for _, rows in frame.groupby("family")]
    # For each pair of families: the largest distance from a size of `one` to the nearest size of `other`.
    distances = [np.abs(one[:, None] - other).min(axis=1).max() for one in log_sizes for other in log_sizes]
    return bool(max(distances) <= np.log1p(SAME_SIZE))
