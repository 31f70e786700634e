"""Select the rows of a table. Each function leaves some rows out, and adds a note that names them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import integrate, stats

from slm.runtime.words import count_with_was, shortened, shortlist
from slm.scaling.tables.columns import CELL, SIZES, TARGETS, Columns, convert_types, group_numbers, is_complete, run_ids
from slm.scaling.tables.values import COMPLETED, format_value, is_blank, parse_booleans, parse_number, status_word

TUNED_SETTINGS = (
    "lr", "learning_rate", "peak_lr", "max_lr", "batch_tokens", "batch_size", "batch_seqs", "global_batch_size",
    "weight_decay", "wd", "decay", "warmup", "warmup_steps", "warmup_fraction", "decay_steps", "decay_fraction",
    "beta1", "beta2", "adam_beta1", "adam_beta2", "momentum", "dropout", "init_std", "grad_clip", "z_loss",
)  # fmt: skip
"""Settings that people tune: they try several values and keep the best."""
NOT_SETTINGS = (*SIZES, *TARGETS, "family", "tokens", "flops", "seed", "run_id", "trunk", "status", "budget", "isoflop")
DIVERGED_RATIO = 1.5
"""A run has diverged at this multiple of the loss at a lower learning rate: if training works, losses differ less."""


def select_rows(raw: pd.DataFrame, where: str | None, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """The rows for which the pandas query `where` is true; `ValueError` if it fails or keeps no row."""
    if where is None or not where.strip():
        return raw
    query_text, columns_text = f"where={shortened(where, 200)}", f"its columns are {shortlist(raw.columns, 12)}"
    frame = convert_types(raw)
    if re.search(r"""(["'])(true|false)\1""", where, re.IGNORECASE):
        # The query quotes "true" or "false", so it must see booleans as the text of the file.
        booleans = [name for name in frame if parse_booleans(raw[name]) is not None]
        frame = frame.assign(**{name: raw[name] for name in booleans})
    try:
        kept = frame.eval(where, engine="python")
    except Exception as error:  # a query can go wrong in every way that Python can
        reason = shortened(error, 120) or type(error).__name__
        raise ValueError(f"{query_text} does not work on {columns.table}: {reason}; {columns_text}") from None
    if not isinstance(kept, pd.Series) or not all(isinstance(v, (bool, np.bool_)) or is_blank(v) for v in kept):
        raise ValueError(f"{query_text} must be a condition that is true or false for a row, such as: tokens > 1e9")
    kept = kept.map(_is_true).astype(bool)
    if not kept.any():
        raise ValueError(f"{query_text} leaves no row of {columns.table}; {columns_text}")
    if not kept.all():
        notes.append(f"{int(kept.sum())} of {len(raw)} rows were kept: those where {shortened(where, 200)}.")
    return raw[kept]


def _is_true(value: Any) -> bool:
    return not is_blank(value) and bool(value)


def keep_completed(raw: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """The rows whose status is a word for a complete run; all rows of a table without `status`."""
    if "status" not in raw:
        return raw
    status = raw["status"].map(status_word)
    incomplete = status[~status.isin(COMPLETED)]
    if len(incomplete) == len(raw):
        statuses = shortlist(sorted(set(incomplete)))
        raise ValueError(f"{columns.table} has no row whose status is completed: the statuses are {statuses}")
    if len(incomplete):
        reasons = []
        for word, rows in incomplete.groupby(incomplete, sort=False):
            noun = "row" if len(rows) == 1 else "rows"
            reasons.append(f"{len(rows)} {shortened(word, 30)} ({noun} {shortlist(rows.index)})")
        which = shortlist(reasons, 3, max_characters=90)
        notes.append(f"{count_with_was(len(incomplete), 'row')} left out because the run did not complete: {which}.")
    synonyms = sorted(set(status) - set(incomplete) - {"completed"})
    if synonyms:
        notes.append(f"The status {' and '.join(synonyms)} was taken to mean completed.")
    return raw[status.isin(COMPLETED)]


def drop_duplicates(raw: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The rows that differ, in some column, from every row above them."""
    is_repeat = group_numbers(raw, list(raw.columns)).duplicated()
    if is_repeat.any():
        left_out = count_with_was(int(is_repeat.sum()), "row")
        which = shortlist(raw.index[is_repeat])
        notes.append(f"{left_out} left out as exact duplicates of rows above them: {which}.")
    return raw[~is_repeat]


def rows_not_diverged(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.Index:
    """The rows of runs that did not diverge, according to a column `diverged` or else to their results.

    A run diverged if its loss is `DIVERGED_RATIO` times that of a run that differs only in a lower `lr`, or if its
    result in the file (`raw`) is `nan` or `inf` and the table has statuses.
    """
    result = _results(frame)
    if "diverged" in frame and all(value in (True, False) or is_blank(value) for value in frame["diverged"]):
        out = frame["diverged"].map(_is_true).astype(bool)
        why = f"the column {columns.original_name('diverged')} says so"
    else:
        out = _far_above_lower_rates(frame, result) | _no_finite_result(raw)
        why = (
            f"a loss that is not finite, or {DIVERGED_RATIO:g} times that of a lower lr at the same size and tokens; "
            "to keep them, add a column diverged that is false for them"
        )
    if out.all():
        raise ValueError(f"all runs of {columns.table} diverged: {why}")
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
    """Which rows have `DIVERGED_RATIO` times the result of a row that differs only in a lower `lr`."""
    out = pd.Series(False, frame.index)
    if "lr" not in frame:
        return out
    setting = group_numbers(frame, [name for name in CELL if name != "lr"])
    is_suspect = result >= DIVERGED_RATIO * result.groupby(setting).transform("min")
    has_suspect = is_suspect.groupby(setting).transform("any")
    for _, rows in result[has_suspect].groupby(setting):
        rates = frame.loc[rows.index, "lr"]
        lowest_at_lower_rates = rows.groupby(rates).min().cummin().shift(1)
        out[rows.index] = rows >= DIVERGED_RATIO * rates.map(lowest_at_lower_rates)
    return out


def _no_finite_result(raw: pd.DataFrame) -> pd.Series:
    """Which rows have `nan` or `inf` as a result in the file; none in a table without `status`."""

    def is_nan_or_infinite(value: Any) -> bool:
        return (isinstance(value, str) and value.strip().lower() == "nan") or math.isinf(parse_number(value) or 0.0)

    names = [name for name in TARGETS if name in raw] if "status" in raw else []
    return raw[names].map(is_nan_or_infinite).any(axis=1) if names else pd.Series(False, raw.index)


def ranking_target(frame: pd.DataFrame) -> str:
    """The column by which rows are ranked."""
    return "loss" if is_complete(frame, "loss") else "bits_per_byte"


def drop_worst_rows(frame: pd.DataFrame, drop_worst: int, notes: list[str]) -> pd.DataFrame:
    """All rows except the `drop_worst` rows with the highest results; `ValueError` if none would be left."""
    if not isinstance(drop_worst, int) or isinstance(drop_worst, bool) or not 0 <= drop_worst < len(frame):
        raise ValueError(f"drop_worst={drop_worst} must be a whole number from 0 to {len(frame) - 1}")
    target = ranking_target(frame)
    worst = frame[target].sort_values(ascending=False, kind="stable").head(drop_worst)
    if drop_worst:
        which = shortlist(f"{row} ({format_value(float(value))})" for row, value in worst.items())
        notes.append(f"drop_worst={drop_worst} left out the rows with the highest {target}: {which}.")
    return frame.drop(index=worst.index)


def keep_best(frame: pd.DataFrame, names: Sequence[str], columns: Columns, notes: list[str]) -> pd.DataFrame:
    """Of rows that differ only in the columns `names`, keep the setting with the lowest result, averaged over seeds.

    Runs with checkpoints are compared by their last rows, and all rows of the best run are kept. Raises `ValueError`
    for a name that is not a column or not a setting.
    """
    canonical = {original: name for name, original in columns.original.items()}
    names = [canonical.get(name, name) for name in names]
    for name in names:
        if name not in frame:
            existing = shortlist(frame.columns, 12)
            raise ValueError(f"best_of={name}: {columns.table} has no such column; it has {existing}")
        if name in NOT_SETTINGS:
            raise ValueError(f"best_of={name} must be a setting of which several values were tried, such as lr")
    if not names:
        return frame
    run = run_ids(frame, "run_id")
    ordered = frame.sort_values("tokens", kind="stable") if "tokens" in frame else frame
    is_last = ~run[ordered.index].duplicated(keep="last")
    last_rows = frame.loc[ordered.index[is_last]].sort_index()
    group, setting = group_numbers(last_rows, columns_held_fixed(names)), group_numbers(last_rows, names)
    means = last_rows[ranking_target(frame)].groupby([group, setting]).mean()
    tried = means.groupby(level=0).size()
    max_tried, best_of = int(tried.max()), ",".join(names)
    if max_tried == 1:
        notes.append(f"best_of={best_of} had nothing to choose from: no rows differ only in this setting.")
        return frame
    best = set(means.groupby(level=0).idxmin())
    is_best = [pair in best for pair in zip(group, setting, strict=True)]
    kept = frame[run.isin(run[last_rows.index[is_best]])]
    tried_text, bias_text = f"{max_tried}", ""
    if tried.nunique() > 1:
        family_of_group = last_rows["family"].groupby(group).first()
        spans = tried.groupby(family_of_group, sort=False).agg(["min", "max"])
        texts = [f"{name} {low} to {high}" if low < high else f"{name} {low}" for name, low, high in spans.itertuples()]
        tried_text, bias_text = shortlist(texts, 4), ", and families that tried more values gain more"
    notes += [
        f"best_of={best_of} kept {len(kept)} of {len(frame)} rows, the best at each family, size and budget "
        f"({tried_text} values tried).",
        f"The best of several noisy runs is low by luck: by up to {expected_luck(max_tried):.2f} times the scatter "
        f"between seeds for the best of {max_tried}{bias_text}.",
    ]
    return kept


def columns_held_fixed(names: Sequence[str]) -> list[str]:
    """The columns in which rows must agree if only `names` may differ."""
    fixed = [name for name in dict.fromkeys((*CELL, *TUNED_SETTINGS)) if name not in names]
    if any("batch" in name for name in names):  # other columns of the batch size, and numbers of steps, change with it
        fixed = [name for name in fixed if "batch" not in name and not name.endswith("steps")]
    return fixed


def expected_luck(tried: int) -> float:
    """How many standard deviations the lowest of `tried` independent normal values lies below their mean on average."""
    norm = stats.norm
    return float(integrate.quad(lambda x: x * tried * norm.pdf(x) * norm.cdf(x) ** (tried - 1), -10, 10)[0])
