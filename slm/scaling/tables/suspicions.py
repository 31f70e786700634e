"""Note what may be wrong with a table. The report begins with these sentences; no row is refused or changed."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

import numpy as np
import pandas as pd

from slm.runtime.words import shortlist
from slm.scaling import published
from slm.scaling.tables.columns import (
    CANONICAL_NAMES,
    CELL,
    COUNTS,
    SIZES,
    Columns,
    first_complete,
    group_numbers,
    is_complete,
    normalised_header,
)
from slm.scaling.tables.filters import TUNED_SETTINGS, columns_held_fixed, expected_luck, ranking_target
from slm.scaling.tables.values import format_value

MAX_PAIRED_CELLS = 1000  # of a family: every two of them are compared
STEP_COLUMNS = ("step", "_step", "global_step", "checkpoint", "checkpoint_step", "ckpt", "iteration", "iter", "epoch")
"""Columns that may hold the training step at which a row was measured."""
RUN_COLUMNS = ("run", "run_name", "run_number", "id", "wandb_id", "experiment", "exp")  # may name the run of a row
MIN_SIMILARITY = 0.8  # of a header and the name that it may be a misspelling of
SMALL_TABLE = 50  # rows
MIN_DECIMALS_SMALL, MIN_DECIMALS_LARGE = 4, 6  # in small tables and in larger ones
"""Results of two families that agree to so many decimals were probably copied. In simulations without copies (losses
spread over 1 nat), 4 decimals agree in 5% of tables of 50 rows, but in 62% of tables of 200 rows; 6 decimals in 1%."""


def similar_names(names: Iterable[str]) -> list[list[str]]:
    """The names that differ only in case, spaces, hyphens and underscores, in groups of two or more."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        key = re.sub(r"(?<!\d)[\s_-]+|[\s_-]+(?!\d)", "", name)  # gpt-1-2 is not gpt-12
        groups.setdefault(key.casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def note_unread_columns(raw: pd.DataFrame, read: Collection[str] | None, source: str) -> tuple[list[str], list[str]]:
    """`unread_columns` of a table of runs whose other readers read `read`; empty if that is None or slm ships it."""
    if read is None or source == published.NAME:
        return [], []
    names = (*CANONICAL_NAMES, *COUNTS, *TUNED_SETTINGS, "name", "diverged", "cluster", "cell")
    others = (*STEP_COLUMNS, *RUN_COLUMNS)
    is_read = [name in read or name in names or normalised_header(name) in others for name in raw]
    headers = [str(name) for name in raw.columns[~np.array(is_read)] if not str(name).startswith("table_")]
    return unread_columns(headers, [name for name in CANONICAL_NAMES if name not in raw], source)


def unread_columns(headers: Iterable[str], absent: Collection[str], source: str) -> tuple[list[str], list[str]]:
    """Sentences on columns that nothing reads: misspellings of names `absent` from the file, and the others."""
    similar = {name: get_close_matches(normalised_header(name), absent, n=1, cutoff=MIN_SIMILARITY) for name in headers}
    misspelt = [
        f"Nothing reads the column {name} of {source}: did you mean {near[0]}?"
        for name, near in similar.items()
        if near
    ]
    other = [name for name, near in similar.items() if not near]
    names = f"{'column' if len(other) == 1 else 'columns'} {shortlist(other, 8)}"
    return misspelt, [f"Nothing reads the {names} of {source}."] if other else []


def note_similar_families(frame: pd.DataFrame) -> list[str]:
    """A sentence on each group of families that are probably one family with several spellings."""
    return [
        f"Are {' and '.join(group)} one family? They count as {len(group)}, because their names differ in case, "
        "spaces, hyphens or underscores: if they are one family, write one name in the table, or leave rows out, as in "
        f"where='family != \"{group[-1]}\"'."
        for group in similar_names(frame["family"])
    ]


def note_rising_results(frame: pd.DataFrame) -> list[str]:
    """A sentence on families whose result mostly rises with N, in pairs whose larger model saw no fewer tokens."""
    target, size = ranking_target(frame), first_complete(frame, SIZES)
    families, num_rising, num_pairs = [], 0, 0
    for family, rows in frame.groupby("family", sort=False):
        budget = rows["tokens"] if is_complete(frame, "tokens") else pd.Series(1.0, rows.index)
        cell_means = rows[target].groupby([rows[size], budget]).mean()
        indices = np.linspace(0, len(cell_means) - 1, min(len(cell_means), MAX_PAIRED_CELLS)).astype(int)
        cells = cell_means.iloc[indices]
        N, D = (cells.index.get_level_values(level).to_numpy(float) for level in (0, 1))
        is_pair = (N[:, None] < 0.95 * N) & (D[:, None] <= 1.01 * D)  # [smaller model, larger model]
        is_rising = is_pair & (cells.to_numpy()[:, None] < cells.to_numpy())
        if is_pair.sum() >= 3 and is_rising.sum() > 2 / 3 * is_pair.sum():
            families.append(family)
            num_rising += int(is_rising.sum())
            num_pairs += int(is_pair.sum())
    if not families:
        return []
    where = f"in {num_rising} of {num_pairs} pairs of sizes of {shortlist(families, 3)}"
    return [
        f"The {target.replace('_', ' ')} rises with N, at no fewer tokens, {where}: scaling laws fall, so their "
        "exponents mean little here; is it a score of which a higher value is better?"
    ]


def note_untuned_settings(frame: pd.DataFrame, columns: Columns) -> list[str]:
    """A sentence that suggests `best_of`, if most sizes and budgets have runs with several values of a setting."""
    settings = [name for name in TUNED_SETTINGS if name in frame and pd.api.types.is_numeric_dtype(frame[name])]
    group = group_numbers(frame, columns_held_fixed(settings))
    num_values = {name: frame[name].groupby(group).nunique() for name in settings}
    varied = [name for name, counts in num_values.items() if 2 * (counts > 1).sum() > len(counts)]
    if not varied:
        return []
    tried_texts = [f"{int(num_values[name].max())} values of {columns.original_name(name)}" for name in varied]
    best_of = varied[0] if len(varied) == 1 else f"[{','.join(varied)}]"
    max_tried = int(group_numbers(frame, varied).groupby(group).nunique().max())
    return [
        f"Runs of one size and budget differ in a setting (up to {shortlist(tried_texts, 3)}), so laws describe their "
        f"average: best_of={best_of} keeps the best run of each. The best of {max_tried} is low by luck, by up to "
        f"{expected_luck(max_tried):.2f} times the scatter between seeds."
    ]


def note_repeated_results(frame: pd.DataFrame, given_target: str) -> list[str]:
    """Sentences on rows of one cell, or of two families, whose results agree to all digits.

    `given_target` is a target in the file: the digits of a computed target would not show the precision of the data.
    """
    target, notes = ranking_target(frame), []
    repeated = frame.index[frame.duplicated(["cell", target], keep=False)]
    if len(repeated):  # two seeds do not end at the same loss to the last digit
        notes.append(
            f"Suspicious: rows {shortlist(repeated)} have the settings and, to all digits, the {target} of another row."
        )
    results = frame[given_target].dropna()
    decimals = results.map(lambda value: len(np.format_float_positional(value, trim="-").partition(".")[2]))
    min_decimals = MIN_DECIMALS_SMALL if len(frame) <= SMALL_TABLE else MIN_DECIMALS_LARGE
    # Zeros at the end are not printed, so one result with enough decimals shows the precision of the others.
    is_precise = decimals.max() >= min_decimals
    results = results[(decimals >= MIN_DECIMALS_SMALL) & is_precise]
    family = frame["family"][results.index]
    copies = results[family.groupby(results).transform("nunique") > 1]
    if len(copies):
        first = copies.index[0]
        copies_of_first = copies.index[copies == copies[first]]
        other = next(row for row in copies_of_first if family[row] != family[first])
        notes.append(
            f"Suspicious: {len(copies)} rows have the {given_target} of a row of another family to all digits, such as "
            f"rows {first} and {other} ({family[first]} and {family[other]}: {format_value(float(copies[first]))})."
        )
    return notes


def note_checkpoints(frame: pd.DataFrame, columns: Columns) -> list[str]:
    """A sentence on rows that look like checkpoints of one run in a table without `run_id`, where each row is a run."""
    if "run_id" in frame:
        return []
    normalised = {name: str(name).strip().lower().replace(" ", "_").rsplit("/", 1)[-1] for name in frame}
    step_column = next((name for name in frame if normalised[name] in STEP_COLUMNS), None)
    # Columns with these names usually hold the length of a run, but may hold the step of a checkpoint.
    length_column = next((name for name in frame if normalised[name] in ("steps", "iterations", "epochs")), None)
    order_column = step_column or length_column
    run_columns = RUN_COLUMNS if order_column is None else (*RUN_COLUMNS, "name")
    for run_column in (name for name in frame if normalised[name] in run_columns):
        checkpointed = _checkpointed_runs(frame, [run_column], order_column)
        if checkpointed is not None and checkpointed[0].nunique() > 1:
            runs, order = checkpointed
            first_run, num_rows = format_value(frame[run_column][runs.index[0]]), int((runs == runs.iloc[0]).sum())
            return [
                f"Each row counts as a run, and by {run_column} and {order} the rows look like checkpoints of "
                f"{runs.nunique()} runs ({first_run} has {num_rows} of {len(frame)} rows): if so, "
                f"columns.run_id={columns.original_name(run_column)} makes the rows of a run one cluster; without it "
                "intervals are too narrow."
            ]
        if frame[run_column].is_unique:  # each row is a run of its own
            return []
    checkpointed = None if step_column is None else _checkpointed_runs(frame, ["seed"], step_column)
    if checkpointed is None:
        return []
    run_of_row, _ = checkpointed
    last_steps = frame[step_column].groupby(run_of_row).max()
    condition = f"{step_column} == {format_value(last_steps.iloc[0])}"
    filter_hint = f", or keep only the last rows by where='{condition}'" if last_steps.nunique() == 1 else ""
    return [
        f"Each row counts as a run, and rows of one family and size differ in {step_column}, as checkpoints of "
        f"{len(last_steps)} runs do: if so, name the column of the run, as in columns.run_id=NAME{filter_hint}; "
        "without it intervals are too narrow."
    ]


def _checkpointed_runs(frame: pd.DataFrame, run_columns: list[str], step: str | None) -> tuple[pd.Series, str] | None:
    """Find rows that are one of several checkpoints of a run. Returns their runs and the column that orders them.

    None if at most half of the rows are checkpoints. Checkpoints of a run agree in `run_columns`, family, size and
    settings, and their tokens do not fall as `step` rises.
    """
    columns_of_checkpoint = ("tokens", "steps", "budget", "isoflop", step)  # may differ between checkpoints of a run
    run = group_numbers(frame, [*(name for name in CELL if name not in columns_of_checkpoint), *run_columns])
    runs_per_name = run.groupby(group_numbers(frame, run_columns)).nunique()
    if run_columns != ["seed"] and runs_per_name.max() > 1:  # rows with one name differ in settings: not one run
        return None
    order = step if step is not None and pd.api.types.is_numeric_dtype(frame[step]) else "tokens"
    if order not in frame:
        return None
    rows = frame.assign(run_=run).sort_values(["run_", order], kind="stable")
    by_run = rows.groupby("run_")
    is_later = by_run[order].diff() > 0
    if is_complete(frame, "tokens"):
        is_later &= by_run["tokens"].diff() >= 0
    is_ordered = (is_later | ~rows["run_"].duplicated()).groupby(rows["run_"]).transform("all")  # or is the first
    is_checkpoint = is_ordered & (by_run["run_"].transform("size") > 1)
    checkpoints = run[is_checkpoint.reindex(run.index)]
    return (checkpoints, order) if 2 * len(checkpoints) > len(frame) else None
