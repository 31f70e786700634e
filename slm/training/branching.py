"""Start a run at a checkpoint of another one, its trunk, that is the same run up to there.

Notable: what a branch writes equals, to the last bit, what the same run writes from step 0 on. So its trunk may differ
in nothing but budget and schedule, and the learning rates of both must be equal at every step before the checkpoint:
they are computed and compared, whatever the schedules are called.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.composition.budget import BUDGETS, IDENTITY
from slm.composition.schedules import steps_in_common
from slm.training.checkpointing import first_intact, kept_steps, step_of
from slm.training.hardware import Hardware
from slm.training.plan import Plan, make_plan
from slm.training.run_directory import RunDirectory, differences

MAY_DIFFER = ("schedule.", *(f"train.{key}" for key in BUDGETS))


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Where a run starts that does not start at step 0."""

    checkpoint: Path
    step: int
    """Optimizer steps done in it."""
    name: str
    """Of the trunk."""
    trunk: RunDirectory

    def check_corpus(self, corpus: Mapping[str, str]) -> None:
        """Raise `ValueError` if the trunk was trained on a text or tokenizer of other fingerprints than `corpus`."""
        found = list(differences(self.trunk.corpus(), corpus, tuple(corpus)))
        if found:
            raise ValueError(
                f"branch_from={self.trunk.path} was trained on another corpus ({'; '.join(found)}): "
                "branch from a run on this one, or set branch_from=null to start at step 0"
            )

    def copy_metrics(self, folder: RunDirectory) -> None:
        """Make the trunk's rows those of `folder`; the rows after `step` are dropped where the file is opened."""
        partial = folder.metrics.with_name(folder.metrics.name + ".partial")
        shutil.copyfile(self.trunk.metrics, partial)
        os.replace(partial, folder.metrics)


def find_branch(settings: Mapping[str, Any], plan: Plan, hardware: Hardware) -> Branch:
    """The checkpoint that `branch_from` names: a file, or the newest kept one of a run directory that fits.

    Raises `ValueError` unless the trunk is the run of `settings` up to there, its corpus left to `check_corpus`.
    """
    path = Path(settings["branch_from"]).absolute()
    trunk = RunDirectory(path if path.is_dir() else path.parent.parent)
    config = trunk.settings() if path.exists() else None
    if config is None or not trunk.metrics.exists():
        raise ValueError(
            f"branch_from={path} must be a run directory with its config.yaml and metrics.csv, or a checkpoint in one"
        )
    _check_settings(path, config, settings)
    limit = _steps_shared(config, settings, plan, hardware)
    fitting = [file for step, file in kept_steps(trunk.checkpoints) if step <= limit] if path.is_dir() else [path]
    checkpoint = first_intact(fitting)
    step = step_of(checkpoint) if checkpoint else None
    if checkpoint is None or step is None or step > limit:
        raise ValueError(_no_fit(path, limit, step))
    return Branch(checkpoint=checkpoint, step=step, name=config["name"], trunk=trunk)


def _check_settings(path: Path, trunk: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    found = [text for text in differences(trunk, settings, IDENTITY) if not text.startswith(MAY_DIFFER)]
    if found:
        raise ValueError(
            f"branch_from={path} is of a run with other settings ({'; '.join(found[:3])}): "
            "a branch differs from its trunk in budget and schedule alone"
        )


def _steps_shared(trunk: Mapping[str, Any], settings: Mapping[str, Any], plan: Plan, hardware: Hardware) -> int:
    """Steps after which both runs are still in the same state: not the last of either, which ends differently."""
    budget = {key: trunk["train"].get(key) for key in BUDGETS}
    parts = {"schedule": trunk["schedule"], "checkpoint": {}, "train": settings["train"] | budget}
    steps = make_plan({**settings, **parts}, hardware).steps
    rates = steps_in_common(trunk["schedule"], steps, settings["schedule"], plan.steps)
    return min(rates, steps - 1, plan.steps - 1)


def _no_fit(path: Path, limit: int, step: int | None) -> str:
    if limit == 0:
        return (
            f"branch_from={path} shares no step with this run: give both the same schedule.warmup_steps, "
            "which unlike warmup_fraction does not hang on the budget"
        )
    has = "has no whole checkpoint for this run" if step is None else f"is at step {step}"
    return (
        f"branch_from={path} {has}, and the two runs are the same for {limit} steps only: "
        f"branch from a step of at most {limit} (checkpoint.keep_steps=[{limit}] in the run branched from keeps it)"
    )
