"""Values that agree to a tolerance, compared between families: the arithmetic of the audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling.matching import SAME_SIZE
from slm.scaling.tables.columns import SIZES

NO_LEVEL = -1
MOST_LISTED = 24


def sizes_of(frame: pd.DataFrame) -> list[str]:
    """The columns of size that every row has; `ValueError` if there is none."""
    there = [name for name in SIZES if name in frame and not frame[name].isna().any()]
    if not there:
        raise ValueError(f"an audit needs a size of every run: {' or '.join(SIZES)}")
    return there


def size_of(frame: pd.DataFrame) -> str:
    """The first column of size in which families have the same sizes, else the first that every row has."""
    there = sizes_of(frame)
    return next((name for name in there if same_sizes(frame, name)), there[0])


def values_of(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series | None:
    """The first of these columns that has a value in every row."""
    for name in columns:
        if name in frame and not frame[name].isna().any():
            return frame[name]
    return None


def by_family(frame: pd.DataFrame, values: pd.Series) -> dict[str, list[Any]]:
    """The different values of each family, sorted, as plain Python values; of many numbers, their range."""
    groups = values.groupby(frame["family"], sort=False)
    return {str(family): _shortened(sorted(set(rows.tolist()), key=_order)) for family, rows in groups}


def _shortened(values: list[Any]) -> list[Any]:
    if len(values) <= MOST_LISTED or not all(isinstance(value, (int, float)) for value in values):
        return values
    return [f"{len(values)} values from {values[0]:.6g} to {values[-1]:.6g}"]


def _order(value: Any) -> tuple[bool, Any]:
    number = isinstance(value, (int, float))
    return (not number, value if number else str(value))


def levels(values: pd.Series, tolerance: float) -> pd.Series:
    """A number for each group of values that agree to `tolerance`; -1 where neighbours do and the ends do not.

    Text agrees if it is equal. Groups are split where sorted values grow by more than the tolerance.
    """
    if not pd.api.types.is_numeric_dtype(values):
        return pd.Series(pd.factorize(values)[0], values.index)
    ordered = values.astype(float).sort_values(kind="stable")
    groups = (ordered / ordered.shift(1) > 1 + tolerance).cumsum()
    spread = ordered.groupby(groups).transform("max") / ordered.groupby(groups).transform("min")
    return groups.where(spread <= 1 + 2 * tolerance, NO_LEVEL).reindex(values.index)


def size_groups(frame: pd.DataFrame) -> pd.Series:
    """Sizes that agree to 10%."""
    return levels(frame[size_of(frame)], SAME_SIZE)


def same_sizes(frame: pd.DataFrame, size: str) -> bool:
    """Whether each size (the column of that name) of a family is, to 10%, a size of every other."""
    logs = [np.log(rows[size].to_numpy(float)) for _, rows in frame.groupby("family")]
    near = np.log1p(SAME_SIZE)
    return all(np.abs(a[:, None] - b[None, :]).min(1).max() <= near for a in logs for b in logs)


def same_levels(frame: pd.DataFrame, found: pd.Series, *, per_size: bool) -> bool:
    """Whether all families have the same levels; `per_size`: at each size, where the families have the same sizes."""
    if (found == NO_LEVEL).any():
        return False
    sizes = size_groups(frame)
    if not per_size or not _equal_sets(frame["family"], sizes) or (sizes == NO_LEVEL).any():
        return _equal_sets(frame["family"], found)
    return _equal_sets(frame["family"], sizes * (int(np.max(found)) + 1) + found)


def _equal_sets(family: pd.Series, labels: pd.Series) -> bool:
    return len({frozenset(rows) for _, rows in labels.groupby(family)}) == 1
