"""A sweep from its design to its analysis: cells, jobs, table, report.

The directory is that of an analysis, with `runs/` (one run directory per cell), `cells.json` (the planned cells),
`sweep.yaml` (the config) and `runs.csv` (every run that has a result). Its name has a hash of the cells, so the same
command continues a stopped sweep. A design that adds cells to those of a directory may be given that `output_dir`.
"""

from __future__ import annotations

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
from slm.sweep.cells import Cell, collect_cells, without_lost_steps
from slm.sweep.config import check_column_names
from slm.sweep.design import Design, check_design
from slm.sweep.evaluation import EVALUATE, evaluation_cells, with_evaluations, without_unmeasured
from slm.sweep.execute import execute
from slm.sweep.forecast import remember_speeds
from slm.sweep.grid import Plan, make_plan
from slm.sweep.job import environment_of_a_job
from slm.sweep.launchers import open_launcher
from slm.sweep.launchers.gpus import Together, measure_together, visible_gpus, with_jobs_per_gpu
from slm.sweep.launchers.local import slot_environments
from slm.sweep.ledger import Outcome
from slm.sweep.live import Board
from slm.sweep.plan import print_plan
from slm.sweep.recipe import check_inputs, composed, digest
from slm.sweep.tuning import tune

CELLS = "cells.json"
MIN_SIZES = 3
"""A law in N has at least two parameters, and estimating its scatter takes one more size."""
INCOMPLETE = 2
"""Exit code if a cell failed, diverged or is impossible."""


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its design, its plan, its directory and the settings of sweep.yaml."""

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
        """The logger settings with the group of all runs and of the analysis."""
        logger = self.config["logger"]
        return {**logger, "group": str(logger["group"] or self.folder.resolve().name)}


def run_sweep(config: Mapping[str, Any]) -> int:
    """Plan, train and analyse what `conf/sweep.yaml` describes; returns the exit code.

    With `dry_run` the plan is printed and nothing is written. Raises `ValueError`, before any job starts, for invalid
    settings, and `Interrupted` if a signal ended the sweep.
    """
    sweep = _checked(config)
    jobs = sum(cell.impossible is None for cell in sweep.plan.cells)
    launcher = open_launcher(config["launcher"], sweep.runs, jobs=jobs)  # before a folder is made, since it may raise
    if config["dry_run"]:
        analysis, slots = Settings.from_dict(sweep.config["analysis"]), min(jobs, launcher.width())
        print_plan(sweep.design, sweep.plan, analysis, folder=sweep.folder, slots=slots)
        return 0
    with locked(sweep.folder, "sweep.py"):
        trained = _train(sweep)
        evaluated = _evaluate(sweep, trained)
        return _report(sweep, trained, evaluated)


def _checked(config: Mapping[str, Any]) -> Sweep:
    design = check_design(config["sweep"])
    check_analysis(config)
    check_column_names(config, COLUMNS, prefixes=[f"{name}_" for name in design.evaluations])
    plan = make_plan(design)
    key = digest(sorted(cell.key for cell in plan.cells))[:8]
    folder = Path(config["output_dir"] or f"sweeps/{design.name}-{key}")
    config = {**config, "output_dir": str(folder), "name": config["name"] or design.name}
    if config["analysis"]["size"] == "auto" and design.grid["sizes"] is not None:
        # The N by which families were matched.
        config["analysis"] = {**config["analysis"], "size": design.grid["size"]}
    if config["drop_worst"] >= sum(cell.impossible is None for cell in plan.cells):
        raise ValueError(f"drop_worst={config['drop_worst']} leaves none of the {len(plan.cells)} runs of this sweep")
    _check_folder(folder, plan.cells)
    plan.cells = without_lost_steps(plan.cells, folder / "runs")
    for family in plan.configs:
        check_inputs(family, "sweep.overrides")
    for name, overrides in design.evaluations.items():
        check_inputs(composed("evaluate", overrides), f"sweep.evaluation.{name}")
    return Sweep(design, plan, folder, config)


def _check_folder(folder: Path, cells: Sequence[Cell]) -> None:
    """Raise `ValueError` unless the folder is empty or holds a sweep of a subset of these cells."""
    try:
        names = os.listdir(folder) if os.path.isdir(folder) else []
        if all(name == LOCK or (name.startswith(CELLS) and name.endswith(".partial")) for name in names):
            return  # new, or of a sweep that was killed at its start
        before = json.loads((folder / CELLS).read_text(encoding="utf-8"))
        missing = [cell["name"] for cell in before if cell["key"] not in {cell.key for cell in cells}]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"output_dir={folder} holds files that are not a sweep's: choose another output_dir") from None
    if missing:
        raise ValueError(
            f"output_dir={folder} holds another design, with cells that this one lacks ({shortlist(missing, 3)}): "
            "choose another output_dir, or give that design"
        )


def _train(sweep: Sweep) -> Mapping[str, Outcome]:
    write_json(sweep.folder / CELLS, [dataclasses.asdict(cell) for cell in sweep.plan.cells])
    write_atomically(sweep.folder / "sweep.yaml", yaml.safe_dump(dict(sweep.config), sort_keys=False))
    tags = list(dict.fromkeys([sweep.design.name, *sweep.config["logger"]["tags"]]))
    logger = {**sweep.logger, "job_type": "train", "tags": tags}
    # JSON's quotes and null are Hydra's too.
    common = [f"logger.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in logger.items()]
    return _execute(sweep, sweep.plan.cells, launcher=_shared_gpus(sweep), common=common)


def _shared_gpus(sweep: Sweep) -> dict[str, Any]:
    """The launcher group with the number of jobs that share a GPU, measured with the cell of the most FLOPs a token."""
    launcher, gpus = sweep.config["launcher"], visible_gpus()
    possible = [cell for cell in sweep.plan.cells if cell.impossible is None]
    largest = max(possible, key=lambda cell: cell.flops / cell.tokens)

    def measure(jobs: int) -> Together | None:
        config = composed("train", largest.overrides)
        config.update(name=largest.name, output_dir="runs")  # placeholders: resolvers use the choices of a script
        asked = {**launcher, "jobs_per_gpu": jobs, "slots": jobs * len(gpus)}
        environment = slot_environments(asked, jobs=jobs * len(gpus), gpus=gpus)[0]
        return measure_together(plain_settings(config), {**environment_of_a_job(), **environment}, jobs)

    return with_jobs_per_gpu(launcher, sweep.runs, name=largest.name, jobs=len(possible), measure=measure)


def _evaluate(sweep: Sweep, trained: Mapping[str, Outcome]) -> Mapping[str, Outcome]:
    """Evaluate every completed run that is not evaluated yet; returns the outcome of each evaluation."""
    done = [cell for cell in sweep.plan.cells if trained[cell.name].status == "completed"]
    cells = evaluation_cells(done, sweep.design.evaluations, sweep.runs, sweep.plan.cache_dir)
    if not cells:
        return {}
    say(f"evaluating {plural(len(done), 'run')} on {', '.join(sweep.design.evaluations)}")
    # Without a measurement of their memory, and since speeds must not be measured on a shared GPU, `auto` is one a GPU.
    return _execute(sweep, cells, launcher=sweep.config["launcher"], script=EVALUATE)


def _execute(
    sweep: Sweep, cells: Sequence[Cell], *, launcher: Mapping[str, Any], **options: Any
) -> Mapping[str, Outcome]:
    with Board() as board:
        return execute(cells, sweep.runs, launcher, retry=sweep.config["retry"], show=board.show, **options)


def _report(sweep: Sweep, trained: Mapping[str, Outcome], evaluated: Mapping[str, Outcome]) -> int:
    """Analyse the completed runs and list those without a result; returns the exit code."""
    incomplete = [lines for lines in (_incomplete(trained, "cells"), _incomplete(evaluated, "evaluations")) if lines]
    try:
        _analyse(sweep, trained, [f"{line}." for lines in incomplete for line in lines])
    except ValueError as error:
        if not incomplete:
            raise
        report(error)
    for heading, *lines in incomplete:
        print(f"\n{heading}:", *lines, sep="\n- ", file=sys.stderr)
    if any(outcome.status in ("failed", "diverged") for outcome in [*trained.values(), *evaluated.values()]):
        say("retry=failed tries failed and diverged ones again.")
    return INCOMPLETE if incomplete else 0


def _incomplete(outcomes: Mapping[str, Outcome], things: str) -> list[str]:
    """A heading with the number of those that did not complete, and a line for each; empty if all completed."""
    lines = []
    for name, outcome in outcomes.items():
        if outcome.status != "completed":
            why = str(outcome.why)
            lines.append(f"{name}: {why if why.startswith(outcome.status) else f'{outcome.status}, {why}'}")
    return [f"{len(lines)} of {len(outcomes)} {things} have no result", *lines] if lines else []


def _analyse(sweep: Sweep, outcomes: Mapping[str, Outcome], notes: Sequence[str]) -> None:
    design, cells, folder = sweep.design, sweep.plan.cells, sweep.folder
    trained = collect_cells(sweep.runs, cells, design.lr_rule)
    runs = with_evaluations(trained, design.evaluations, sweep.runs)
    write_atomically(folder / "runs.csv", runs.to_csv(index=False))
    planned = pd.DataFrame([dataclasses.asdict(cell) | dataclasses.asdict(outcomes[cell.name]) for cell in cells])
    planned = planned.drop(columns=["overrides", "impossible"])
    write_atomically(folder / "design.csv", planned.to_csv(index=False))
    done = runs[runs["status"] == "completed"] if len(runs) else runs
    if done.empty:
        raise ValueError(f"no cell of sweep={design.name} completed, so there is nothing to analyse")
    remember_speeds(sweep.plan.cache_dir, done.to_dict("records"))
    is_tuned = design.lr["rule"] == "tuned"
    if is_tuned:
        done = done[list(trained)]  # evaluations are of the trained rates, not of an optimum between them
    done, left_out = without_unmeasured(done, sweep.config["columns"])
    notes = [*notes, *left_out]
    if is_tuned:
        tuned = tune(done, {cell.family: cell.lr for cell in cells if cell.lr_factor == 1 and not cell.impossible})
        write_atomically(folder / "tuning.csv", tuned.optima.to_csv(index=False))
        print("", *tuned.lines, sep="\n")
        done, notes = tuned.best, [*notes, *tuned.notes]
        if done.empty:
            raise ValueError(f"no shape has a best learning rate: {' '.join(tuned.notes)}")
        if done["budget"].nunique() == 1 and done.groupby("family")["params_total"].nunique().max() < MIN_SIZES:
            print(f"No family has {MIN_SIZES} sizes, so no law is fitted: {folder / 'tuning.csv'} has the optima.")
            return
    choice = {key: sweep.config[key] for key in ROW_KEYS}
    table = table_from_frame(done, name=sweep.config["name"], **choice)
    table = Table(table.frame, (*table.notes, *notes), table.name)
    analyse_table(table, {**sweep.config, "logger": sweep.logger}, design=planned)
