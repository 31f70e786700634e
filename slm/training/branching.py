"""Start a run at a checkpoint of another run, its trunk, which is the same run up to there.

A branch writes, to the last bit, what the same run writes from step 0 on. So its trunk may differ only in budget and
schedule, and the learning rates of both must be equal at every step before the checkpoint: they are computed and
compared, whatever the schedules are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.composition.budget import BUDGETS, IDENTITY, shape_and_steps
from slm.composition.schedules import steps_in_common
from slm.runtime.files import write_whole
from slm.training.checkpointing import first_intact, kept_steps, resumable_checkpoints, step_of
from slm.training.plan import Branch, Plan
from slm.training.run_directory import RunDirectory, differences

MAY_DIFFER = ("schedule.", *(f"train.{key}" for key in BUDGETS))


def find_branch(plan: Plan) -> Branch | None:
    """The checkpoint that `branch_from` names: a file, or the newest kept one of a run directory that fits.

    None if `branch_from` is null or the run has checkpoints of its own. Raises `ValueError` unless the trunk is the run
    of this plan up to there; `check_trunk_corpus` compares the corpora.
    """
    settings = plan.settings
    if settings.get("branch_from") is None or resumable_checkpoints(plan.folder.checkpoints):
        return None
    path = Path(settings["branch_from"]).absolute()
    trunk = RunDirectory(path if path.is_dir() else path.parent.parent)
    config = trunk.settings() if path.exists() else None
    if config is None or not trunk.metrics.exists():
        raise ValueError(
            f"branch_from={path} must be a run directory with its config.yaml and metrics.csv, or a checkpoint in one"
        )
    different = [text for text in differences(config, settings, IDENTITY) if not text.startswith(MAY_DIFFER)]
    if different:
        raise ValueError(
            f"branch_from={path} is a run with other settings ({'; '.join(different[:3])}): "
            "a branch may differ from its trunk only in budget and schedule"
        )
    limit = _steps_in_common(config, plan)
    files = [file for step, file in kept_steps(trunk.checkpoints) if step <= limit] if path.is_dir() else [path]
    checkpoint = first_intact(files)
    step = step_of(checkpoint) if checkpoint else None
    if checkpoint is None or step is None or step > limit:
        raise ValueError(_refusal(path, limit, step))
    return Branch(checkpoint=checkpoint, step=step, trunk=trunk, trunk_name=config["name"])


def _steps_in_common(trunk: Mapping[str, Any], plan: Plan) -> int:
    """Steps after which both runs are in the same state. The last step of either differs: it scores more tokens."""
    train = plan.settings["train"] | {key: trunk["train"].get(key) for key in BUDGETS}
    config = {**plan.settings, "train": train, "schedule": trunk["schedule"], "checkpoint": {}}
    _, steps = shape_and_steps(config, devices=plan.hardware.world_size)
    same_rates = steps_in_common(trunk["schedule"], steps, plan.settings["schedule"], plan.steps)
    return min(same_rates, steps - 1, plan.steps - 1)


def _refusal(path: Path, limit: int, step: int | None) -> str:
    if limit == 0:
        return (
            f"branch_from={path} shares no step with this run: give both the same schedule.warmup_steps, "
            "which unlike warmup_fraction does not depend on the budget"
        )
    problem = "has no intact checkpoint for this run" if step is None else f"is at step {step}"
    return (
        f"branch_from={path} {problem}, and the two runs are the same for {limit} steps only: "
        f"branch from a step of at most {limit} (checkpoint.keep_steps=[{limit}] in the run branched from keeps it)"
    )


def check_trunk_corpus(branch: Branch, fingerprints: Mapping[str, str]) -> None:
    """Raise `ValueError` if the trunk was trained on a text or tokenizer with other `fingerprints`."""
    different = list(differences(branch.trunk.corpus(), fingerprints, tuple(fingerprints)))
    if different:
        raise ValueError(
            f"branch_from={branch.trunk.path} was trained on another corpus ({'; '.join(different)}): "
            "branch from a run on this one, or set branch_from=null to start at step 0"
        )


def copy_metrics(branch: Branch, folder: RunDirectory) -> None:
    """Copy the trunk's rows to `folder`. When the tracker opens them, it drops those after the branch's step."""
    write_whole(folder.metrics, branch.trunk.metrics.read_bytes())
