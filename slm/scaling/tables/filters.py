"""Which rows of a table are kept: each function here leaves some out, with a note that names them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import integrate, stats

from slm.runtime.words import count_with_was, shortened, shortlist
from slm.scaling.tables.columns import (
    CELL,
    SIZES,
    TARGETS,
    Columns,
    convert_types,
    group_numbers,
    is_complete,
    run_names,
)
from slm.scaling.tables.values import COMPLETED, format_value, is_blank, parse_booleans, parse_number, status_word

TUNED_SETTINGS = (
    *("lr", "learning_rate", "peak_lr", "max_lr", "batch_tokens", "batch_size", "batch_seqs", "global_batch_size"),
    *("weight_decay", "wd", "decay", "warmup", "warmup_steps", "warmup_fraction", "decay_steps", "decay_fraction"),
    *("beta1", "beta2", "adam_beta1", "adam_beta2", "momentum", "dropout", "init_std", "grad_clip", "z_loss"),
)
"""Columns of settings of which people try several values, to keep the best."""
NOT_SETTINGS = (*SIZES, *TARGETS, "family", "tokens", "flops", "seed", "run_id", "trunk", "status", "budget", "isoflop")
DIVERGED_RATIO = 1.5
"""A run has diverged at this multiple of the loss at a lower learning rate: no rate that trains costs so much."""


def select_rows(raw: pd.DataFrame, where: str | None, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """The rows for which the pandas query `where` is true; `ValueError` if it fails or keeps no row."""
    if where is None or not where.strip():
        return raw
    query, names = f"where={shortened(where, 200)}", f"its columns are {shortlist(raw.columns, 12)}"
    frame = convert_types(raw)
    if re.search(r"""(["'])(true|false)\1""", where, re.IGNORECASE):  # the query compares with the file's text
        frame = frame.assign(**{name: raw[name] for name in frame if parse_booleans(raw[name]) is not None})
    try:
        kept = frame.eval(where, engine="python")
    except Exception as error:  # a query can go wrong in every way that Python can
        reason = shortened(error, 120) or type(error).__name__
        raise ValueError(f"{query} does not work on {columns.table}: {reason}; {names}") from None
    if not isinstance(kept, pd.Series) or not all(isinstance(v, (bool, np.bool_)) or is_blank(v) for v in kept):
        raise ValueError(f"{query} must be a condition that is true or false for a row, such as: tokens > 1e9")
    kept = kept.map(_is_true).astype(bool)
    if not kept.any():
        raise ValueError(f"{query} leaves no row of {columns.table}; {names}")
    if not kept.all():
        notes.append(f"Of {len(raw)} rows, the {int(kept.sum())} where {shortened(where, 200)} were kept.")
    return raw[kept]


def _is_true(value: Any) -> bool:
    return not is_blank(value) and bool(value)


def keep_completed(raw: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """The rows whose status is a word for a complete run; all rows of a table without `status`."""
    if "status" not in raw:
        return raw
    status = raw["status"].map(status_word)
    out = status[~status.isin(COMPLETED)]
    if len(out) == len(raw):
        statuses = shortlist(sorted(set(out)))
        raise ValueError(f"{columns.table} has no row whose status is completed: the statuses are {statuses}")
    if len(out):
        words = [
            f"{len(rows)} {shortened(word, 30)} (row{'s'[: len(rows) > 1]} {shortlist(rows.index)})"
            for word, rows in out.groupby(out, sort=False)
        ]
        reasons = shortlist(words, 3, max_characters=90)
        notes.append(f"{count_with_was(len(out), 'row')} left out whose run did not complete: {reasons}.")
    others = sorted(set(status) - set(out) - {"completed"})
    if others:
        notes.append(f"The status {' and '.join(others)} was taken for completed.")
    return raw[status.isin(COMPLETED)]


def drop_duplicates(raw: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The rows that differ, in some column, from every row above them."""
    again = group_numbers(raw, list(raw.columns)).duplicated()
    if again.any():
        which = shortlist(raw.index[again])
        notes.append(
            f"{count_with_was(int(again.sum()), 'row')} left out as exact duplicates of rows above them: {which}."
        )
    return raw[~again]


def rows_not_diverged(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.Index:
    """The rows of runs that did not diverge, by a column `diverged` or else by their results.

    A run diverged if its loss is `DIVERGED_RATIO` times that of a run that differs only in a lower `lr`, or if its
    result is written as `nan` or `inf` and its status says that it ended. `raw` is as written.
    """
    result = _results(frame)
    if "diverged" in frame and all(value in (True, False) or is_blank(value) for value in frame["diverged"]):
        out = frame["diverged"].map(_is_true).astype(bool)
        why = f"the column {columns.original_name('diverged')} says so"
    else:
        out = _far_above_lower_rates(frame, result) | _no_finite_result(raw)
        why = (
            f"a loss that is not finite, or {DIVERGED_RATIO:g} times that of a lower lr at the same size and tokens; "
            "a column diverged that says false keeps them"
        )
    if out.all():
        raise ValueError(f"{columns.table} has no run that did not diverge: {why}")
    if out.any():
        which = shortlist(f"{row} ({format_value(result[row])})" for row in out.index[out])
        notes.append(f"{count_with_was(int(out.sum()), 'row')} left out as diverged: {which} ({why}).")
    return frame.index[~out]


def _results(frame: pd.DataFrame) -> pd.Series:
    """The loss of each row, else the logarithm of its perplexity; bits per byte in tables without either."""
    unknown = pd.Series(math.nan, frame.index)
    if "loss" not in frame and "perplexity" not in frame:
        return frame.get("bits_per_byte", unknown)
    perplexity = frame.get("perplexity", unknown)
    return frame.get("loss", unknown).fillna(np.log(perplexity.where(perplexity > 1)))


def _far_above_lower_rates(frame: pd.DataFrame, result: pd.Series) -> pd.Series:
    out = pd.Series(False, frame.index)
    if "lr" not in frame:
        return out
    setting = group_numbers(frame, [name for name in CELL if name != "lr"])
    suspects = result >= DIVERGED_RATIO * result.groupby(setting).transform("min")
    for _, rows in result[setting.isin(setting[suspects])].groupby(setting):
        rates = frame.loc[rows.index, "lr"]
        # The lowest result at each rate and below, then at the rate before.
        lowest = rows.groupby(rates).min().cummin().shift(1)
        out[rows.index] = rows >= DIVERGED_RATIO * rates.map(lowest)
    return out


def _no_finite_result(raw: pd.DataFrame) -> pd.Series:
    """Which rows have a result that is written as `nan` or `inf`; none in a table without `status`."""

    def is_written(value: Any) -> bool:
        return (isinstance(value, str) and value.strip().lower() == "nan") or math.isinf(parse_number(value) or 0.0)

    names = [name for name in TARGETS if name in raw] if "status" in raw else []
    return raw[names].map(is_written).any(axis=1) if names else pd.Series(False, raw.index)


def ranking_target(frame: pd.DataFrame) -> str:
    """The result by which rows are better or worse."""
    return "loss" if is_complete(frame, "loss") else "bits_per_byte"


def drop_worst_rows(frame: pd.DataFrame, drop_worst: int, notes: list[str]) -> pd.DataFrame:
    """All rows but the `drop_worst` of the highest result; `ValueError` if none would be left."""
    if not isinstance(drop_worst, int) or isinstance(drop_worst, bool) or not 0 <= drop_worst < len(frame):
        raise ValueError(f"drop_worst={drop_worst} must be a whole number from 0 to {len(frame) - 1}")
    target = ranking_target(frame)
    worst = frame[target].sort_values(ascending=False, kind="stable").head(drop_worst)
    if drop_worst:
        which = shortlist(f"{row} ({format_value(float(value))})" for row, value in worst.items())
        notes.append(f"drop_worst={drop_worst} left out the rows of the highest {target}: {which}.")
    return frame.drop(index=worst.index)


def keep_best(frame: pd.DataFrame, names: Sequence[str], columns: Columns, notes: list[str]) -> pd.DataFrame:
    """Of the rows that differ only in the columns `names`, those of the lowest result, averaged over seeds.

    Of runs with checkpoints, the last rows are compared and all rows of the best run are kept. Raises `ValueError` for
    a name that is not a column or not a setting.
    """
    canonical = {original: name for name, original in columns.original.items()}
    names = [canonical.get(name, name) for name in names]
    for name in names:
        if name not in frame:
            there = shortlist(frame.columns, 12)
            raise ValueError(f"best_of={name}: {columns.table} has no such column; it has {there}")
        if name in NOT_SETTINGS:
            raise ValueError(f"best_of={name} must be a setting of which several values were tried, such as lr")
    if not names:
        return frame
    run = run_names(frame, "run_id")
    order = frame.sort_values("tokens", kind="stable") if "tokens" in frame else frame
    last = frame.loc[order.index[~run[order.index].duplicated(keep="last")]].sort_index()
    group, point = group_numbers(last, columns_held_fixed(names)), group_numbers(last, names)
    means = last[ranking_target(frame)].groupby([group, point]).mean()
    tried, setting = means.groupby(level=0).size(), ",".join(names)
    most = int(tried.max())
    if most == 1:
        notes.append(f"best_of={setting} had nothing to choose from: no rows differ only in it.")
        return frame
    best = set(means.groupby(level=0).idxmin())
    kept = frame[run.isin(run[last.index[[pair in best for pair in zip(group, point, strict=True)]]])]
    counts, gain = f"{most}", ""
    if tried.nunique() > 1:
        by_family = tried.groupby(last["family"].groupby(group).first(), sort=False)
        spans = {name: dict.fromkeys((str(count.min()), str(count.max()))) for name, count in by_family}
        counts = shortlist((f"{name} {' to '.join(span)}" for name, span in spans.items()), 4)
        gain = ", and families that tried more values gain more"
    notes += [
        f"best_of={setting} kept {len(kept)} of {len(frame)} rows, the best at each family, size and budget "
        f"({counts} tried).",
        f"The best of several noisy runs is low by luck: by up to {luck(most):.2f} times the scatter between seeds for "
        f"the best of {most}{gain}.",
    ]
    return kept


def columns_held_fixed(names: Sequence[str]) -> list[str]:
    """The columns that rows must agree in to differ only in `names`."""
    fixed = [name for name in dict.fromkeys((*CELL, *TUNED_SETTINGS)) if name not in names]
    if any("batch" in name for name in names):  # the other ways to write the batch, and what follows from it
        fixed = [name for name in fixed if "batch" not in name and not name.endswith("steps")]
    return fixed


def luck(tried: int) -> float:
    """By how many standard deviations the lowest of `tried` independent normal values lies below their mean."""
    norm = stats.norm
    return float(integrate.quad(lambda x: x * tried * norm.pdf(x) * norm.cdf(x) ** (tried - 1), -10, 10)[0])
