"""A cell is one training run of a sweep. A trunk is a cell from whose checkpoints other cells, its branches, start.

Under the schedule `wsd`, runs that differ only in their token budget are equal until the shorter run begins to decay.
So the run with the largest budget is the trunk, and the others skip the shared steps. A branch has the same result as
a run from step 0, bit for bit on one CPU (docs/training.md), so both have the same key and name.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.data.mixture import count_common_steps
from slm.sweep.ledger import read_outcome, read_progress

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run of a sweep."""

    name: str
    """Name of the run's folder under DIR/runs; it ends with the first 8 characters of `key`."""
    key: str
    """sha256 (hex) of the resolved settings that determine the run (`recipe.run_key`)."""
    overrides: tuple[str, ...] = ()
    """Overrides of train.py, to which `execute` adds the paths, the logger and the inherited overrides."""
    family: str
    width: int = 0
    depth: int = 0
    seed: int = 0
    tokens: int = 0
    lr: float = 0.0
    lr_factor: float = 1.0
    """`lr` divided by the learning rate that the design gives."""
    params_total: int = 0
    params_non_embedding: int = 0
    flops: float = 0.0
    """Exact training FLOPs of the run, counted from step 0."""
    budget: str | None = None
    """Label of the token budget."""
    impossible: str | None = None
    """Why this cell cannot be trained: the message of the rule that refused it. All counts of such a cell are 0."""
    trunk: str | None = None
    """Name of the cell from whose checkpoint this branch starts; None if this cell is not a branch."""
    branch_step: int = 0
    """Step of the trunk at which a branch begins; 0 for a run from step 0."""
    shared_tokens: int = 0
    """The part of `tokens` before `branch_step`, on which only the trunk is trained."""

    @property
    def is_possible(self) -> bool:
        """Whether this cell can be trained; otherwise `impossible` says why not."""
        return self.impossible is None

    @property
    def flops_trained(self) -> float:
        """The part of `flops` that this run itself computes; a branch skips the steps that it shares."""
        return self.flops * (1 - self.shared_tokens / self.tokens) if self.shared_tokens > 0 else self.flops


def collect_cells(directory: Path, cells: Iterable[Cell], lr_rule: Callable[[str], str]) -> "pd.DataFrame":
    """One row (`slm.analysis.runs`) for each cell that has a result, with its `budget`, `lr_rule` and `trunk`.

    `trunk` is the planned trunk, even if the branch had to be trained from step 0, which gives the same result.
    """
    from slm.analysis.runs import row_of_run, table_of_runs  # imported here, because it imports pandas

    rows = []
    for cell in cells:
        path = directory / cell.name / "result.json"
        if path.exists():
            planned = {"budget": cell.budget, "lr_rule": lr_rule(cell.family), "trunk": cell.trunk}
            rows.append(row_of_run(path, directory) | planned)
    return table_of_runs(rows)


def check_trunk(schedule: Mapping[str, Any]) -> None:
    """Raise `ValueError` if runs of different budgets have no steps in common under a `schedule` of train.py."""
    if schedule["name"] != "wsd":
        raise ValueError(
            f"sweep.budget.trunk=true needs schedule=wsd, because schedule={schedule['name']} differs between budgets "
            "from the first step on: add schedule=wsd to sweep.also, or set sweep.budget.trunk=false"
        )
    if schedule["warmup_steps"] is None:
        raise ValueError(
            "sweep.budget.trunk=true needs a warm-up independent of the budget, but schedule.warmup_steps=null: "
            "add schedule.warmup_steps=20, say, to sweep.also"
        )
    if schedule["decay_fraction"] >= 1:
        raise ValueError(
            f"sweep.budget.trunk=true needs steps before the decay, but schedule.decay_fraction="
            f"{schedule['decay_fraction']} leaves none: choose a fraction below 1, such as 0.2"
        )


def share_trunks(cells: Sequence[Cell], settings: Mapping[str, Any]) -> list[Cell]:
    """Among the `cells` of one shape, turn runs into branches of the longest with the same learning rate and seed.

    `settings` is the resolved config of the shape. A branch starts at the last step before the branch's decay, and this
    step is added to the trunk's `checkpoint.keep_steps`. A run that decays from its first step is not a branch.
    """
    groups: dict[tuple[float, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.is_possible:
            groups[cell.lr, cell.seed].append(cell)
    batch_tokens = settings["train"]["batch_tokens"]
    decay_fraction = settings["schedule"]["decay_fraction"]
    changed: dict[str, Cell] = {}
    for group in groups.values():
        trunk = max(group, key=lambda cell: cell.tokens)
        keep_steps = set(settings["checkpoint"]["keep_steps"])
        for cell in group:
            num_steps = cell.tokens // batch_tokens
            branch_step = math.floor((1 - decay_fraction) * num_steps)
            branch_step = min(
                branch_step, count_common_steps(settings["data"], num_steps, trunk.tokens // batch_tokens)
            )
            if cell.tokens < trunk.tokens and branch_step > 0:
                shared = branch_step * batch_tokens
                changed[cell.name] = replace(cell, trunk=trunk.name, branch_step=branch_step, shared_tokens=shared)
                keep_steps.add(branch_step)
        if keep_steps:
            override = f"checkpoint.keep_steps=[{','.join(map(str, sorted(keep_steps)))}]"
            changed[trunk.name] = replace(trunk, overrides=(*trunk.overrides, override))
    return [changed.get(cell.name, cell) for cell in cells]


def reset_branches_added_too_late(cells: Sequence[Cell], runs: Path) -> list[Cell]:
    """Let a branch train from step 0 if its trunk passed the branch step before the design had this branch."""
    return [
        replace(cell, branch_step=0, shared_tokens=0) if _was_added_too_late(cell, runs) else cell for cell in cells
    ]


def has_branch_checkpoint(branch: Cell, runs: Path) -> bool:
    """Whether the trunk has kept the checkpoint from which `branch` starts."""
    checkpoint = runs / str(branch.trunk) / "checkpoints" / f"step-{branch.branch_step:06d}.ckpt"
    return branch.branch_step > 0 and checkpoint.exists()


def _was_added_too_late(cell: Cell, runs: Path) -> bool:
    """Whether the cell is an unfinished branch whose trunk passed the branch step without keeping a checkpoint."""
    folder, trunk = runs / cell.name, runs / str(cell.trunk)
    if cell.branch_step == 0 or read_outcome(folder).status == "completed" or has_branch_checkpoint(cell, runs):
        return False
    progress = read_progress(trunk)
    tokens = progress.tokens if progress else 0
    return read_outcome(trunk).status == "completed" or tokens > cell.shared_tokens
