"""Turn a table of runs into an analysis directory: read, audit, fit and compare; then draw, report and log."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from slm.analysis.audit import DATA, EVALUATION, RATES_TRIED, SETTINGS, TOKENIZER, audit
from slm.analysis.overlay import FILE as OVERLAY
from slm.analysis.overlay import check_overlay, check_overlay_of_sweep, overlay_entry, read_overlay
from slm.analysis.record import record
from slm.analysis.report.directory import Directory
from slm.analysis.report.page import FIGURES, make_report
from slm.analysis.report.verdict import print_summary
from slm.analysis.runs import COLUMNS, collect_runs
from slm.runtime.files import check_writable, write_atomically, write_json
from slm.runtime.progress import Progress
from slm.runtime.system import git_commit
from slm.scaling.analysis import analyse
from slm.scaling.measures import HERE, HERE_FILE, MEASURES
from slm.scaling.settings import Settings
from slm.scaling.ship import check_limits, read_shipping
from slm.scaling.tables import Table, read_table, table_from_frame
from slm.scaling.targets import with_target
from slm.tracking import check_logger

Prepare = Callable[[Mapping[str, Any], Table], Mapping[str, Any]]
DECISIONS = "decisions.json"
FITS_FILE = "fits.json"  # a folder with this file is an analysis directory
ROW_KEYS = ("columns", "where", "best_of", "drop_worst")  # the config keys that choose the rows of a table


def analyse_runs(config: Mapping[str, Any], prepare: Prepare = lambda config, table: config) -> int:
    """Analyse the table or directory that the key `runs` names, and write to `output_dir`; returns the exit code.

    Writes design.csv, results.csv, settings.json, audit.json, fits.json, comparison.json, figures/, report.md and
    report.html; with an overlay, overlay.json; with a device, decisions.json. Invalid settings or rows raise
    `ValueError` before anything is written. `prepare` may change the config when the
    table has been read: it measures a device.
    """
    check_analysis(config)
    _check_folder(Path(config["output_dir"]), config)
    table = _read_runs(config)
    analyse_table(table, prepare(config, table))
    return 0


def check_analysis(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for invalid settings of the analysis, the overlay, the device or the logger."""
    settings = Settings.from_dict(config["analysis"])
    if config["overlay"] is not None and settings.target_kind is not None:
        raise ValueError(
            f"overlay compares checkpoints by loss or bits per byte, not by analysis.target={settings.target}: "
            "leave one of them out"
        )
    check_logger(config["logger"])
    if config["device"] == HERE:
        check_limits(config["ship"], [key for key in MEASURES if key != "joules"], "device=here")
    elif config["device"]:
        read_shipping(config["device"], config["ship"])
    if config["runs"] is None:
        check_overlay_of_sweep(config)


def analyse_table(table: Table, config: Mapping[str, Any], *, design: pd.DataFrame | None = None) -> None:
    """Analyse a table and write to `output_dir`, replacing an earlier analysis; `design` is written as design.csv."""
    settings, folder = Settings.from_dict(config["analysis"]), Path(config["output_dir"])
    table = with_target(table, settings)
    shipping = read_shipping(config["device"], config["ship"], table) if config["device"] else None
    overlay = read_overlay(config)
    if overlay:
        check_overlay(overlay, table, settings)
    audit_result = audit(table.frame)
    check_writable(folder)
    with Progress("reading") as progress:

        def show(task: str, done: int, total: int) -> None:
            progress.update(done, task=task, total=total)

        values = [row["families"].values() for row in audit_result["violations"] if row["what"] == "tokenizer"]
        tokenizers_differ = any(len({str(of_family) for of_family in families}) > 1 for families in values)
        options = {
            "tokenizers_differ": tokenizers_differ,
            "controlled": audit_result["controlled"],
            "seed": config["seed"],
            "shipping": shipping,
        }
        analysis = analyse(table, settings, progress=show, **options)
        law = analysis.comparison["primary"]["law"]
        overlay_result = overlay_entry(overlay, table, law, settings, config["seed"]) if overlay else None
        _remove_report(folder)
        command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
        write_atomically(folder / "results.csv", table.frame.to_csv(index=False))
        written = {"date": datetime.now(UTC).date().isoformat(), "slm": version("slm"), "commit": git_commit()}
        write_json(folder / "settings.json", {"command": command, "written": written, **config})
        write_json(folder / "audit.json", audit_result)
        write_json(folder / "comparison.json", analysis.comparison)
        write_json(folder / FITS_FILE, analysis.fits)
        if analysis.decisions:
            write_json(folder / DECISIONS, analysis.decisions)
        if overlay_result:
            write_json(folder / OVERLAY, overlay_result)
        design = _design(table.frame) if design is None else design
        write_atomically(folder / "design.csv", design.to_csv(index=False))
        show("drawing figures and writing the report", 1, 1)
        make_report(folder)
        show("logging the analysis", 1, 1)
        directory = Directory.read(folder)
        record(directory, config)
    print_summary(directory)


