"""What a table may not mean, in sentences: nothing is refused or changed for it, and the report begins with it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from slm.runtime.words import shortlist
from slm.scaling.tables.columns import SIZES, complete
from slm.scaling.tables.rows import ranked_by
from slm.scaling.tables.values import shown

MOST_PAIRED = 1000
"""Cells of a family that are compared with each other."""


def note_rising(frame: pd.DataFrame) -> list[str]:
    """Families whose result rises with N in most pairs of sizes of which the larger saw no fewer tokens."""
    target, size = ranked_by(frame), next(name for name in SIZES if complete(frame, name))
    families, counts = [], np.zeros(2, dtype=int)
    for family, rows in frame.groupby("family", sort=False):
        budget = rows["tokens"] if complete(frame, "tokens") else pd.Series(1.0, rows.index)
        cells = rows[target].groupby([rows[size], budget]).mean()
        cells = cells.iloc[np.linspace(0, len(cells) - 1, min(len(cells), MOST_PAIRED)).astype(int)]
        N, D = (cells.index.get_level_values(level).to_numpy(float) for level in (0, 1))
        pairs = (N[:, None] < 0.95 * N) & (D[:, None] <= 1.01 * D)
        rises = int((pairs & (cells.to_numpy()[:, None] < cells.to_numpy())).sum())
        if pairs.sum() >= 3 and rises > 2 / 3 * pairs.sum():
            families.append(family)
            counts += rises, int(pairs.sum())
    if not families:
        return []
    where = f"in {counts[0]} of {counts[1]} pairs of sizes of {shortlist(families, 3)}"
    return [
        f"The {target.replace('_', ' ')} rises with N, at no fewer tokens, {where}: laws of scaling fall, so their "
        "exponents mean little here; is it a score that is better when it is higher?"
    ]


def note_repeats(frame: pd.DataFrame) -> list[str]:
    """Two seeds do not end at the same loss to the last digit."""
    target = ranked_by(frame)
    repeated = frame.duplicated(["cell", target], keep=False)
    if not repeated.any():
        return []
    which = shortlist(frame.index[repeated])
    return [f"Suspicious: rows {which} have the settings and the {target} of another row to all digits."]


def note_copies(frame: pd.DataFrame, written: str) -> list[str]:
    """Two families do not reach the same result to all of four and more decimals, unless there are many runs."""
    values = frame[written].dropna()
    text = values.map(lambda value: np.format_float_positional(value, trim="-").partition(".")[2])
    values = values[text.str.len() >= 4]
    families, lasts = frame["family"][values.index], text.str.len().max()
    rows = values.index[families.groupby(values).transform("nunique") > 1]
    if not len(rows):
        return []
    copies = values[rows]
    first: dict[float, int] = {}
    for row, value in copies.items():
        first.setdefault(value, row)
    other = next(row for row in rows if families[row] != families[first[copies[row]]])
    pairs = (len(values) ** 2 - (families.value_counts() ** 2).sum()) / 2
    spread = float(values.max() - values.min())
    by_chance = pairs * 10.0**-lasts / spread if spread else 0.0
    if stats.poisson.sf(copies.nunique() - 1, by_chance) >= 0.01:
        return []
    return [
        f"Suspicious: {len(rows)} rows have the {written} of a row of another family to all digits, such as rows "
        f"{first[copies[other]]} and {other} ({families[first[copies[other]]]} and {families[other]}: "
        f"{shown(float(copies[other]))})."
    ]
