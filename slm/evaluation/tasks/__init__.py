"""Downstream tasks through lm-evaluation-harness, in process: `run_tasks`.

Importing this package is cheap; the harness (extra `eval`) and torch are loaded at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.evaluation.tasks.names import MOBILELLM, check_tasks
    from slm.evaluation.tasks.run import run_tasks

_HOME = {"MOBILELLM": "names", "check_tasks": "names", "run_tasks": "run"}

__all__ = ["MOBILELLM", "check_tasks", "run_tasks"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
