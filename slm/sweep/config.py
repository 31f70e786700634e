"""Check the settings of sweep.py, except the design (`design.py`) and the launcher (`launchers/`)."""

import ast
import os
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from slm.runtime import settings as kinds
from slm.runtime.command_line import new_folder_path
from slm.runtime.files import check_folders
from slm.scaling.measures import HERE, SHIP_KINDS
from slm.scaling.published import NAME as SHIPPED_TABLE

SWEEP_GROUPS = ("sweep", "launcher")  # config groups that training reads, but not the analysis of a finished table
SWEEP_DEFAULTS = {"dry_run": False, "retry": "none"}  # keys that only training reads, with their defaults
KINDS: dict[str, kinds.Kind] = {
    **{key: kinds.or_null(kinds.NAME) for key in ("runs", "output_dir", "overlay", "overlay_column", "device")},
    **SHIP_KINDS,
    "dry_run": kinds.SWITCH,
    "retry": kinds.one_of("none", "failed"),
    **{key: kinds.or_null(kinds.TEXT) for key in ("where", "name")},
    "drop_worst": kinds.NATURAL,
    "seed": kinds.NATURAL,
    "best_of": kinds.Kind(
        "a column or a list of columns, such as lr or [lr,weight_decay], or null",
        lambda value: value is None or kinds.TEXT.accepts(value) or kinds.TEXTS.accepts(value),
    ),
    "columns": kinds.Kind("a mapping, as in columns.loss=val_loss", lambda value: isinstance(value, Mapping)),
}
COLUMN = kinds.or_null(kinds.Kind("a column of the table, or arithmetic of its columns", kinds.TEXT.accepts))


def check_settings(config: Mapping[str, Any], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Check the settings; returns them without the null entries of `columns`, and with `best_of` as a list or null.

    `overrides` come from the command line. If `runs` is null, a sweep is trained. Otherwise the table `runs` is
    analysed, in a new folder unless `output_dir` is set; the settings of a sweep are then left out, so that no record
    of the analysis has them. Raises `ValueError` naming the first key that is wrong.
    """
    kinds.check_kinds(config, KINDS)
    for name, expression in config["columns"].items():
        kinds.check_kind(f"columns.{name}", expression, COLUMN)
    runs, output_dir, best_of = config["runs"], config["output_dir"], config["best_of"]
    changed_keys = [key for key, default in SWEEP_DEFAULTS.items() if config[key] != default]
    for_training = [f"{key}={kinds.as_typed(config[key])}" for key in changed_keys]
    for_training += [override for override in overrides if re.split("[.=@]", override.lstrip("+~"))[0] in SWEEP_GROUPS]
    if runs is not None and for_training:
        raise ValueError(f"{for_training[0]} is for training a sweep, but runs={runs} is a finished table: choose one")
    if config["overlay_column"] is not None and config["overlay"] is None:
        column = config["overlay_column"]
        raise ValueError(f"overlay_column={column} needs overlay=results.csv: give both, or leave overlay_column out")
    for key, limit in config["ship"].items():
        if limit is not None and config["device"] is None:
            raise ValueError(
                f"ship.{key}={limit:g} needs measurements: give device=FILE.csv, or device=here to measure now"
            )
    if config["device"] not in (None, HERE, SHIPPED_TABLE) and not os.path.exists(config["device"]):
        raise ValueError(f"device={config['device']} does not exist: give a table of measurements, or device=here")
    if runs is not None:
        _check_exists(runs)
        output_dir = output_dir or new_folder_path("analysis")
        config = {key: value for key, value in config.items() if key not in (*SWEEP_GROUPS, *SWEEP_DEFAULTS)}
    check_folders(config, "output_dir")
    return {
        **config,
        "columns": {str(name): column for name, column in config["columns"].items() if column is not None},
        "best_of": [best_of] if isinstance(best_of, str) else best_of,
        "output_dir": output_dir,
    }


def _check_exists(runs: str) -> None:
    # The code that reads tables checks this too, but it loads pandas and scipy first, which takes seconds.
    if runs == SHIPPED_TABLE or os.path.exists(runs):
        return
    folder = Path(runs).parent
    files = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    similar = get_close_matches(Path(runs).name, [*files, SHIPPED_TABLE], n=3)
    hint = f"did you mean {' or '.join(similar)}" if similar else f"slm ships {SHIPPED_TABLE}"
    raise ValueError(f"runs={runs} does not exist: {hint}")


def check_column_names(config: Mapping[str, Any], table_columns: Collection[str], prefixes: Collection[str]) -> None:
    """Raise `ValueError` if the setting `where`, `best_of` or `columns` names a column that a sweep's table will lack.

    The table will have `table_columns`, and further columns that begin with one of `prefixes`.
    """
    # Imported here, because importing scipy takes a second, and --help should not wait for it.
    from slm.runtime.words import shortlist
    from slm.scaling.tables.values import source_columns

    def check_column(setting: str, name: str) -> None:
        if name not in table_columns and not name.startswith(tuple(prefixes)):
            similar = get_close_matches(name, table_columns, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"they have {shortlist(table_columns, 12)}"
            raise ValueError(f"{setting}: the runs of a sweep have no column {name}; {hint}")

    for new_name, expression in config["columns"].items():
        for source_name in source_columns(expression, table_columns):
            check_column(f"columns.{new_name}={expression}", source_name)
    for name in config["best_of"] or []:
        if name not in config["columns"]:
            check_column(f"best_of={name}", name)
    where = config["where"] or "True"
    try:
        parsed = ast.parse(where.strip().replace("`", ""), mode="eval")  # pandas allows backticks around a column name
    except SyntaxError as error:
        raise ValueError(f"where={where} must be a condition such as tokens > 1e9 ({error.msg})") from None
    functions = {id(node.func) for node in ast.walk(parsed) if isinstance(node, ast.Call)}  # they name no columns
    for node in ast.walk(parsed):
        if isinstance(node, ast.Name) and id(node) not in functions and node.id not in config["columns"]:
            check_column(f"where={where}", node.id)