def _read_runs(config: Mapping[str, Any]) -> Table:
    options = {key: config[key] for key in ROW_KEYS}
    if config["analysis"].get("target_kind") is not None:
        options["target"] = config["analysis"]["target"]
    source = Path(config["runs"])
    if source.is_dir():
        return table_from_frame(collect_runs(source), name=config["name"] or source.name, **options)
    table = read_table(config["runs"], read=_columns_read(config), **options)
    return Table(table.frame, table.notes, config["name"]) if config["name"] else table


def _columns_read(config: Mapping[str, Any]) -> set[str]:
    """The columns that an analysis or its settings read, and those that a sweep writes."""
    audited = (*DATA, *TOKENIZER, *EVALUATION, *RATES_TRIED, *sum(SETTINGS.values(), ()))
    settings = [str(config[key]) for key in ROW_KEYS] + [
        str(config["analysis"].get(key)) for key in ("formulas", "laws")
    ]
    of_target = {str(config["analysis"].get(key)) for key in ("target", "task_loss")}
    return {*COLUMNS, *audited, *re.findall(r"\w+", " ".join(settings)), *of_target}


def _check_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `ValueError` if the folder holds anything except an earlier analysis of the same rows."""
    try:
        if not folder.is_dir() or {file.name for file in folder.iterdir()} <= {HERE_FILE}:
            return
    except OSError as error:
        raise ValueError(f"output_dir={folder}: {error.strerror}; choose another directory") from None
    if not (folder / FITS_FILE).exists():
        raise ValueError(f"output_dir={folder} holds files other than an analysis: choose another directory")
    try:
        earlier = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        earlier = {"best_of": None, **earlier}  # the settings of older analyses have no `best_of`
        differing = [key for key in ("runs", *ROW_KEYS) if earlier[key] != config[key]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"output_dir={folder} holds an analysis of unknown rows: choose another output_dir") from None
    source = earlier["runs"] or "the sweep that was trained in it"
    if "runs" in differing and earlier["runs"] and Path(earlier["runs"]).resolve() == Path(config["runs"]).resolve():
        differing.remove("runs")  # the same path in another spelling
    if differing:
        settings = "".join(f", {key}={earlier[key]}" for key in differing if key != "runs")
        raise ValueError(f"output_dir={folder} holds the analysis of {source}{settings}: choose another output_dir")


def _remove_report(folder: Path) -> None:
    """Remove an earlier report, so that an interrupted analysis leaves no old report beside new numbers."""
    figures = [f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")]
    for name in ("report.md", "report.html", OVERLAY, DECISIONS, *figures):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # the folder may be missing, or hold other files
        (folder / "figures").rmdir()


def _design(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, with the number of its runs and the columns that are constant within every cell."""
    cells = frame.groupby("cell")
    columns = [name for name in frame if cells[name].nunique(dropna=False).max() == 1 and name != "cluster"]
    return cells[columns].first().assign(runs=cells.size()).drop(columns="cell", errors="ignore").reset_index()
