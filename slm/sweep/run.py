"""A sweep from its design to its analysis: cells, jobs, table, report.

The directory is that of an analysis, with `runs/` (a run directory a cell), `cells.json` (what was planned),
`sweep.yaml` (the config) and `runs.csv` (every run that has a result). It is named by a hash of the cells, so the same
command goes on where it was stopped; a design that adds cells to those of a directory may be given that `output_dir`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout

from slm.analysis.run import CHOICE, analyse_table, check_analysis
from slm.analysis.runs import COLUMNS
from slm.runtime.command_line import report
from slm.runtime.files import write_json, write_whole
from slm.scaling.settings import Settings
from slm.scaling.tables import Table, table_from_frame
from slm.sweep.cells import Cell, collect_cells
from slm.sweep.config import check_rows
from slm.sweep.design import Design, check_design
from slm.sweep.evaluation import EVALUATE, evaluation_cells, with_evaluations, without_unmeasured
from slm.sweep.forecast import power_of, read_speeds, remember_speeds
from slm.sweep.grid import Plan, make_plan
from slm.sweep.launchers import open_launcher
from slm.sweep.plan import print_plan
from slm.sweep.recipe import check_texts, check_tokenizer, composed, digest
from slm.sweep.trunks import without_lost_steps
from slm.sweep.tuning import tune

if TYPE_CHECKING:
    from slm.sweep.ledger import Outcome

CELLS, LOCK = "cells.json", ".lock"
BEFORE_CELLS = {LOCK, f"{CELLS}.partial"}
"""The files that a sweep killed at its start leaves."""
FEWEST_SIZES = 3
"""A law in N has two parameters or more, and estimating its scatter takes one more size."""
SOME_WRONG = 2
"""Exit code where a cell failed, diverged or is impossible."""


def run_sweep(config: Mapping[str, Any]) -> int:
    """Plan, train and analyse what `conf/sweep.yaml` describes; returns the exit code.

    With `dry_run` the plan is printed and nothing is written. Raises `ValueError`, before any job starts, for invalid
    settings, and `Interrupted` if a signal ended the sweep.
    """
    design = check_design(config["sweep"])
    check_analysis(config)
    check_rows(config, COLUMNS, prefixes=[f"{name}_" for name in design.evaluations])
    plan = make_plan(design)
    folder = Path(config["output_dir"] or _default_folder(design, plan.cells))
    config = {**config, "output_dir": str(folder), "name": config["name"] or design.name}
    if (
        config["analysis"]["size"] == "auto" and design.grid["sizes"] is not None
    ):  # the N by which families were matched
        config["analysis"] = {**config["analysis"], "size": design.grid["size"]}
    if config["drop_worst"] >= sum(cell.impossible is None for cell in plan.cells):
        raise ValueError(f"drop_worst={config['drop_worst']} leaves none of the {len(plan.cells)} runs of this sweep")
    _check_folder(folder, plan.cells)
    plan.cells = without_lost_steps(plan.cells, folder / "runs")
    for one in plan.configs:
        check_texts(one, "sweep.overrides")
        check_tokenizer(one, "sweep.overrides")
    for name, overrides in design.evaluations.items():
        check_texts(composed("evaluate", overrides), f"sweep.evaluation.{name}")
    if config["dry_run"]:
        _print_plan(design, plan, folder, config)
        return 0
    open_launcher(config["launcher"], folder / "runs", jobs=len(plan.cells))  # refuses before a folder is made
    with _held(folder):
        return _carry_out(design, plan, folder, config)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock the directory, which is made if missing. Raises `ValueError` if it is not writable or already locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise ValueError(f"output_dir={folder} is in use by another sweep.py, which trains or analyses in it") from None
    except OSError as error:
        raise ValueError(f"output_dir={folder}: {error.strerror or error}; choose another directory") from None
    with lock:
        yield


def _carry_out(design: Design, plan: Plan, folder: Path, config: Mapping[str, Any]) -> int:
    """Train and analyse in a locked folder; returns the exit code."""
    outcomes = _train(design, plan.cells, folder, config)
    measured = _evaluate(design, plan, outcomes, folder, config)
    wrong, unmeasured = _without_result(outcomes, "cells"), _without_result(measured, "evaluations")
    try:
        _analyse(design, plan, outcomes, [*wrong, *unmeasured], folder, config)
    except ValueError as error:
        if not wrong and not unmeasured:
            raise
        report(error)
    for lines in (wrong, unmeasured):
        if lines:
            print(f"\n{lines[0]}:", *lines[1:], sep="\n- ", file=sys.stderr)
    if any(outcome.status in ("failed", "diverged") for outcome in [*outcomes.values(), *measured.values()]):
        print("retry=failed tries the failed and diverged ones again.", file=sys.stderr)
    return SOME_WRONG if wrong or unmeasured else 0


def _without_result(outcomes: Mapping[str, Outcome], what: str) -> list[str]:
    """A heading with the number of those that did not complete, and a line for each; empty if all completed."""
    wrong = [f"{name}: {_in_words(outcome)}" for name, outcome in outcomes.items() if outcome.status != "completed"]
    return [f"{len(wrong)} of {len(outcomes)} {what} have no result", *wrong] if wrong else []


def _in_words(outcome: Outcome) -> str:
    why = str(outcome.why)
    return why if why.startswith(outcome.status) else f"{outcome.status}, {why}"


def _default_folder(design: Design, cells: Sequence[Cell]) -> str:
    return f"sweeps/{design.name}-{digest(sorted(cell.key for cell in cells))[:8]}"


def _check_folder(folder: Path, cells: Sequence[Cell]) -> None:
    """Raise `ValueError` unless the folder is empty or holds a sweep of a subset of these cells."""
    try:
        if not folder.is_dir() or {path.name for path in folder.iterdir()} <= BEFORE_CELLS:
            return
        before = json.loads((folder / CELLS).read_text(encoding="utf-8"))
        lost = [cell["name"] for cell in before if cell["key"] not in {cell.key for cell in cells}]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"output_dir={folder} holds files that are not a sweep's: choose another output_dir") from None
    if lost:
        raise ValueError(
            f"output_dir={folder} holds another design, with cells that this one lacks ({', '.join(lost[:3])}"
            f"{', ...' if len(lost) > 3 else ''}): choose another output_dir, or give that design"
        )


def _print_plan(design: Design, plan: Plan, folder: Path, config: Mapping[str, Any]) -> None:
    analysis = Settings.from_dict(config["analysis"])
    jobs = sum(cell.impossible is None for cell in plan.cells)
    seeds = len(design.seeds)
    print_plan(
        design,
        plan.cells,
        plan.notes,
        folder=folder,
        slots=min(jobs, open_launcher(config["launcher"], folder / "runs", jobs=jobs).width()),
        speeds=read_speeds(plan.cache_dir, design.assume["flops_per_second"]),
        power=power_of(
            plan.cells,
            size="params_total" if analysis.size == "auto" else analysis.size,
            seeds=seeds,
            assume=design.assume,
            power=analysis.power,
            level=analysis.level,
        ),
        chance=analysis.power,
    )


def _train(design: Design, cells: Sequence[Cell], folder: Path, config: Mapping[str, Any]) -> Mapping[str, Outcome]:
    from slm.sweep.execute import execute
    from slm.sweep.live import Board

    write_json(folder / CELLS, [dataclasses.asdict(cell) for cell in cells])
    write_whole(folder / "sweep.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    with Board() as board:
        return execute(
            cells,
            folder / "runs",
            config["launcher"],
            retry=config["retry"],
            common=_logging(design, folder, config["logger"]),
            show=board.show,
        )


def _evaluate(
    design: Design, plan: Plan, outcomes: Mapping[str, Outcome], folder: Path, config: Mapping[str, Any]
) -> Mapping[str, Outcome]:
    """Measure every completed run that is not measured yet; returns the outcome of each evaluation."""
    from slm.sweep.execute import execute
    from slm.sweep.live import Board

    done = [cell for cell in plan.cells if outcomes[cell.name].status == "completed"]
    cells = evaluation_cells(done, design.evaluations, folder / "runs", plan.cache_dir)
    if not cells:
        return {}
    print(f"evaluating {len(done)} runs on {', '.join(design.evaluations)}", file=sys.stderr, flush=True)
    with Board() as board:
        return execute(
            cells, folder / "runs", config["launcher"], retry=config["retry"], script=EVALUATE, show=board.show
        )


def _logging(design: Design, folder: Path, logger: Mapping[str, Any]) -> list[str]:
    """Overrides of train.py that put the runs of a sweep in one group of the tracker, tagged with the design's name."""
    tags = [design.name, *logger["tags"]]
    changes = {**logger, "group": group_of(folder, logger), "job_type": "train", "tags": list(dict.fromkeys(tags))}
    # JSON's quotes and null are Hydra's too.
    return [f"logger.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]


def group_of(folder: Path, logger: Mapping[str, Any]) -> str:
    """The group of a sweep's runs and analysis in the tracker."""
    return str(logger["group"] or folder.resolve().name)


def _analyse(
    design: Design,
    plan: Plan,
    outcomes: Mapping[str, Outcome],
    wrong: Sequence[str],
    folder: Path,
    config: Mapping[str, Any],
) -> None:
    trained = collect_cells(folder / "runs", plan.cells, design.lr_rule)
    runs = with_evaluations(trained, design.evaluations, folder / "runs")
    write_whole(folder / "runs.csv", runs.to_csv(index=False))
    planned = pd.DataFrame([_planned(cell, outcomes[cell.name]) for cell in plan.cells])
    write_whole(folder / "design.csv", planned.to_csv(index=False))
    done = runs[runs["status"] == "completed"] if len(runs) else runs
    if done.empty:
        raise ValueError(f"no cell of sweep={design.name} completed, so there is nothing to analyse")
    remember_speeds(plan.cache_dir, done.to_dict("records"))
    tuned_rates = design.lr["rule"] == "tuned"
    if tuned_rates:
        done = done[list(trained)]  # evaluations are of the trained rates, not of an optimum between them
    done, left_out = without_unmeasured(done, config["columns"])
    notes = [*(f"{one}." for one in wrong), *left_out]
    if tuned_rates:
        given = {cell.family: cell.lr for cell in plan.cells if cell.lr_factor == 1 and not cell.impossible}
        tuned = tune(done, given)
        write_whole(folder / "tuning.csv", tuned.optima.to_csv(index=False))
        print("", *tuned.lines, sep="\n")
        done, notes = tuned.best, [*notes, *tuned.notes]
        if done.empty:
            raise ValueError(f"no shape has a best learning rate: {' '.join(tuned.notes)}")
        if done["budget"].nunique() == 1 and done.groupby("family")["params_total"].nunique().max() < FEWEST_SIZES:
            print(f"No family has {FEWEST_SIZES} sizes, so no law is fitted: {folder / 'tuning.csv'} has the optima.")
            return
    how = {key: config[key] for key in CHOICE}
    table = table_from_frame(done, name=config["name"], **how)
    grouped = {**config["logger"], "group": group_of(folder, config["logger"])}
    analyse_table(Table(table.frame, (*table.notes, *notes), table.name), {**config, "logger": grouped}, design=planned)


def _planned(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    """A row of design.csv."""
    facts = dataclasses.asdict(cell)
    return {key: facts[key] for key in facts if key not in ("overrides", "impossible")} | dataclasses.asdict(outcome)
