"""Start a run (the branch) at a checkpoint of another run (its trunk) that is identical up to that checkpoint.

A branch writes the same files as if it had started at step 0 (on one CPU, bit for bit). Its settings may therefore
differ from the trunk's only in budget and schedule, and at every step before the checkpoint both runs must have the
same learning rate. These rates are computed and compared, because schedules with different names can agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.composition.budget import BUDGETS, IDENTITY_KEYS, shape_and_steps
from slm.composition.schedules import count_common_steps
from slm.data.mixture import count_common_steps as count_text_steps
from slm.training.checkpointing import checkpoint_step, first_intact, resumable_checkpoints, step_checkpoints
from slm.training.run_directory import EXTENSION, RunDirectory, differences


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The checkpoint of another run, the trunk, at which a run starts."""

    checkpoint: Path
    step: int  # optimizer steps done at the checkpoint
    trunk: RunDirectory
    trunk_name: str

    def check_corpus(self, fingerprints: Mapping[str, str]) -> None:
        """Raise `ValueError` if the trunk was trained on a text or tokenizer with other `fingerprints`."""
        if clauses := list(differences(self.trunk.corpus(), fingerprints, tuple(fingerprints))):
            raise ValueError(
                f"branch_from={self.trunk.path} was trained on another corpus ({'; '.join(clauses)}): "
                "branch from a run on this corpus, or set branch_from=null to start at step 0"
            )


def find_branch(settings: Mapping[str, Any], *, steps: int, devices: int) -> Branch | None:
    """Find the checkpoint at which a run of `steps` steps starts.

    `branch_from` is the path of that checkpoint or of the trunk's directory. For a directory, the checkpoint is the
    latest one kept by `checkpoint.keep_steps` at which both runs are still identical. Returns None if `branch_from` is
    null or the run has checkpoints of its own. Raises `ValueError` if the runs differ before the checkpoint. The
    corpora are compared later, by `Branch.check_corpus`.
    """
    if settings.get("branch_from") is None or resumable_checkpoints(RunDirectory(settings["output_dir"]).checkpoints):
        return None
    path = Path(settings["branch_from"]).absolute()
    trunk = RunDirectory(path if path.is_dir() else path.parent.parent)  # a file is TRUNK/checkpoints/FILE
    trunk_settings = trunk.settings() if path.exists() else None
    if trunk_settings is None or not trunk.metrics.exists():
        raise ValueError(f"branch_from={path} must be a run with config.yaml and metrics.csv, or a checkpoint of one")
    clauses = differences(trunk_settings, settings, IDENTITY_KEYS)  # each begins with a key
    if forbidden := [clause for clause in clauses if not clause.startswith(EXTENSION)]:
        raise ValueError(
            f"branch_from={path} is a run with other settings ({'; '.join(forbidden[:3])}): "
            "a branch may differ from its trunk only in budget and schedule"
        )
    shared_steps = _count_shared_steps(trunk_settings, settings, steps, devices)
    shared_checkpoints = [file for step, file in step_checkpoints(trunk.checkpoints) if step <= shared_steps]
    checkpoint = first_intact(shared_checkpoints if path.is_dir() else [path])
    step = checkpoint_step(checkpoint) if checkpoint else None
    if checkpoint is None or step is None or step > shared_steps:
        raise ValueError(_refusal(path, shared_steps, step))
    return Branch(checkpoint=checkpoint, step=step, trunk=trunk, trunk_name=trunk_settings["name"])


def _count_shared_steps(trunk: Mapping[str, Any], settings: Mapping[str, Any], steps: int, devices: int) -> int:
    """Count the steps from 0 that are the same in both runs. Last steps do not count: their validation is longer."""
    # Apart from budget and schedule, the trunk has this run's settings. The group `checkpoint` is
    # left out, because this run's keep_steps may exceed the trunk's number of steps and would then be rejected.
    train = settings["train"] | {key: trunk["train"].get(key) for key in BUDGETS}
    trunk_settings = {**settings, "train": train, "schedule": trunk["schedule"], "checkpoint": {}}
    _, trunk_steps = shape_and_steps(trunk_settings, devices=devices)
    steps_with_equal_rate = count_common_steps(trunk["schedule"], trunk_steps, settings["schedule"], steps)
    steps_with_equal_text = count_text_steps(settings["data"], trunk_steps, steps)
    return min(steps_with_equal_rate, steps_with_equal_text, trunk_steps - 1, steps - 1)


def _refusal(path: Path, shared_steps: int, step: int | None) -> str:
    if shared_steps == 0:
        return (
            f"branch_from={path} shares no step with this run: give both the same schedule.warmup_steps, "
            "which unlike warmup_fraction does not depend on the budget"
        )
    problem = "has no intact checkpoint for this run" if step is None else f"is at step {step}"
    return (
        f"branch_from={path} {problem}, and only the first {shared_steps} steps of the two runs are the same: branch "
        f"from a step of at most {shared_steps} (the trunk keeps it with checkpoint.keep_steps=[{shared_steps}])"
    )
