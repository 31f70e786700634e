"""Evaluations of a design: evaluate.py on every completed run, and its results as further columns of the table.

Evaluations are separate jobs, after all training, on the same engine and by the same rules: a completed one is never
repeated, and a failed one is recorded and stops nothing. Their folder is RUN/evaluation/NAME-HASH, with a hash of
their overrides, so that changed overrides make another evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.runtime.command_line import in_quotes
from slm.runtime.settings import TEXT, TEXTS
from slm.sweep.cells import Cell
from slm.sweep.ledger import read_evaluation
from slm.sweep.recipe import composed, digest

if TYPE_CHECKING:
    import pandas as pd

Evaluations = Mapping[str, Sequence[str]]
"""Name -> overrides of evaluate.py."""

EVALUATE = Path(__file__).parents[2] / "evaluate.py"
USUAL = ("logger=csv", "speed.enabled=false", "perplexity.protocols=[non_overlapping]")
"""Defaults: no separate run in the tracker, no speed measured beside other jobs, losses as train.py computes them."""
DECIDED = ("checkpoint", "checkpoints", "revision", "output_dir", "cache_dir", "prompt", "export", "logger")
SCORES = ("loss", "perplexity", "bits_per_byte")
FINGERPRINT = "eval_data_fingerprint"
"""Ending of the column that identifies the text of an evaluation."""


def is_evaluations(value: Any) -> bool:
    """Whether it maps names that may start a column name to lists of overrides."""
    return isinstance(value, Mapping) and all(
        TEXT.accepts(name) and re.fullmatch(r"[A-Za-z]\w*", name) and TEXTS.accepts(items)
        for name, items in value.items()
    )


def check_evaluations(evaluations: Evaluations) -> None:
    """Raise `ValueError`, or Hydra's errors, for overrides that the sweep sets itself or evaluate.py does not know."""
    for name, overrides in evaluations.items():
        for item in overrides:
            key = item.partition("=")[0].lstrip("+~").partition(".")[0]
            if key in DECIDED:
                raise ValueError(f"sweep.evaluation.{name} has {item}, which the sweep sets itself: leave it out")
        composed("evaluate", [*USUAL, *overrides])


def evaluation_cells(cells: Iterable[Cell], evaluations: Evaluations, runs: Path, cache_dir: Path) -> list[Cell]:
    """A cell for each evaluation of each of `cells`, which are completed runs in the folder `runs`."""
    shared = (f"cache_dir={in_quotes(cache_dir)}", *USUAL)
    return [
        replace(
            cell,
            name=str(_folder(Path(cell.name), name, overrides)),
            overrides=(f"checkpoint={in_quotes(runs.resolve() / cell.name)}", *shared, *overrides),
            trunk=None,
            branch_step=0,
            shared_tokens=0,
        )
        for cell in cells
        for name, overrides in evaluations.items()
    ]


def with_evaluations(table: pd.DataFrame, evaluations: Evaluations, runs: Path) -> pd.DataFrame:
    """The table of runs with the columns of each evaluation NAME, empty for runs without it.

    `NAME_loss`, `NAME_perplexity`, `NAME_bits_per_byte` and `NAME_eval_data_fingerprint` of the first protocol,
    `NAME_PROTOCOL_loss` and so on of further ones, `NAME_TASK` and `NAME_TASK_se` of tasks.
    """
    import pandas as pd

    rows = [
        {
            key: value
            for name, overrides in evaluations.items()
            for key, value in _columns(name, read_evaluation(_folder(runs / str(run_id), name, overrides))).items()
        }
        for run_id in table["run_id"]
    ]
    return table.join(pd.DataFrame(rows, index=table.index)) if any(rows) else table


def without_unmeasured(table: pd.DataFrame, columns: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """The runs that have a value in every column that `columns` uses, and a sentence that names the others.

    If those columns are an evaluation's, `eval_fingerprint` identifies its text for the audit.
    """
    # Imported here, since importing scipy takes a second, for which an error in the design need not wait.
    from slm.runtime.words import shortlist
    from slm.scaling.tables.values import source_columns

    named = [name for column in columns.values() for name in source_columns(column, table) if name in table]
    texts = {re.sub(f"({'|'.join(SCORES)})$", FINGERPRINT, name) for name in named} - {*named}
    if there := sorted(texts & {*table}):
        table = table.assign(eval_fingerprint=table[there].fillna("").astype(str).agg(" ".join, axis=1))
    lost = table[named].isna().any(axis=1)
    if not lost.any() or lost.all():
        return table, []
    return table[~lost], [f"Left out without {' and '.join(named)}: {shortlist(table['run_id'][lost])}."]


def _folder(run: Path, name: str, overrides: Sequence[str]) -> Path:
    return run / "evaluation" / f"{name}-{digest(list(overrides))[:8]}"


def _columns(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for number, score in enumerate(entry.get("perplexity_results", [])):
        prefix = f"{name}_{score['protocol']}" if number else name
        row |= {f"{prefix}_{key}": score[key] for key in SCORES}
        row |= {f"{prefix}_{FINGERPRINT}": score["data_fingerprint"]}
    for task, score in entry.get("tasks", {}).items():
        row |= {f"{name}_{task}": score["value"], f"{name}_{task}_se": score["se"]}
    return row
