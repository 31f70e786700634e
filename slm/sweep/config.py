"""The check of what a person gave to sweep.py, apart from the design (`design.py`) and the launcher."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from slm.runtime.command_line import new_folder
from slm.runtime.settings import written_out
from slm.scaling.published import NAME as SHIPPED_TABLE

GROUPS_OF_A_SWEEP = ("sweep", "launcher")
"""What nothing is trained by has no use for."""


def check_settings(config: Mapping[str, Any], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The settings with the columns that were named alone; `ValueError` names the first key that is wrong.

    `overrides` are those of the command line. `runs` is None for a sweep that is to be trained. The folder of an
    analysis of `runs` is a new one unless given.
    """
    for key in ("runs", "output_dir", "overlay", "overlay_column"):
        text = config[key] is None or (isinstance(config[key], str) and bool(config[key].strip()))
        _check(key, config[key], text, "text that is not empty, or null")
    _check("dry_run", config["dry_run"], isinstance(config["dry_run"], bool), "true or false")
    _check("retry", config["retry"], config["retry"] in ("none", "failed"), "none or failed")
    given = [f"{key}={config[key]}" for key, usual in (("dry_run", False), ("retry", "none")) if config[key] != usual]
    given += [item for item in overrides if re.split(r"[.=@]", item.lstrip("+~"))[0] in GROUPS_OF_A_SWEEP]
    if config["runs"] is not None and given:
        raise ValueError(f"{given[0]} goes with a sweep, and runs={config['runs']} is done: leave one out")
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
    best_of = [config["best_of"]] if isinstance(config["best_of"], str) else config["best_of"]
    named = best_of is None or (isinstance(best_of, list) and all(isinstance(name, str) for name in best_of))
    _check("best_of", config["best_of"], named, "a column or a list of columns, such as lr or [lr,weight_decay]")
    settings = dict(config) | {"columns": _columns(config["columns"]), "best_of": best_of}
    if config["runs"] is not None:
        _check_is_there(config["runs"])
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


def _check_is_there(runs: str) -> None:
    """Here and not where tables are read, which loads pandas and scipy for seconds first."""
    if runs == SHIPPED_TABLE or os.path.exists(runs):
        return
    folder = Path(runs).parent
    there = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    near = get_close_matches(Path(runs).name, [*there, SHIPPED_TABLE], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}" if near else f"slm ships {SHIPPED_TABLE}"
    raise ValueError(f"runs={runs} does not exist: {hint}")


def check_rows(config: Mapping[str, Any], known: Collection[str], prefixes: Collection[str]) -> None:
    """Raise `ValueError` if `where` or `columns` name what the table of a sweep will not have.

    It will have the columns `known`, and any that begin with one of `prefixes`.
    """
    # Imported here, since scipy takes a second that --help need not wait.
    from slm.runtime.words import shortlist
    from slm.scaling.tables.computed import columns_of

    def check(given: str, name: str) -> None:
        if name not in known and not name.startswith(tuple(prefixes)):
            near = get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; they have {shortlist(known, 12)}"
            raise ValueError(f"{given}: the runs of a sweep have no column {name}{meant}")

    for canonical, own in config["columns"].items():
        for name in columns_of(own, known):
            check(f"columns.{canonical}={own}", name)
    for name in config["best_of"] or []:
        if name not in config["columns"]:
            check(f"best_of={name}", name)
    where = config["where"] or "True"
    try:
        parsed = ast.parse(where.strip().replace("`", ""), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"where={where} is no condition ({error.msg}), such as: tokens > 1e9") from None
    functions = {id(node.func) for node in ast.walk(parsed) if isinstance(node, ast.Call)}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Name) and id(node) not in functions and node.id not in config["columns"]:
            check(f"where={where}", node.id)


def _columns(columns: Any) -> dict[str, str]:
    """Canonical names and the table's own names for them; those that are null were not given."""
    _check("columns", columns, isinstance(columns, Mapping), "a mapping, as in columns.loss=val_loss")
    given = {str(name): own for name, own in columns.items() if own is not None}
    for name, own in given.items():
        _check(
            f"columns.{name}",
            own,
            isinstance(own, str),
            "the name of a column of the table, or arithmetic of its columns",
        )
    return given


def _check(key: str, value: Any, good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(f"{key}={value!r} must be {wanted}{written_out(value)}")
