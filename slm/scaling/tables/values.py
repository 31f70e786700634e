"""Values of a table as a person wrote them: blanks, numbers, true or false, statuses of runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from slm.runtime.words import shortened

_BLANKS = {"", "nan", "na", "n/a", "null", "none", "-"}
COMPLETED = frozenset({"completed", "complete", "finished", "done", "success", "successful", "succeeded", "ok", "okay"})
"""Words for a complete run, in W&B, MLflow and SLURM and as people write."""
_NOT_COMPLETED = {
    *("crashed", "failed", "failure", "error", "killed", "running", "pending", "queued", "scheduled", "preempting"),
    *("preempted", "diverged", "interrupted", "cancelled", "canceled", "timeout", "out_of_memory", "oom", "node_fail"),
    *("stopped", "aborted", "suspended", "terminated"),
}


def format_value(value: Any) -> str:
    """The text of a value in a message; a long one loses its middle."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return shortened(value)


def is_blank(value: Any) -> bool:
    """Whether there is no value: None, NaN, or text such as `NA`."""
    if isinstance(value, str):
        return value.strip().lower() in _BLANKS
    return value is None or (not isinstance(value, (list, dict, tuple)) and bool(np.all(pd.isna(value))))


def parse_number(value: Any) -> float | None:
    """The number that a value is or spells (`1e9`, `1_000`), NaN if it is blank, None if it is not a number."""
    if is_blank(value):
        return math.nan
    if isinstance(value, (bool, np.bool_, list, dict, tuple)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def parse_booleans(values: pd.Series) -> pd.Series | None:
    """The booleans of a column of true and false in any case (None where blank); None if it holds anything else."""
    words = [None if is_blank(value) else str(value).strip().lower() for value in values]
    if not set(words) - {None} or set(words) - {None, "true", "false"}:
        return None
    booleans = [None if word is None else word == "true" for word in words]
    return pd.Series(booleans, values.index, dtype=object if None in words else bool)


def status_word(value: Any) -> str:
    """A status in lower case; `no status` where it is blank."""
    return "no status" if is_blank(value) else str(value).strip().lower()


def has_statuses(values: pd.Series) -> bool:
    """Whether most values of a column are statuses of runs, such as `finished`."""
    words = [status_word(value).split()[0].rstrip("+") for value in values if not is_blank(value)]
    return 2 * sum(word in COMPLETED or word in _NOT_COMPLETED for word in words) > len(words)
