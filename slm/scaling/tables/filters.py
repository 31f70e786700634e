"""Select the rows of a table. Each function leaves some rows out, and adds a note that names them."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import integrate, stats

from slm.runtime.words import plural, shortened, shortlist
from slm.scaling.tables.columns import CELL, SIZES, TARGETS, Columns, convert_types, group_numbers, is_complete, run_ids
from slm.scaling.tables.values import COMPLETED, format_value, is_blank, parse_booleans, parse_number, status_word

TUNED_SETTINGS = (
    "lr", "learning_rate", "peak_lr", "max_lr", "batch_tokens", "batch_size", "batch_seqs", "global_batch_size",
    "weight_decay", "wd", "decay", "warmup", "warmup_steps", "warmup_fraction", "decay_steps", "decay_fraction",
    "beta1", "beta2", "adam_beta1", "adam_beta2", "momentum", "dropout", "init_std", "grad_clip", "z_loss",
)  # fmt: skip
"""Settings that people tune: they try several values and keep the best."""
NOT_SETTINGS = (*SIZES, *TARGETS, "family", "tokens", "flops", "seed", "run_id", "trunk", "status", "budget", "isoflop")
DIVERGED_RATIO = 1.5  # a run diverged if its loss is this many times that of a run with a lower learning rate


def select_rows(raw: pd.DataFrame, where: str | None, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """The rows for which the pandas query `where` is true; `ValueError` if it fails or keeps no row."""
    if where is None or not where.strip():
        return raw
    query_text = f"where={shortened(where, 200)}"
    columns_text = f"its columns are {shortlist(raw.columns, 12)}"
    frame = convert_types(raw)
    if re.search(r"""(["'])(true|false)\1""", where, re.IGNORECASE):
        # The query quotes "true" or "false", so boolean columns must stay text, as in the file.
        booleans = [name for name in frame if parse_booleans(raw[name]) is not None]
        frame = frame.assign(**{name: raw[name] for name in booleans})
    try:
        answers = frame.eval(where, engine="python")
    except Exception as error:  # a query can go wrong in every way that Python can
        reason = shortened(error, 120) or type(error).__name__
        raise ValueError(f"{query_text} does not work on {columns.table}: {reason}; {columns_text}") from None
    if not isinstance(answers, pd.Series) or not all(isinstance(v, (bool, np.bool_)) or is_blank(v) for v in answers):
        raise ValueError(f"{query_text} must be a condition that is true or false for a row, such as: tokens > 1e9")
    is_kept = answers.map(_is_true).astype(bool)
    if not is_kept.any():
        raise ValueError(f"{query_text} leaves no row of {columns.table}; {columns_text}")
    if not is_kept.all():
        notes.append(f"{int(is_kept.sum())} of {len(raw)} rows were kept: those where {shortened(where, 200)}.")
    return raw[is_kept]


def _is_true(value: Any) -> bool:
    return not is_blank(value) and bool(value)


def keep_completed(raw: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """The rows whose status is one of `COMPLETED`; all rows if the table has no `status`."""
    if "status" not in raw:
        return raw
    status = raw["status"].map(status_word)
    incomplete = status[~status.isin(COMPLETED)]
    if len(incomplete) == len(raw):
        statuses = shortlist(sorted(set(incomplete)))
        raise ValueError(f"{columns.table} has no row whose status is completed: the statuses are {statuses}")
    if len(incomplete):
        status_texts = []
        for word, rows in incomplete.groupby(incomplete, sort=False):
            noun = "row" if len(rows) == 1 else "rows"
            status_texts.append(f"{len(rows)} {shortened(word, 30)} ({noun} {shortlist(rows.index)})")
        which = shortlist(status_texts, 3, max_characters=90)
        left_out = plural(len(incomplete), "row was", "rows were")
        notes.append(f"{left_out} left out because the run did not complete: {which}.")
    synonyms = sorted(set(status) - set(incomplete) - {"completed"})
    if synonyms:
        notes.append(f"The status {' and '.join(synonyms)} was taken to mean completed.")
    return raw[status.isin(COMPLETED)]


def drop_duplicates(raw: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """All rows except exact copies of a row above them."""
    is_repeat = group_numbers(raw, list(raw.columns)).duplicated()
    if is_repeat.any():
        left_out = plural(int(is_repeat.sum()), "row was", "rows were")
        notes.append(f"{left_out} left out as exact duplicates of rows above them: {shortlist(raw.index[is_repeat])}.")
    return raw[~is_repeat]


def rows_not_diverged(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.Index:
    """The index of rows whose run did not diverge. If the table has a column `diverged` of true and false, it decides.

    Otherwise a run diverged if its loss is at least `DIVERGED_RATIO` times that of a run that differs only in a lower
    `lr`, or if the table has statuses and the result in the file (`raw`) is `nan` or `inf`.
    """
    result = _results(frame)
    if "diverged" in frame and all(value in (True, False) or is_blank(value) for value in frame["diverged"]):
        is_diverged = frame["diverged"].map(_is_true).astype(bool)
        reason = f"the column {columns.original_name('diverged')} says so"
    else:
        is_diverged = _is_far_above_lower_rates(frame, result) | _has_nan_or_infinite_result(raw)
        reason = (
            f"a loss that is not finite, or {DIVERGED_RATIO:g} times that of a lower lr at the same size and tokens; "
            "to keep them, add a column diverged that is false for them"
        )
    if is_diverged.all():
        raise ValueError(f"{columns.table} has only runs that diverged: {reason}")
    if is_diverged.any():
        which = shortlist(f"{row} ({format_value(result[row])})" for row in frame.index[is_diverged])
        left_out = plural(int(is_diverged.sum()), "row was", "rows were")
        notes.append(f"{left_out} left out as diverged: {which} ({reason}).")
    return frame.index[~is_diverged]


def _results(frame: pd.DataFrame) -> pd.Series:
    """The loss of each row, or the logarithm of its perplexity. In tables without either column, the bits per byte."""
    unknown = pd.Series(math.nan, frame.index)
    if "loss" not in frame and "perplexity" not in frame:
        return frame.get("bits_per_byte", unknown)
    perplexity = frame.get("perplexity", unknown)
    return frame.get("loss", unknown).fillna(np.log(perplexity.where(perplexity > 1)))


def _is_far_above_lower_rates(frame: pd.DataFrame, result: pd.Series) -> pd.Series:
    """Whether each row has `DIVERGED_RATIO` times the result of a row that differs only in a lower `lr`."""
    is_far_above = pd.Series(False, frame.index)
    if "lr" not in frame:
        return is_far_above
    setting = group_numbers(frame, [name for name in CELL if name != "lr"])
    is_suspect = result >= DIVERGED_RATIO * result.groupby(setting).transform("min")
    group_has_suspect = is_suspect.groupby(setting).transform("any")
    for _, group_result in result[group_has_suspect].groupby(setting):  # other groups do not need the slow loop
        rates = frame.loc[group_result.index, "lr"]
        # cummin gives the lowest result up to each rate, and shift moves it on to the next rate.
        lowest_at_lower_rates = group_result.groupby(rates).min().cummin().shift(1)
        is_far_above[group_result.index] = group_result >= DIVERGED_RATIO * rates.map(lowest_at_lower_rates)
    return is_far_above


def _has_nan_or_infinite_result(raw: pd.DataFrame) -> pd.Series:
    """Whether each row has a result `nan` or `inf`. All False without `status`: `nan` may then be a missing result."""

    def is_nan_or_infinite(value: Any) -> bool:
        return (isinstance(value, str) and value.strip().lower() == "nan") or math.isinf(parse_number(value) or 0.0)

    if "status" not in raw:
        return pd.Series(False, raw.index)
    return raw[[name for name in TARGETS if name in raw]].map(is_nan_or_infinite).any(axis=1)


def ranking_target(frame: pd.DataFrame) -> str:
    """The column by which rows are ranked."""
    return "loss" if is_complete(frame, "loss") else "bits_per_byte"


def _required_ranking_target(frame: pd.DataFrame, setting: str) -> str:
    target = ranking_target(frame)
    if target not in frame:
        raise ValueError(f"{setting} needs a column of loss, perplexity or bits_per_byte to rank rows by")
    return target


def drop_worst_rows(frame: pd.DataFrame, drop_worst: int, notes: list[str]) -> pd.DataFrame:
    """All rows except the `drop_worst` rows with the highest results; `ValueError` if none would be left."""
    if not isinstance(drop_worst, int) or isinstance(drop_worst, bool) or not 0 <= drop_worst < len(frame):
        raise ValueError(f"drop_worst={drop_worst} must be a whole number from 0 to {len(frame) - 1}")
    if not drop_worst:
        return frame
    target = _required_ranking_target(frame, f"drop_worst={drop_worst}")
    worst = frame[target].sort_values(ascending=False, kind="stable").head(drop_worst)
    which = shortlist(f"{row} ({format_value(float(value))})" for row, value in worst.items())
    notes.append(f"drop_worst={drop_worst} left out the rows with the highest {target}: {which}.")
    return frame.drop(index=worst.index)


def keep_best(frame: pd.DataFrame, names: Sequence[str], columns: Columns, notes: list[str]) -> pd.DataFrame:
    """Of rows that differ only in the columns `names`, keep the setting whose result, averaged over seeds, is lowest.

    Runs with checkpoints are compared by their last rows, and all rows of the best run are kept. Raises `ValueError`
    for a name that is not a column or not a setting.
    """
    canonical_name = {original: name for name, original in columns.original.items()}
    names = [canonical_name.get(name, name) for name in names]
    for name in names:
        if name not in frame:
            raise ValueError(
                f"best_of={name}: {columns.table} has no such column; it has {shortlist(frame.columns, 12)}"
            )
        if name in NOT_SETTINGS:
            raise ValueError(f"best_of={name} must be a setting of which several values were tried, such as lr")
    if not names:
        return frame
    run_of_row = run_ids(frame, "run_id")
    ordered = frame.sort_values("tokens", kind="stable") if "tokens" in frame else frame
    is_before_last = run_of_row[ordered.index].duplicated(keep="last")
    last_rows = frame.loc[ordered.index[~is_before_last]].sort_index()  # the row of each run with the most tokens
    group = group_numbers(last_rows, columns_held_fixed(names))
    setting = group_numbers(last_rows, names)
    means = last_rows[_required_ranking_target(frame, f"best_of={','.join(names)}")].groupby([group, setting]).mean()
    num_tried = means.groupby(level=0).size()  # of each group
    max_tried, best_of = int(num_tried.max()), ",".join(names)
    if max_tried == 1:
        notes.append(f"best_of={best_of} had nothing to choose from: no rows differ only in this setting.")
        return frame
    best_pairs = set(means.groupby(level=0).idxmin())  # (group, setting)
    is_best = [pair in best_pairs for pair in zip(group, setting, strict=True)]
    best_runs = run_of_row[last_rows.index[is_best]]
    kept = frame[run_of_row.isin(best_runs)]
    tried_text, bias_text = f"{max_tried}", ""
    if num_tried.nunique() > 1:
        family_of_group = last_rows["family"].groupby(group).first()
        spans = num_tried.groupby(family_of_group, sort=False).agg(["min", "max"])
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
    if any("batch" in name for name in names):  # other measures of the batch, and numbers of steps, change with it
        fixed = [name for name in fixed if "batch" not in name and not name.endswith("steps")]
    return fixed


def expected_luck(num_tried: int) -> float:
    """The mean of the highest of `num_tried` standard normal values: how far the best of equal runs is low by luck."""
    norm = stats.norm
    return float(integrate.quad(lambda x: x * num_tried * norm.pdf(x) * norm.cdf(x) ** (num_tried - 1), -10, 10)[0])
