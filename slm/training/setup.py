"""From a composed config to a run that is planned on this machine, everything refused on the way that can be.

`checked` imports no torch, so that a mistake takes a second; `set_up` imports it, but not Lightning.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from slm.composition.budget import shape_and_steps
from slm.composition.keys import check_keys
from slm.composition.settings import check_settings
from slm.data.corpus import check_sources
from slm.runtime.extensions import load_extensions
from slm.runtime.settings import plain_settings
from slm.tracking import check_logger
from slm.training.run_directory import RunDirectory
from slm.training.world import enter, find_world, is_first_process

if TYPE_CHECKING:
    from slm.training.branching import Branch
    from slm.training.hardware import Hardware
    from slm.training.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run whose config is known to be good."""

    settings: Mapping[str, Any]
    plan: Plan
    hardware: Hardware
    folder: RunDirectory
    cache_dir: Path
    branch: Branch | None
    """Where the run starts, if not at step 0 or at a checkpoint of its own."""


def checked(config: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a composed `conf/train.yaml`; `overrides` are those of the command line, for messages.

    Raises `ValueError` for what is wrong on any machine: keys that nobody reads, values of a wrong kind, shapes and
    budgets that do not work out, texts and tokenizers that are not there, directories of other runs.
    """
    settings = plain_settings(config)
    check_keys(settings, "train", overrides)
    settings["extensions"] = load_extensions(settings)
    check_settings(settings)
    shape_and_steps(settings)
    check_logger(settings["logger"])
    RunDirectory(settings["output_dir"]).check(settings)
    check_sources(settings["data"], settings["tokenizer"])
    return settings


def set_up(settings: Mapping[str, Any], *, alone: bool = True) -> Run:
    """Plan the run of `checked` settings on this machine, and say so.

    `alone` is false for one of several runs in this process (Hydra's -m): then it uses one device. Raises `ValueError`
    for what this machine, or the environment that the run was started in, cannot do.
    """
    from slm.training.announce import plan_lines
    from slm.training.hardware import resolve_hardware
    from slm.training.plan import make_plan

    hardware = resolve_hardware(settings["trainer"])
    if not alone and hardware.world_size > 1:
        raise ValueError(
            f"trainer.devices={hardware.devices} with -m: each of several devices would repeat the whole "
            "multirun; give one device, or start single runs"
        )
    enter(find_world(os.environ, devices=hardware.devices, num_nodes=hardware.num_nodes))
    plan, folder = make_plan(settings, hardware), RunDirectory(settings["output_dir"])
    run = Run(
        settings=settings,
        plan=plan,
        hardware=hardware,
        folder=folder,
        cache_dir=Path(os.path.expanduser(settings["cache_dir"])),
        branch=_branch(settings, plan, hardware, folder),
    )
    say(*plan_lines(settings, plan, hardware))
    if run.branch is not None:
        say(f"branching    from step {run.branch.step} of {run.branch.name} ({run.branch.checkpoint})")
    if settings["dry_run"] == "plan":
        say("dry run      nothing was measured or written: dry_run=true measures speed and duration too")
    return run


def say(*lines: str) -> None:
    """Print lines once, whatever the number of processes."""
    if is_first_process():
        print(*lines, sep="\n", flush=True)


def _branch(settings: Mapping[str, Any], plan: Plan, hardware: Hardware, folder: RunDirectory) -> Branch | None:
    if settings.get("branch_from") is None:
        return None
    from slm.training.branching import find_branch
    from slm.training.checkpointing import to_continue_from

    return None if to_continue_from(folder.checkpoints) else find_branch(settings, plan, hardware)
