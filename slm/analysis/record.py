"""Log an analysis as a tracker run of its own (job_type=analysis), to compare exponents of analyses in the tracker.

The run has the name of the analysed table or sweep, and the settings that applied to it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from slm.analysis.charts import charts, level_rows, worth_rows
from slm.analysis.overlay import overlay_rows
from slm.analysis.report.directory import Directory
from slm.report.ship import choice_rows
from slm.tracking import Record, Rows, is_tracked, known_run_id, record_directory

RUN_COLUMNS = ("run_id", "family", "status", "seed", "width", "depth", "lr", "params_total", "params_non_embedding",
               "tokens", "loss", "bits_per_byte")  # fmt: skip
"""The columns of the runs table that are logged, if the table has them."""
PAIR_COLUMNS = ("delta", "ci_low", "ci_high", "p", "p_adjusted")
LEVEL_COLUMNS = ("difference", "low", "high", "p_adjusted")


def record(analysis: Directory, config: Mapping[str, Any]) -> None:
    """Log tables, charts, figures, summary and the files of an analysis, if the config asks for a tracker.

    The analysis of a table is in the group of its table, and that of a sweep in the group of the sweep's runs.
    """
    if not is_tracked(config["logger"]):
        return
    folder = analysis.path
    tables = {"exponents": exponent_rows(analysis), "comparisons": comparison_rows(analysis)}
    tables |= {
        "levels": level_rows(analysis),
        "worth_in_parameters": worth_rows(analysis),
        "runs": run_rows(folder, config["runs"]),
    }
    if analysis.overlay:
        tables["overlay"] = overlay_rows(analysis.overlay)
    if analysis.decisions:
        tables["ship"] = choice_rows(analysis.decisions)
    skipped_folders = {"wandb", "tensorboard", "mlflow", "runs"}  # the folders of trackers and of a sweep's runs
    files = [path for path in sorted(folder.rglob("*")) if skipped_folders.isdisjoint(path.relative_to(folder).parts)]
    table = analysis.comparison["table"]
    counts = {key: analysis.comparison[key] for key in ("families", "n_rows", "n_runs", "n_cells")}
    logger = {**config["logger"], "group": config["logger"]["group"] or table}
    record_directory(
        Record(
            folder=folder,
            kind="analysis",
            name=f"analysis-{table}",
            config={**config, "logger": logger, "table": {"name": table, **counts}},
            tables=tables,
            charts=charts(analysis),
            images=sorted((folder / "figures").glob("*.png")),
            summary=summary(analysis),
            files=[path for path in files if path.is_file()],
        )
    )


def run_rows(folder: Path, source: str | None) -> Rows:
    """One row per run, with the id of the run in the tracker as `wandb_run` (None if the run was not tracked).

    `source` is the table or directory of runs; None means the runs of a sweep in `folder`.
    """
    frame = pd.read_csv(folder / ("results.csv" if source else "runs.csv"), dtype={"run_id": str})
    frame = frame[[name for name in RUN_COLUMNS if name in frame]]
    runs_folder = Path(source) if source else folder / "runs"
    names = frame["run_id"] if "run_id" in frame else [None] * len(frame)
    ids = [known_run_id(runs_folder / name) if isinstance(name, str) else None for name in names]
    rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return [*frame, "wandb_run"], [[*row, wandb_run] for row, wandb_run in zip(rows, ids, strict=True)]


def exponent_rows(analysis: Directory) -> Rows:
    """One row per fit and exponent; an exponent that is not identified has no value, so that nobody can quote it."""
    keys = ["family", "law", "target", "size", "loss"]
    rows = []
    for entry in analysis.fits:
        for name in entry["exponents"]:
            is_identified = name not in entry["not_identified"]
            value_and_interval = [entry["params"][name], *entry["ci95"][name]] if is_identified else [None] * 3
            rows.append([*(entry[key] for key in keys), name, *value_and_interval, is_identified, entry["r2"]])
    return [*keys, "exponent", "value", "ci_low", "ci_high", "identified", "r2"], rows


def comparison_rows(analysis: Directory) -> Rows:
    """One row per pair of families compared at the same sizes (without a law), and one per pair, law and exponent."""
    labels_without_law = {"law": "same sizes", "exponent": "local exponent", "identified": True}
    pairs = [pair | labels_without_law for pair in analysis.comparison["paired"]["pairs"]]
    pairs += [pair | {"law": law} for law, tests in analysis.comparison["laws"].items() for pair in tests["pairs"]]
    columns = ["law", "a", "b", "exponent", *PAIR_COLUMNS, "identified"]
    return columns, [[pair[column] for column in columns] for pair in pairs]


def summary(analysis: Directory) -> dict[str, Any]:
    """The verdict and its comparisons, and the exponents of all laws for the verdict's target and definition of N.

    Keys are `verdict`, `exponent/<family>/<law>/<name>`, `comparison/<a>_vs_<b>/<column>`, `worth/<a>_in_<b>/<column>`
    (the factor on N with which b matches a) and `level/<a>_vs_<b>/<column>` (the difference in the target at the same
    sizes). The first exponent of a law has its interval under `.../ci_low` and `.../ci_high`, other exponents under
    `.../<name>_ci_low` and so on. Exponents that are not identified are left out, so that nobody can quote them.
    """
    quantities: dict[str, Any] = {"verdict": analysis.comparison["verdict"]["headline"]}
    for entry in analysis.entries():
        key = f"exponent/{entry['family'].replace('/', '_')}/{entry['law']}"
        for name in entry["exponents"]:
            if name not in entry["not_identified"]:
                prefix = "" if name == entry["exponents"][0] else f"{name}_"
                low, high = entry["ci95"][name]
                quantities[f"{key}/{name}"] = entry["params"][name]
                quantities |= {f"{key}/{prefix}ci_low": low, f"{key}/{prefix}ci_high": high}
    # A pair has one row per exponent, all with the same keys. The first row, of the ranking exponent, must be set last.
    for pair in reversed(analysis.comparison["verdict"]["pairs"]):
        columns = {column: pair[column] for column in PAIR_COLUMNS if column != "p"}
        quantities |= _under_key("comparison", pair["a"], "vs", pair["b"], columns)
    for a, b, factor, low, high, _ in worth_rows(analysis)[1]:
        quantities |= _under_key("worth", a, "in", b, {"factor": factor, "low": low, "high": high})
    for pair in analysis.comparison["levels"]["pairs"]:
        if mean := pair["mean"]:
            columns = {column: mean[column] for column in LEVEL_COLUMNS}
            quantities |= _under_key("level", pair["a"], "vs", pair["b"], columns)
    return quantities


def _under_key(kind: str, a: str, relation: str, b: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    """`columns` under keys such as `worth/<a>_in_<b>/factor`; a `/` in a name would start another group of keys."""
    names = f"{a}_{relation}_{b}".replace("/", "_")
    return {f"{kind}/{names}/{column}": value for column, value in columns.items()}
