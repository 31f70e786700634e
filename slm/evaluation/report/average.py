"""Averages over tasks and differences, with the standard errors that follow from those of the parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slm.evaluation.report.results import Entry, number, tasks_of

DISTINGUISHED = 2.0
"""Standard errors of a difference beyond which it is called one."""


def average(entry: Entry, tasks: Sequence[str]) -> tuple[float, float | None]:
    """Unweighted mean over tasks and its standard error, sqrt(sum se^2) / k: tasks are independent samples of items.

    The error is that of these tasks on other items, not of other tasks. None where a task has no error.
    """
    found = [tasks_of(entry)[name] for name in tasks]
    errors = [error for one in found if (error := number(one, "se")) is not None]
    value = sum(one["value"] for one in found) / len(found)
    return value, math.hypot(*errors) / len(found) if len(errors) == len(found) else None


def difference_error(one: float | None, other: float | None) -> float | None:
    """sqrt(a^2 + b^2), of a difference of independent figures; None where one is not known.

    Two models on one text or on the same items err alike, so that the true error of their difference is smaller
    wherever their errors correlate positively.
    """
    return None if one is None or other is None else math.hypot(one, other)


def apart(a: tuple[float, float | None], b: tuple[float, float | None]) -> bool | None:
    """Whether two figures differ by more than two standard errors of their difference; None where that is unknown."""
    error = difference_error(a[1], b[1])
    return None if error is None else abs(a[0] - b[0]) > DISTINGUISHED * error
