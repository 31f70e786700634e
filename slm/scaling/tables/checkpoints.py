"""Rows of a table without `run_id` that look like checkpoints of one run, each of which counts as a run."""

from __future__ import annotations

import pandas as pd

from slm.scaling.tables.columns import CELL, Columns, complete, groups
from slm.scaling.tables.values import shown

STEP = ("step", "_step", "global_step", "checkpoint", "checkpoint_step", "ckpt", "iteration", "iter", "epoch")
"""Columns that tell how far a run had come."""
RUN = ("run", "run_name", "run_number", "id", "wandb_id", "experiment", "exp")
"""Columns that may name the run that a row is of."""


def note_checkpoints(frame: pd.DataFrame, columns: Columns) -> list[str]:
    """Rows that look like checkpoints of one run in a table without `run_id`, where each counts as a run."""
    if "run_id" in frame:
        return []
    step = next((name for name in frame if _plain(name) in STEP), None)
    steps = step or next((name for name in frame if _plain(name) in ("steps", "iterations", "epochs")), None)
    names = RUN if steps is None else (*RUN, "name")
    for run in (name for name in frame if _plain(name) in names):
        found = _runs(frame, [run], steps)
        if found is not None and found[0].nunique() > 1:
            of, order = found
            example = f"{shown(frame[run][of.index[0]])} has {int((of == of.iloc[0]).sum())} of {len(frame)} rows"
            return [
                f"Each row counts as a run, and by {run} and {order} they look like checkpoints of {of.nunique()} runs "
                f"({example}): if so, columns.run_id={columns.own.get(run, run)} makes the rows of a run one cluster; "
                "without it intervals are too narrow."
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


def _plain(name: object) -> str:
    return str(name).strip().lower().replace(" ", "_").rsplit("/", 1)[-1]


def _runs(frame: pd.DataFrame, by: list[str], step: str | None) -> tuple[pd.Series, str] | None:
    """For the rows of runs of several checkpoints, which run, and the column that orders them; None if most are not.

    A run is of one family, size and setting of each kind; its tokens do not fall with its step.
    """
    moving = ("tokens", "steps", "budget", "isoflop", step)
    run = groups(frame, [*(name for name in CELL if name not in moving), *by])
    named = groups(frame, by)
    if by != ["seed"] and run.groupby(named).nunique().max() > 1:
        return None
    order = step if step is not None and pd.api.types.is_numeric_dtype(frame[step]) else "tokens"
    if order not in frame:
        return None
    rows = frame.assign(run_=run).sort_values(["run_", order], kind="stable")
    tokens = rows["tokens"] if complete(frame, "tokens") else pd.Series(1.0, rows.index)
    grows = (rows[order].groupby(rows["run_"]).diff() > 0) & (tokens.groupby(rows["run_"]).diff() >= 0)
    first = ~rows["run_"].duplicated()
    good = (grows | first).groupby(rows["run_"]).transform("all") & (rows.groupby("run_")["run_"].transform("size") > 1)
    found = run[good.reindex(run.index)]
    return (found, order) if 2 * len(found) > len(frame) else None
