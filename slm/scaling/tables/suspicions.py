"""What may be wrong with a table, in sentences. Nothing is refused or changed for it; the report begins with it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from slm.runtime.words import shortlist
from slm.scaling.tables.columns import CELL, SIZES, Columns, complete, groups
from slm.scaling.tables.rows import ranked_by
from slm.scaling.tables.values import shown

MAX_PAIRED_CELLS = 1000
"""Cells of a family that are compared with each other."""
STEP = ("step", "_step", "global_step", "checkpoint", "checkpoint_step", "ckpt", "iteration", "iter", "epoch")
"""Columns that tell how far a run had come."""
RUN = ("run", "run_name", "run_number", "id", "wandb_id", "experiment", "exp")
"""Columns that may name the run of a row."""
SMALL_TABLE, DECIMALS = 50, {True: 4, False: 6}
"""Decimals to which two families share no result by chance, in tables of at most 50 rows and in larger ones. Of
simulated honest tables (losses spread over 1 nat) 5% of those of 50 rows share one to 4 decimals, and 1% of those of
200 rows one to 6 decimals; 62% of those of 200 rows share one to 4 decimals."""


def note_rising(frame: pd.DataFrame) -> list[str]:
    """Families whose result rises with N in most pairs of sizes of which the larger saw no fewer tokens."""
    target, size = ranked_by(frame), next(name for name in SIZES if complete(frame, name))
    families, counts = [], np.zeros(2, dtype=int)
    for family, rows in frame.groupby("family", sort=False):
        budget = rows["tokens"] if complete(frame, "tokens") else pd.Series(1.0, rows.index)
        cells = rows[target].groupby([rows[size], budget]).mean()
        cells = cells.iloc[np.linspace(0, len(cells) - 1, min(len(cells), MAX_PAIRED_CELLS)).astype(int)]
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


def note_repeats(frame: pd.DataFrame, written: str) -> list[str]:
    """Rows of one cell, or of two families, whose results agree to all digits. `written` is a result of the file."""
    target, notes = ranked_by(frame), []
    repeated = frame.index[frame.duplicated(["cell", target], keep=False)]
    if len(repeated):  # two seeds do not end at the same loss to the last digit
        notes.append(
            f"Suspicious: rows {shortlist(repeated)} have the settings and the {target} of another row to all digits."
        )
    values = frame[written].dropna()
    decimals = values.map(lambda value: len(np.format_float_positional(value, trim="-").partition(".")[2]))
    # The last digits of a value may be zeros, which are not written.
    values = values[(decimals >= min(DECIMALS.values())) & (decimals.max() >= DECIMALS[len(frame) <= SMALL_TABLE])]
    family = frame["family"][values.index]
    copies = values[family.groupby(values).transform("nunique") > 1]
    if len(copies):
        first = copies.index[0]
        other = next(row for row in copies.index if copies[row] == copies[first] and family[row] != family[first])
        notes.append(
            f"Suspicious: {len(copies)} rows have the {written} of a row of another family to all digits, such as rows "
            f"{first} and {other} ({family[first]} and {family[other]}: {shown(float(copies[first]))})."
        )
    return notes


def note_checkpoints(frame: pd.DataFrame, columns: Columns) -> list[str]:
    """Rows that look like checkpoints of one run in a table without `run_id`, where each counts as a run."""
    if "run_id" in frame:
        return []
    plain = {name: str(name).strip().lower().replace(" ", "_").rsplit("/", 1)[-1] for name in frame}
    step = next((name for name in frame if plain[name] in STEP), None)
    steps = step or next((name for name in frame if plain[name] in ("steps", "iterations", "epochs")), None)
    for run in (name for name in frame if plain[name] in (RUN if steps is None else (*RUN, "name"))):
        found = _runs(frame, [run], steps)
        if found is not None and found[0].nunique() > 1:
            runs, order = found
            example = f"{shown(frame[run][runs.index[0]])} has {int((runs == runs.iloc[0]).sum())} of {len(frame)} rows"
            return [
                f"Each row counts as a run, and by {run} and {order} they look like checkpoints of {runs.nunique()} "
                f"runs ({example}): if so, columns.run_id={columns.own.get(run, run)} makes the rows of a run one "
                "cluster; without it intervals are too narrow."
            ]
        if frame[run].is_unique:
            return []
    if step is None or (found := _runs(frame, ["seed"], step)) is None:
        return []
    ends = frame[step].groupby(found[0]).max()
    keep = f", or keep the last alone by where='{step} == {shown(ends.iloc[0])}'" if ends.nunique() == 1 else ""
    return [
        f"Each row counts as a run, and rows of one family and size differ in {step}, as checkpoints of {len(ends)} "
        f"runs do: if so, name the column of the run, as in columns.run_id=NAME{keep}; without it intervals are too "
        "narrow."
    ]


def _runs(frame: pd.DataFrame, by: list[str], step: str | None) -> tuple[pd.Series, str] | None:
    """The run of each row of runs with several checkpoints, and the column that orders them; None if most rows have no.

    A run is of one family, size and setting of each kind; its tokens do not fall with its step.
    """
    moving = ("tokens", "steps", "budget", "isoflop", step)
    run = groups(frame, [*(name for name in CELL if name not in moving), *by])
    if by != ["seed"] and run.groupby(groups(frame, by)).nunique().max() > 1:
        return None
    order = step if step is not None and pd.api.types.is_numeric_dtype(frame[step]) else "tokens"
    if order not in frame:
        return None
    rows = frame.assign(run_=run).sort_values(["run_", order], kind="stable")
    by_run = rows.groupby("run_")
    grows = by_run[order].diff() > 0
    if complete(frame, "tokens"):
        grows &= by_run["tokens"].diff() >= 0
    is_ordered = (grows | ~rows["run_"].duplicated()).groupby(rows["run_"]).transform("all")
    found = run[(is_ordered & (by_run["run_"].transform("size") > 1)).reindex(run.index)]
    return (found, order) if 2 * len(found) > len(frame) else None
