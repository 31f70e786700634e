"""The words by which tables say whether a run is complete: those of W&B, MLflow, SLURM and of people."""

from __future__ import annotations

from typing import Any

import pandas as pd

from slm.scaling.tables.values import is_blank

COMPLETED = frozenset({"completed", "complete", "finished", "done", "success", "successful", "succeeded", "ok", "okay"})
"""Words for a run that is complete."""
_OTHERS = {
    *("crashed", "failed", "failure", "error", "killed", "running", "pending", "queued", "scheduled", "preempting"),
    *("preempted", "diverged", "interrupted", "cancelled", "canceled", "timeout", "out_of_memory", "oom", "node_fail"),
    *("stopped", "aborted", "suspended", "terminated"),
}


def status_word(value: Any) -> str:
    """A status in lower case; `no status` where it is blank."""
    return "no status" if is_blank(value) else str(value).strip().lower()


def are_statuses(values: pd.Series) -> bool:
    """Whether most of a column's values are words for what became of a run."""
    words = [status_word(value).split()[0].rstrip("+") for value in values if not is_blank(value)]
    return 2 * sum(word in COMPLETED or word in _OTHERS for word in words) > len(words)
