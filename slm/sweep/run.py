"""A sweep from its design to its analysis: cells, jobs, table, report.

A sweep directory holds the files of an analysis, and also `runs/` (one run directory per cell), `cells.json` (the
planned cells), `sweep.yaml` (the config) and `runs.csv` (every run that has a result). Its name contains a hash of the
cells, so the same command continues a stopped sweep. To extend a sweep, give a design with additional cells and the
`output_dir` of the old sweep.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from slm.analysis.run import ROW_KEYS, analyse_table, check_analysis
from slm.analysis.runs import COLUMNS
from slm.runtime.command_line import report
from slm.runtime.files import LOCK, locked, write_atomically, write_json
from slm.runtime.progress import say
from slm.runtime.settings import plain_settings
from slm.runtime.words import plural, shortlist
from slm.scaling.settings import Settings
from slm.scaling.tables import Table, table_from_frame
from slm.sweep.cells import Cell, collect_cells, reset_branches_added_too_late
from slm.sweep.config import check_column_names
from slm.sweep.design import Design, check_design
from slm.sweep.device import with_device
from slm.sweep.evaluation import EVALUATE, evaluation_cells, keep_measured_runs, with_evaluations
from slm.sweep.execute import execute
from slm.sweep.forecast import remember_speeds
from slm.sweep.grid import Plan, make_plan
from slm.sweep.job import environment_of_a_job
from slm.sweep.launchers import open_launcher
from slm.sweep.launchers.gpus import SharedGpuMeasurement, measure_shared_gpu, visible_gpus, with_jobs_per_gpu
from slm.sweep.launchers.local import slot_environments
from slm.sweep.ledger import Outcome
from slm.sweep.live import Board
from slm.sweep.plan import print_plan
from slm.sweep.recipe import check_inputs, composed, digest
from slm.sweep.tuning import tune

CELLS = "cells.json"
INCOMPLETE = 2
"""Exit code if a cell or an evaluation has no result."""


@dataclass(frozen=True)
class Sweep:
    """A checked sweep; `config` holds the settings that are written to sweep.yaml."""

    design: Design
    plan: Plan
    folder: Path
    config: Mapping[str, Any]

    @property
    def runs(self) -> Path:
        """The folder of the run directories."""
        return self.folder / "runs"

    @property
    def logger(self) -> dict[str, Any]:
        """The logger settings with the tracker group that all runs and the analysis share."""
        logger = self.config["logger"]
        return {**logger, "group": str(logger["group"] or self.folder.resolve().name)}


def run_sweep(config: Mapping[str, Any], plan: Plan | None = None) -> int:
    """Plan, train and analyse the sweep of a composed `conf/sweep.yaml`; returns the exit code.

    `plan` is the plan of `config["sweep"]` if there is one already. With `dry_run` it is printed and nothing is
    written. Raises `ValueError`, before any job starts, for invalid settings, and `Interrupted` if a signal ended the
    sweep.
    """
    sweep = _check_sweep(config, plan)
    num_jobs = sum(cell.is_possible for cell in sweep.plan.cells)
    launcher = open_launcher(config["launcher"], sweep.runs, num_jobs=num_jobs)  # raises before a folder is made
    if config["dry_run"]:
        analysis = Settings.from_dict(sweep.config["analysis"])
        num_slots = min(num_jobs, launcher.max_running())
        print_plan(sweep.design, sweep.plan, analysis, folder=sweep.folder, num_slots=num_slots)
        return 0
    with locked(sweep.folder, "sweep.py"):
        for note in sweep.plan.notes:
            say(note)
        trained = _train(sweep)
        evaluated = _evaluate(sweep, trained)
        return _report(sweep, trained, evaluated)


def _check_sweep(config: Mapping[str, Any], plan: Plan | None = None) -> Sweep:
    design = check_design(config["sweep"])
    check_analysis(config)
    check_column_names(config, COLUMNS, prefixes=["val_", *(f"{name}_" for name in design.evaluations)])
    plan = plan or make_plan(design)
    key = digest(sorted(cell.key for cell in plan.cells))[:8]
    folder = Path(config["output_dir"] or f"sweeps/{design.name}-{key}")
    config = {**config, "output_dir": str(folder), "name": config["name"] or design.name}
    # `size` is the definition of N under which the design gave all families the same values of N, `sizes`.
    if config["analysis"]["size"] == "auto" and design.grid["sizes"] is not None:
        config["analysis"] = {**config["analysis"], "size": design.grid["size"]}
    num_runs = sum(cell.is_possible for cell in plan.cells)
    if config["drop_worst"] >= num_runs:
        raise ValueError(f"drop_worst={config['drop_worst']} drops all {num_runs} runs of this sweep")
    _check_folder(folder, plan.cells)
    plan.cells = reset_branches_added_too_late(plan.cells, folder / "runs")
    for train_config in plan.configs:
        check_inputs(train_config, "sweep.overrides")
    for name, overrides in design.evaluations.items():
        check_inputs(composed("evaluate", overrides), f"sweep.evaluation.{name}")
    return Sweep(design, plan, folder, config)


def _check_folder(folder: Path, cells: Sequence[Cell]) -> None:
    """Raise `ValueError` unless the folder is empty or holds a sweep of a subset of these cells."""
    try:
        names = os.listdir(folder) if os.path.isdir(folder) else []
        if all(name == LOCK or (name.startswith(CELLS) and name.endswith(".partial")) for name in names):
            return  # a new folder, or a sweep that was killed before it wrote cells.json
        old_cells = json.loads((folder / CELLS).read_text(encoding="utf-8"))
        keys = {cell.key for cell in cells}
        missing = [cell["name"] for cell in old_cells if cell["key"] not in keys]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"output_dir={folder} holds files that are not a sweep's: choose another output_dir") from None
    if missing:
        raise ValueError(
            f"output_dir={folder} holds a sweep with cells that this design lacks ({shortlist(missing, 3)}): choose "
            "another output_dir, or add these cells to the design"
        )


def _train(sweep: Sweep) -> Mapping[str, Outcome]:
    write_json(sweep.folder / CELLS, [dataclasses.asdict(cell) for cell in sweep.plan.cells])
    write_atomically(sweep.folder / "sweep.yaml", yaml.safe_dump(dict(sweep.config), sort_keys=False))
    tags = list(dict.fromkeys([sweep.design.name, *sweep.config["logger"]["tags"]]))
    logger = {**sweep.logger, "job_type": "train", "tags": tags}
    # Hydra reads quotes and null as JSON does.
    common = [f"logger.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in logger.items()]
    return _execute(sweep, sweep.plan.cells, launcher=_launcher_settings(sweep), common=common)


def _launcher_settings(sweep: Sweep) -> dict[str, Any]:
    """The launcher settings with `jobs_per_gpu` filled in, measured on the cell with the most FLOPs per token."""
    launcher = sweep.config["launcher"]
    gpus = visible_gpus()
    possible = [cell for cell in sweep.plan.cells if cell.is_possible]
    largest = max(possible, key=lambda cell: cell.flops / cell.tokens)

    def measure(num_jobs: int) -> SharedGpuMeasurement | None:
        # Without output_dir=runs, Hydra would derive output_dir from the config groups chosen for sweep.py.
        config = composed("train", (*largest.overrides, "output_dir=runs"))
        num_slots = num_jobs * len(gpus)
        settings = {**launcher, "jobs_per_gpu": num_jobs, "slots": num_slots}
        environment = slot_environments(settings, num_jobs=num_slots, gpus=gpus)[0]
        return measure_shared_gpu(plain_settings(config), {**environment_of_a_job(), **environment}, num_jobs)

    return with_jobs_per_gpu(launcher, sweep.runs, name=largest.name, num_jobs=len(possible), measure=measure)


def _evaluate(sweep: Sweep, trained: Mapping[str, Outcome]) -> Mapping[str, Outcome]:
    """Evaluate every completed run that is not evaluated yet; returns the outcome of each evaluation."""
    completed = [cell for cell in sweep.plan.cells if trained[cell.name].status == "completed"]
    cells = evaluation_cells(completed, sweep.design.evaluations, sweep.runs, sweep.plan.cache_dir)
    if not cells:
        return {}
    say(f"evaluating {plural(len(completed), 'run')} on {', '.join(sweep.design.evaluations)}")
    # Here jobs_per_gpu=auto means one job per GPU: an evaluation may measure speed, and the memory it needs is unknown.
    return _execute(sweep, cells, launcher=sweep.config["launcher"], script=EVALUATE)


def _execute(
    sweep: Sweep, cells: Sequence[Cell], *, launcher: Mapping[str, Any], **options: Any
) -> Mapping[str, Outcome]:
    with Board() as board:
        return execute(cells, sweep.runs, launcher, retry=sweep.config["retry"], show=board.show, **options)


def _report(sweep: Sweep, trained: Mapping[str, Outcome], evaluated: Mapping[str, Outcome]) -> int:
    """Analyse the completed runs and list those without a result; returns the exit code."""
    incomplete = [_list_incomplete(trained, "cells"), _list_incomplete(evaluated, "evaluations")]
    is_complete = not any(incomplete)
    try:
        _analyse(sweep, trained, notes=[f"{line}." for lines in incomplete for line in lines])
    except ValueError as error:
        if is_complete:
            raise
        report(error)
    for heading, *entries in filter(None, incomplete):
        print(f"\n{heading}:", *entries, sep="\n- ", file=sys.stderr)
    if any(outcome.status in ("failed", "diverged") for outcome in [*trained.values(), *evaluated.values()]):
        say("To try failed and diverged jobs again, add retry=failed.")
    return 0 if is_complete else INCOMPLETE


def _list_incomplete(outcomes: Mapping[str, Outcome], kind: str) -> list[str]:
    """A heading with the number of jobs that have no result, then one line per such job; empty if all completed."""
    lines = []
    for name, outcome in outcomes.items():
        if outcome.status != "completed":
            why = str(outcome.why)
            reason = why if why.startswith(outcome.status) else f"{outcome.status}, {why}"
            lines.append(f"{name}: {reason}")
    return [f"{len(lines)} of {len(outcomes)} {kind} have no result", *lines] if lines else []


def _analyse(sweep: Sweep, outcomes: Mapping[str, Outcome], *, notes: Sequence[str]) -> None:
    design, cells, folder = sweep.design, sweep.plan.cells, sweep.folder
    training = collect_cells(sweep.runs, cells, design.lr_rule)
    runs = with_evaluations(training, design.evaluations, sweep.runs)
    write_atomically(folder / "runs.csv", runs.to_csv(index=False))
    planned = pd.DataFrame([dataclasses.asdict(cell) | dataclasses.asdict(outcomes[cell.name]) for cell in cells])
    planned = planned.drop(columns=["overrides", "impossible"])
    write_atomically(folder / "design.csv", planned.to_csv(index=False))
    completed = runs[runs["status"] == "completed"] if len(runs) else runs
    if completed.empty:
        raise ValueError(f"no cell of sweep={design.name} completed, so there is nothing to analyse")
    remember_speeds(sweep.plan.cache_dir, completed.to_dict("records"))
    is_tuned = design.lr["rule"] == "tuned"
    if is_tuned:
        completed = completed[list(training)]  # only training columns: no run at the interpolated optimum was evaluated
    rows, left_out = keep_measured_runs(completed, sweep.config["columns"])
    notes = [*notes, *left_out]
    if is_tuned:
        design_rates = {cell.family: cell.lr for cell in cells if cell.lr_factor == 1 and cell.is_possible}
        tuned = tune(rows, design_rates)
        write_atomically(folder / "tuning.csv", tuned.optima.to_csv(index=False))
        print("", *tuned.lines, sep="\n")
        rows, notes = tuned.best, [*notes, *tuned.notes]
        if rows.empty:
            raise ValueError(f"no shape has a best learning rate: {' '.join(tuned.notes)}")
    row_settings = {key: sweep.config[key] for key in ROW_KEYS}
    table = table_from_frame(rows, name=sweep.config["name"], **row_settings)
    table = Table(table.frame, (*table.notes, *notes), table.name)
    config = with_device({**sweep.config, "logger": sweep.logger}, table)
    analyse_table(table, config, design=planned)
