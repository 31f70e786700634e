"""Run evaluate.py on every completed run of a sweep, and add its results to the table of runs as columns.

Evaluations are separate jobs that start after all training, with the same launcher and the same rules: a completed
evaluation is never repeated; a failed evaluation is recorded and stops no other job. The folder of an evaluation is
RUN/evaluation/NAME-HASH. HASH is a hash of the overrides, so changed overrides start a new evaluation.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from slm.runtime.command_line import in_quotes
from slm.runtime.settings import TEXT, TEXTS
from slm.sweep.cells import Cell
from slm.sweep.ledger import read_evaluation
from slm.sweep.recipe import composed, digest

if TYPE_CHECKING:
    import pandas as pd

Evaluations = Mapping[str, Sequence[str]]  # name -> overrides of evaluate.py

EVALUATE = Path(__file__).parents[2] / "evaluate.py"
DEFAULTS = ("logger=csv", "speed.enabled=false", "perplexity.protocols=[non_overlapping]")
"""Log to no tracker, measure no speed (other jobs would reduce it), and compute losses as train.py does."""
SET_BY_SWEEP = (
    *("checkpoint", "checkpoints", "baselines", "revision", "output_dir", "cache_dir", "logger"),
    *("prompt", "prompt_file", "chat", "export"),
)
"""Settings of evaluate.py that a design cannot override: an evaluation measures one run."""
SCORES = ("loss", "perplexity", "bits_per_byte")  # of each perplexity protocol
FINGERPRINT = "eval_data_fingerprint"  # suffix of the column that identifies the text of an evaluation


def is_evaluations(value: Any) -> bool:
    """Whether `value` maps names to lists of overrides. A name must be valid as the start of a column name."""
    return isinstance(value, Mapping) and all(
        TEXT.accepts(name) and re.fullmatch(r"[A-Za-z]\w*", name) and TEXTS.accepts(items)
        for name, items in value.items()
    )


def check_evaluations(evaluations: Evaluations) -> None:
    """Raise `ValueError`, or Hydra's errors, for overrides that the sweep sets or that evaluate.py does not know."""
    for name, overrides in evaluations.items():
        for item in overrides:
            key = item.partition("=")[0].lstrip("+~").partition(".")[0]
            if key in SET_BY_SWEEP:
                raise ValueError(f"sweep.evaluation.{name} has {item}, which the sweep sets itself: leave it out")
        config = composed("evaluate", [*DEFAULTS, *overrides])  # raises for an override that evaluate.py does not know
        if OmegaConf.is_list(config.quantize):
            raise ValueError(
                f"sweep.evaluation.{name} has a list of quantize=..., and an evaluation of a sweep measures once: give "
                "each rounding an evaluation of its own"
            )


def evaluation_cells(cells: Iterable[Cell], evaluations: Evaluations, runs_folder: Path, cache_dir: Path) -> list[Cell]:
    """Return one cell per completed cell and evaluation; `runs_folder` contains the run directories of `cells`."""
    common = (f"cache_dir={in_quotes(cache_dir)}", *DEFAULTS)
    return [
        replace(
            cell,
            name=str(_evaluation_folder(Path(cell.name), name, overrides)),
            overrides=(f"checkpoint={in_quotes(runs_folder.resolve() / cell.name)}", *common, *overrides),
            trunk=None,
            branch_step=0,
            shared_tokens=0,
        )
        for cell in cells
        for name, overrides in evaluations.items()
    ]


def with_evaluations(table: "pd.DataFrame", evaluations: Evaluations, runs_folder: Path) -> "pd.DataFrame":
    """Return the table of runs with additional columns for each evaluation NAME, empty for runs that have no result.

    The first protocol has the columns `NAME_loss`, `NAME_perplexity`, `NAME_bits_per_byte` and
    `NAME_eval_data_fingerprint`; further protocols have `NAME_PROTOCOL_loss` and so on. A task has `NAME_TASK` and
    `NAME_TASK_se`, and if it is multiple-choice `NAME_TASK_bits_per_byte` and its `_se`, of the right answer.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for run_id in table["run_id"]:
        row: dict[str, Any] = {}
        for name, overrides in evaluations.items():
            folder = _evaluation_folder(runs_folder / str(run_id), name, overrides)
            row |= _scores_by_column(name, read_evaluation(folder))
        rows.append(row)
    return table.join(pd.DataFrame(rows, index=table.index)) if any(rows) else table


def keep_measured_runs(table: "pd.DataFrame", columns: Mapping[str, str]) -> "tuple[pd.DataFrame, list[str]]":
    """Return the runs that have a value in every column that `columns` uses, and a sentence that names the others.

    If `columns` uses evaluation scores, a column `eval_fingerprint` is added, which identifies the evaluated texts.
    """
    # Imported here, because importing scipy takes a second, and an error in the design should not wait for it.
    from slm.runtime.words import shortlist
    from slm.scaling.tables.values import source_columns

    used_columns = [name for text in columns.values() for name in source_columns(text, table) if name in table]
    score_at_end = f"({'|'.join(SCORES)})$"
    used_scores = [name for name in used_columns if re.search(score_at_end, name)]
    fingerprints = {re.sub(score_at_end, FINGERPRINT, name) for name in used_scores}  # NAME_eval_data_fingerprint
    if new_fingerprints := sorted(name for name in fingerprints if name in table and name not in used_columns):
        table = table.assign(eval_fingerprint=table[new_fingerprints].fillna("").astype(str).agg(" ".join, axis=1))
    is_unmeasured = table[used_columns].isna().any(axis=1)
    if not is_unmeasured.any() or is_unmeasured.all():
        return table, []
    left_out = shortlist(table["run_id"][is_unmeasured])
    return table[~is_unmeasured], [f"These runs have no {' or no '.join(used_columns)} and are left out: {left_out}."]


def _evaluation_folder(run: Path, name: str, overrides: Sequence[str]) -> Path:
    return run / "evaluation" / f"{name}-{digest(list(overrides))[:8]}"


def _scores_by_column(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for index, score in enumerate(entry.get("perplexity_results", [])):
        prefix = name if index == 0 else f"{name}_{score['protocol']}"
        row |= {f"{prefix}_{key}": score[key] for key in SCORES}
        row |= {f"{prefix}_{FINGERPRINT}": score["data_fingerprint"]}
    for task, score in entry.get("tasks", {}).items():
        row |= {f"{name}_{task}": score["value"], f"{name}_{task}_se": score["se"]}
        if bits := score.get("also", {}).get("bits_per_byte"):  # of the right answer
            row |= {f"{name}_{task}_bits_per_byte": bits["value"], f"{name}_{task}_bits_per_byte_se": bits["se"]}
    return row
