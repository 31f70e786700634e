"""An analysis as a run of its own (job_type=analysis) in the tracker, where its exponents can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from slm.analysis.overlay import overlay_rows
from slm.scaling.analysis import Analysis
from slm.tracking import Rows, check_logger, known_run_id, record_directory

Entry = dict[str, Any]

RUN_COLUMNS = ("run_id", "family", "status", "seed", "width", "depth", "lr", "params_total", "params_non_embedding",
               "tokens", "loss", "bits_per_byte")  # fmt: skip
"""Columns of the table of runs that the tracker gets, if the table has them."""


def check_logger_of_analysis(logger: Mapping[str, Any]) -> None:
    """Raise `ValueError` for `logger` settings that cannot hold an analysis."""
    check_logger(logger)
    if logger["tensorboard"]:
        raise ValueError("logger=tensorboard holds no tables: use logger=wandb, or logger=csv for the files alone")


def record(folder: Path, analysis: Analysis, laid: Entry | None, name: str, config: Mapping[str, Any]) -> None:
    """Log tables, figures, summary and the directory itself, if the config asks for a tracker.

    `laid` is what overlay.json holds, if anything was laid over.
    """
    if not config["logger"]["wandb"]:
        return
    tables = {
        "exponents": exponents(analysis),
        "comparisons": comparisons(analysis),
        "runs": runs(folder, config["runs"]),
    }
    if laid:
        tables["overlay"] = overlay_rows(laid)
    record_directory(
        folder,
        kind="analysis",
        name=f"analysis-{name}",
        config=config,
        tables=tables,
        images=sorted((folder / "figures").glob("*.png")),
        summary=summary(analysis),
        files=[path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_foreign(path, folder)],
    )


def _is_foreign(path: Path, folder: Path) -> bool:
    """Whether a file belongs to the runs of a sweep or to the tracker."""
    return bool({"wandb", "runs"} & {*path.relative_to(folder).parts[:-1]})


def runs(folder: Path, source: str | None) -> Rows:
    """One row a run, with the id (`wandb_run`) under which the tracker has it, if it does.

    `source` is the table or directory of runs; None for a sweep that was trained in `folder`.
    """
    frame = pd.read_csv(folder / ("results.csv" if source else "runs.csv"), dtype={"run_id": str})
    frame = frame[[name for name in RUN_COLUMNS if name in frame]]
    where = Path(source) if source else folder / "runs"
    names = frame["run_id"] if "run_id" in frame else [None] * len(frame)
    ids = [known_run_id(where / name) if isinstance(name, str) else None for name in names]
    rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return [*frame, "wandb_run"], [[*row, wandb_run] for row, wandb_run in zip(rows, ids, strict=True)]


def exponents(analysis: Analysis) -> Rows:
    """One row an exponent of a fit; one that is not identified has no value, so that nobody takes it for one."""
    columns = ["family", "law", "target", "size", "loss", "exponent", "value", "ci_low", "ci_high", "identified", "r2"]
    rows = [
        [
            *(entry[key] for key in ("family", "law", "target", "size", "loss")),
            name,
            *((None, None, None) if lost else (entry["params"][name], *entry["ci95"][name])),
            not lost,
            entry["r2"],
        ]
        for entry in analysis.fits
        for name in entry["exponents"]
        for lost in [name in entry["not_identified"]]
    ]
    return columns, rows


def comparisons(analysis: Analysis) -> Rows:
    """One row a pair of families and comparison: at the same sizes, or by each law and exponent."""
    columns = ["law", "a", "b", "exponent", "delta", "ci_low", "ci_high", "p", "p_adjusted", "identified"]
    rows = [
        ["same sizes", pair["a"], pair["b"], "local exponent", *(pair[key] for key in columns[4:-1]), True]
        for pair in analysis.comparison["paired"]["pairs"]
    ]
    rows += [
        [law, *(pair[key] for key in columns[1:])]
        for law, compared in analysis.comparison["laws"].items()
        for pair in compared["pairs"]
    ]
    return columns, rows


def summary(analysis: Analysis) -> Entry:
    """`exponent/<family>/<law>/<name>` with `.../ci_low`, `.../ci_high`, and `comparison/<a>_vs_<b>/...`.

    Exponents are of the verdict's target and N, and `comparison` of what the verdict rests on. What is
    not identified is left out: a number there would be taken for one.
    """
    primary = analysis.comparison["primary"]
    values: Entry = {"verdict": analysis.comparison["verdict"]["headline"]}
    for entry in analysis.fits:
        is_primary = all(entry[key] == primary[key] for key in ("target", "loss"))
        if not is_primary or entry["size"] not in (None, primary["size"]):
            continue
        key = f"exponent/{_plain(entry['family'])}/{entry['law']}"
        for name in entry["exponents"]:
            if name not in entry["not_identified"]:
                end = "" if name == entry["exponents"][0] else f"{name}_"
                low, high = entry["ci95"][name]
                values |= {f"{key}/{name}": entry["params"][name]}
                values |= {f"{key}/{end}ci_low": low, f"{key}/{end}ci_high": high}
    for pair in reversed(analysis.comparison["verdict"]["pairs"]):  # the first exponent of a pair is the ranked one
        key = f"comparison/{_plain(pair['a'])}_vs_{_plain(pair['b'])}"
        values |= {f"{key}/{what}": pair[what] for what in ("delta", "ci_low", "ci_high", "p_adjusted")}
    return values


def _plain(family: str) -> str:
    """A family's name as one part of a key."""
    return family.replace("/", "_")
