"""What `conf/sweep.yaml` needs of Python: the folder of an analysis, and the check of what a person gave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slm.command_line import new_folder

NO_RUNS_YET = "sweep.py does not train runs yet: give runs=TABLE.csv, a table of runs that are done"


def register() -> None:
    """Register the resolver that `conf/sweep.yaml` uses."""
    OmegaConf.register_new_resolver("analysis_dir", lambda: new_folder("analysis"), use_cache=True, replace=True)


def check_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the columns that were named alone; `ValueError` names the first key that is wrong."""
    if config["runs"] is None:
        raise ValueError(NO_RUNS_YET)
    for key in ("runs", "output_dir"):
        _check(key, config[key], isinstance(config[key], str) and bool(config[key].strip()), "text that is not empty")
    for key in ("where", "name"):
        _check(key, config[key], config[key] is None or isinstance(config[key], str), "text, or null")
    for key, least in (("drop_worst", 0), ("seed", 0)):
        value = config[key]
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        _check(key, value, whole, f"a whole number of at least {least}")
    folder = Path(config["output_dir"])
    try:
        is_file = folder.exists() and not folder.is_dir()
    except OSError as error:  # such as a name that is too long
        raise ValueError(f"output_dir={folder}: {error.strerror}; choose another directory") from None
    if is_file:
        raise ValueError(f"output_dir={folder} is a file: give the name of a directory")
    return dict(config) | {"columns": _columns(config["columns"])}


def _columns(columns: Any) -> dict[str, str]:
    """Canonical names and the table's own names for them; those that are null were not given."""
    _check("columns", columns, isinstance(columns, Mapping), "a mapping, as in columns.loss=val_loss")
    given = {str(name): own for name, own in columns.items() if own is not None}
    for name, own in given.items():
        _check(f"columns.{name}", own, isinstance(own, str), "the name of a column of the table")
    return given


def _check(key: str, value: Any, good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(f"{key}={value!r} must be {wanted}")
