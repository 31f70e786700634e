"""An analysis as a run of its own (job_type=analysis) in the tracker, where its exponents can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from slm.analysis.overlay import overlay_rows
from slm.analysis.report.directory import Directory
from slm.tracking import Rows, check_logger, known_run_id, record_directory

RUN_COLUMNS = ("run_id", "family", "status", "seed", "width", "depth", "lr", "params_total", "params_non_embedding",
               "tokens", "loss", "bits_per_byte")  # fmt: skip
"""Columns of the table of runs that the tracker gets, if the table has them."""
PAIR_COLUMNS = ("delta", "ci_low", "ci_high", "p", "p_adjusted")


def check_logger_of_analysis(logger: Mapping[str, Any]) -> None:
    """Raise `ValueError` for `logger` settings that cannot hold an analysis."""
    check_logger(logger)
    if logger["tensorboard"]:
        raise ValueError("logger=tensorboard holds no tables: use logger=wandb, or logger=csv for the files alone")


def record(analysis: Directory, config: Mapping[str, Any]) -> None:
    """Log tables, figures, summary and the files of an analysis, if the config asks for a tracker."""
    if not config["logger"]["wandb"]:
        return
    folder = analysis.path
    tables = {"exponents": exponents(analysis), "comparisons": comparisons(analysis)}
    tables["runs"] = runs(folder, config["runs"])
    if analysis.overlay:
        tables["overlay"] = overlay_rows(analysis.overlay)
    # `wandb` and `runs` are folders of the tracker and of a sweep's runs.
    files = [path for path in sorted(folder.rglob("*")) if not {"wandb", "runs"} & {*path.relative_to(folder).parts}]
    record_directory(
        folder,
        kind="analysis",
        name=f"analysis-{analysis.comparison['table']}",
        config=config,
        tables=tables,
        images=sorted((folder / "figures").glob("*.png")),
        summary=summary(analysis),
        files=[path for path in files if path.is_file()],
    )


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


def exponents(analysis: Directory) -> Rows:
    """One row for each exponent of a fit; an exponent that is not identified has no value, so nobody can quote it."""
    keys = ["family", "law", "target", "size", "loss"]
    rows = []
    for entry in analysis.fits:
        for name in entry["exponents"]:
            identified = name not in entry["not_identified"]
            values = [entry["params"][name], *entry["ci95"][name]] if identified else [None] * 3
            rows.append([*(entry[key] for key in keys), name, *values, identified, entry["r2"]])
    return [*keys, "exponent", "value", "ci_low", "ci_high", "identified", "r2"], rows


def comparisons(analysis: Directory) -> Rows:
    """One row for each pair of families and comparison: at the same sizes, or by each law and exponent."""
    pairs = [
        {**pair, "law": "same sizes", "exponent": "local exponent", "identified": True}
        for pair in analysis.comparison["paired"]["pairs"]
    ]
    pairs += [{**pair, "law": law} for law, by_law in analysis.comparison["laws"].items() for pair in by_law["pairs"]]
    columns = ["law", "a", "b", "exponent", *PAIR_COLUMNS, "identified"]
    return columns, [[pair[column] for column in columns] for pair in pairs]


def summary(analysis: Directory) -> dict[str, Any]:
    """`exponent/<family>/<law>/<name>` with `.../ci_low`, `.../ci_high`, and `comparison/<a>_vs_<b>/...`.

    Exponents are those of the verdict's target and N, comparisons those that the verdict is based on. Exponents that
    are not identified are left out, so nobody can quote them.
    """
    values: dict[str, Any] = {"verdict": analysis.comparison["verdict"]["headline"]}
    for entry in analysis.entries():
        key = f"exponent/{entry['family'].replace('/', '_')}/{entry['law']}"
        for name in entry["exponents"]:
            if name not in entry["not_identified"]:
                end = "" if name == entry["exponents"][0] else f"{name}_"
                values[f"{key}/{name}"] = entry["params"][name]
                values[f"{key}/{end}ci_low"], values[f"{key}/{end}ci_high"] = entry["ci95"][name]
    for pair in reversed(analysis.comparison["verdict"]["pairs"]):  # the first exponent of a pair is the ranked one
        a, b = (pair[side].replace("/", "_") for side in ("a", "b"))
        values |= {f"comparison/{a}_vs_{b}/{column}": pair[column] for column in PAIR_COLUMNS if column != "p"}
    return values
