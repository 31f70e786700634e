"""The check of what a person gave to sweep.py, apart from the design (`design.py`) and the launcher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.command_line import new_folder


def check_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the columns that were named alone; `ValueError` names the first key that is wrong.

    `runs` is None for a sweep that is to be trained. The folder of an analysis of `runs` is a new one unless given.
    """
    for key in ("runs", "output_dir", "overlay", "overlay_column"):
        text = config[key] is None or (isinstance(config[key], str) and bool(config[key].strip()))
        _check(key, config[key], text, "text that is not empty, or null")
    _check("dry_run", config["dry_run"], isinstance(config["dry_run"], bool), "true or false")
    _check("retry", config["retry"], config["retry"] in ("none", "failed"), "none or failed")
    for key, usual in (("dry_run", False), ("retry", "none")):
        if config["runs"] is not None and config[key] != usual:
            raise ValueError(f"{key}={config[key]} goes with a sweep, and runs={config['runs']} is done: leave one out")
    if config["overlay_column"] is not None and config["overlay"] is None:
        raise ValueError(
            f"overlay_column={config['overlay_column']} goes with overlay=results.csv: give it, or leave it out"
        )
    for key in ("where", "name"):
        _check(key, config[key], config[key] is None or isinstance(config[key], str), "text, or null")
    for key, least in (("drop_worst", 0), ("seed", 0)):
        value = config[key]
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        _check(key, value, whole, f"a whole number of at least {least}")
    settings = dict(config) | {"columns": _columns(config["columns"])}
    if config["output_dir"] is None:
        return settings if config["runs"] is None else settings | {"output_dir": new_folder("analysis")}
    folder = Path(config["output_dir"])
    try:
        is_file = folder.exists() and not folder.is_dir()
    except OSError as error:  # such as a name that is too long
        raise ValueError(f"output_dir={folder}: {error.strerror}; choose another directory") from None
    if is_file:
        raise ValueError(f"output_dir={folder} is a file: give the name of a directory")
    return settings


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
