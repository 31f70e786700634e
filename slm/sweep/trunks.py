"""Several token budgets from one run: under `wsd`, shorter runs equal the longest one until their own decay.

The longest run is the trunk, the others are branches of it. A branch equals, bit for bit, the run of its budget from
step 0 (docs/training.md), so its key and name stay the same; only the run that trains its first steps differs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm.sweep.cells import Cell
from slm.sweep.ledger import outcome_of, progress_of


def check_trunk(schedule: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a schedule of train.py under which runs of different budgets have no steps in common."""
    if schedule["name"] != "wsd":
        raise ValueError(
            f"sweep.budget.trunk=true needs schedule=wsd, and schedule={schedule['name']} differs between budgets from "
            "the first step on: add schedule=wsd to sweep.also, or set sweep.budget.trunk=false"
        )
    if schedule["warmup_steps"] is None:
        raise ValueError(
            "sweep.budget.trunk=true needs a warm-up independent of the budget, and schedule.warmup_steps=null: "
            "add schedule.warmup_steps=20, say, to sweep.also"
        )
    if schedule["decay_fraction"] >= 1:
        raise ValueError(
            f"sweep.budget.trunk=true needs steps before the decay, and schedule.decay_fraction="
            f"{schedule['decay_fraction']} leaves none: choose one below 1, such as 0.2"
        )


def share_trunks(cells: Sequence[Cell], settings: Mapping[str, Any]) -> list[Cell]:
    """The cells of one shape; for each learning rate and seed, the shorter ones become branches of the longest.

    `settings` is the resolved config of the shape. A branch leaves its trunk at the last step before its own decay, and
    that step is added to the trunk's `checkpoint.keep_steps`. A run that decays from its first step is no branch.
    """
    groups: dict[tuple[float, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.impossible is None:
            groups[cell.lr, cell.seed].append(cell)
    batch, decay = settings["train"]["batch_tokens"], settings["schedule"]["decay_fraction"]
    changed: dict[str, Cell] = {}
    for group in groups.values():
        trunk = max(group, key=lambda cell: cell.tokens)
        keep_steps = set(settings["checkpoint"]["keep_steps"])
        for cell in (cell for cell in group if cell.tokens < trunk.tokens):
            step = math.floor((1 - decay) * (cell.tokens // batch))
            if step:
                changed[cell.name] = replace(cell, after=trunk.name, branch_step=step, shared_tokens=step * batch)
                keep_steps.add(step)
        if keep_steps:
            override = f"checkpoint.keep_steps=[{','.join(map(str, sorted(keep_steps)))}]"
            changed[trunk.name] = replace(trunk, overrides=(*trunk.overrides, override))
    return [changed.get(cell.name, cell) for cell in cells]


def without_lost_steps(cells: Sequence[Cell], runs: Path) -> list[Cell]:
    """The cells; a branch trains from step 0 if its trunk passed the branch step without keeping a checkpoint.

    This happens when the trunk had passed that step before the budget was added. `runs` holds the run directories.
    """
    return [
        replace(cell, branch_step=0, shared_tokens=0) if cell.branch_step and _is_lost(cell, runs) else cell
        for cell in cells
    ]


def trunk_kept_step(cell: Cell, runs: Path) -> bool:
    """Whether the trunk has kept the checkpoint from which a branch starts."""
    checkpoint = runs / str(cell.after) / "checkpoints" / f"step-{cell.branch_step:06d}.ckpt"
    return cell.branch_step > 0 and checkpoint.exists()


def _is_lost(cell: Cell, runs: Path) -> bool:
    """Whether the trunk of an unfinished branch has passed the branch step without keeping a checkpoint."""
    is_completed = outcome_of(runs / cell.name).status == "completed"
    trunk = runs / str(cell.after)
    return not is_completed and not trunk_kept_step(cell, runs) and _has_passed(trunk, cell.shared_tokens)


def _has_passed(trunk: Path, tokens: int) -> bool:
    """Whether a trunk has been trained on more than `tokens` tokens."""
    progress = progress_of(trunk)
    return outcome_of(trunk).status == "completed" or (progress is not None and progress.tokens > tokens)
