"""Sentences on what may be wrong with a table. Nothing is refused or changed; the report begins with them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from slm.runtime.words import shortlist
from slm.scaling.tables.columns import CELL, SIZES, Columns, first_complete, group_numbers, is_complete
from slm.scaling.tables.filters import TUNED_SETTINGS, columns_held_fixed, luck, ranking_target
from slm.scaling.tables.values import format_value

MAX_PAIRED_CELLS = 1000
"""Cells of a family that are compared with each other."""
STEP_COLUMNS = ("step", "_step", "global_step", "checkpoint", "checkpoint_step", "ckpt", "iteration", "iter", "epoch")
"""Columns that may hold the training step at which a row was measured."""
RUN_COLUMNS = ("run", "run_name", "run_number", "id", "wandb_id", "experiment", "exp")
"""Columns that may name the run of a row."""
SMALL_TABLE, DECIMALS = 50, {True: 4, False: 6}
"""Decimals to which two families share no result by chance, in tables of at most 50 rows and in larger ones. Of
simulated honest tables (losses spread over 1 nat) 5% of those of 50 rows share one to 4 decimals, and 1% of those of
200 rows one to 6 decimals; 62% of those of 200 rows share one to 4 decimals."""


def note_rising(frame: pd.DataFrame) -> list[str]:
    """A sentence on families whose result rises with N in most pairs of sizes, the larger one with no fewer tokens."""
    target, size = ranking_target(frame), first_complete(frame, SIZES)
    families, counts = [], np.zeros(2, dtype=int)
    for family, rows in frame.groupby("family", sort=False):
        budget = rows["tokens"] if is_complete(frame, "tokens") else pd.Series(1.0, rows.index)
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
        f"The {target.replace('_', ' ')} rises with N, at no fewer tokens, {where}: scaling laws fall, so their "
        "exponents mean little here; is it a score that is better when it is higher?"
    ]


def note_grids(frame: pd.DataFrame, columns: Columns) -> list[str]:
    """A sentence if most sizes and budgets have runs with several values of a setting; it suggests `best_of`."""
    tried = [name for name in TUNED_SETTINGS if name in frame and pd.api.types.is_numeric_dtype(frame[name])]
    group = group_numbers(frame, columns_held_fixed(tried))
    counts = {name: frame[name].groupby(group).nunique() for name in tried}
    grids = [name for name, values in counts.items() if 2 * (values > 1).sum() > len(values)]
    if not grids:
        return []
    most = [f"{int(counts[name].max())} values of {columns.original_name(name)}" for name in grids]
    setting = grids[0] if len(grids) == 1 else f"[{','.join(grids)}]"
    k = int(group_numbers(frame, grids).groupby(group).nunique().max())
    return [
        f"Runs of one size and budget differ in a setting (up to {shortlist(most, 3)}), so laws describe their "
        f"average: best_of={setting} keeps the best of each, which the luck of {k} tries makes low by up to "
        f"{luck(k):.2f} times the scatter between seeds."
    ]


def note_repeats(frame: pd.DataFrame, written: str) -> list[str]:
    """Sentences on rows of one cell, or of two families, whose results agree to all digits.

    `written` is a result that stands in the file.
    """
    target, notes = ranking_target(frame), []
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
            f"{first} and {other} ({family[first]} and {family[other]}: {format_value(float(copies[first]))})."
        )
    return notes


def note_checkpoints(frame: pd.DataFrame, columns: Columns) -> list[str]:
    """A sentence on rows that look like checkpoints of one run in a table without `run_id`, where each is a run."""
    if "run_id" in frame:
        return []
    plain = {name: str(name).strip().lower().replace(" ", "_").rsplit("/", 1)[-1] for name in frame}
    step = next((name for name in frame if plain[name] in STEP_COLUMNS), None)
    steps = step or next((name for name in frame if plain[name] in ("steps", "iterations", "epochs")), None)
    for run in (name for name in frame if plain[name] in (RUN_COLUMNS if steps is None else (*RUN_COLUMNS, "name"))):
        checkpoints = _checkpointed_runs(frame, [run], steps)
        if checkpoints is not None and checkpoints[0].nunique() > 1:
            runs, order = checkpoints
            first, count = format_value(frame[run][runs.index[0]]), int((runs == runs.iloc[0]).sum())
            example = f"{first} has {count} of {len(frame)} rows"
            return [
                f"Each row counts as a run, and by {run} and {order} they look like checkpoints of {runs.nunique()} "
                f"runs ({example}): if so, columns.run_id={columns.original_name(run)} makes the rows of a run one "
                "cluster; without it intervals are too narrow."
            ]
        if frame[run].is_unique:
            return []
    if step is None or (checkpoints := _checkpointed_runs(frame, ["seed"], step)) is None:
        return []
    ends = frame[step].groupby(checkpoints[0]).max()
    keep = f", or keep only the last by where='{step} == {format_value(ends.iloc[0])}'" if ends.nunique() == 1 else ""
    return [
        f"Each row counts as a run, and rows of one family and size differ in {step}, as checkpoints of {len(ends)} "
        f"runs do: if so, name the column of the run, as in columns.run_id=NAME{keep}; without it intervals are too "
        "narrow."
    ]


def _checkpointed_runs(frame: pd.DataFrame, by: list[str], step: str | None) -> tuple[pd.Series, str] | None:
    """The run of each row that is one of several checkpoints, and the column that orders them.

    None if most rows are not checkpoints. The rows of a run agree in family, size and settings; its tokens do not fall
    as its step rises.
    """
    moving = ("tokens", "steps", "budget", "isoflop", step)
    run = group_numbers(frame, [*(name for name in CELL if name not in moving), *by])
    if by != ["seed"] and run.groupby(group_numbers(frame, by)).nunique().max() > 1:
        return None
    order = step if step is not None and pd.api.types.is_numeric_dtype(frame[step]) else "tokens"
    if order not in frame:
        return None
    rows = frame.assign(run_=run).sort_values(["run_", order], kind="stable")
    by_run = rows.groupby("run_")
    grows = by_run[order].diff() > 0
    if is_complete(frame, "tokens"):
        grows &= by_run["tokens"].diff() >= 0
    is_ordered = (grows | ~rows["run_"].duplicated()).groupby(rows["run_"]).transform("all")
    checkpoints = run[(is_ordered & (by_run["run_"].transform("size") > 1)).reindex(run.index)]
    return (checkpoints, order) if 2 * len(checkpoints) > len(frame) else None
