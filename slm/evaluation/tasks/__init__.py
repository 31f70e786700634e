"""Run downstream tasks with lm-evaluation-harness (extra `eval`), which is imported only when it is used."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from slm.data.questions import read_records

MOBILELLM = ("arc_easy", "arc_challenge", "boolq", "piqa", "social_iqa", "hellaswag", "openbookqa", "winogrande")
"""The harness's names of the eight zero-shot tasks of MobileLLM (arXiv:2402.14905, table 3)."""


def check_tasks(tasks: Sequence[str], task_files: Mapping[str, str]) -> None:
    """Raise `ValueError` for a task that neither the harness nor `task_files` has, a bad file or a missing extra."""
    if not tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("tasks need lm-evaluation-harness, which is not installed: pip install 'slm[eval]'")
    for name, path in task_files.items():
        read_records(name, path)
    names = [name for name in tasks if name not in task_files]
    available = set(task_manager().all_tasks) if names else set()
    for name in names:
        if name not in available:
            similar = get_close_matches(name, [*task_files, *available], n=3)
            hint = f"did you mean {' or '.join(similar)}?" if similar else "`lm-eval ls tasks` lists the harness tasks"
            raise ValueError(f"tasks: {name!r} is neither a task of lm-evaluation-harness nor in task_files; {hint}")


@cache
def task_manager() -> Any:
    """Return the harness's index of tasks, groups and tags. It is read once, because that takes seconds."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager()
