"""From a composed config to the plan of a run. Wrong settings are refused here, before anything is written.

`checked_settings` imports no torch, so that a mistake is reported within a second; `set_up` imports torch, but not
Lightning.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from slm.composition.budget import shape_and_steps
from slm.composition.keys import check_keys
from slm.composition.settings import check_settings
from slm.data.corpus import check_sources
from slm.runtime.extensions import load_extensions
from slm.runtime.settings import plain_settings
from slm.tracking import check_logger
from slm.training.process import enter, find_world, say
from slm.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from slm.training.plan import Plan


def checked_settings(config: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a composed `conf/train.yaml` as plain dicts and lists, after all checks that need no hardware.

    `overrides` are those of the command line, which messages quote. Raises `ValueError` for what would be wrong on any
    machine: keys that nothing reads, values of a wrong kind, shapes and budgets that do not fit, texts and tokenizers
    that are missing, and an output directory that belongs to another run.
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


def set_up(settings: Mapping[str, Any], *, is_multirun: bool = False) -> Plan:
    """The plan of a run on this machine, which is also printed. `settings` come from `checked_settings`.

    Raises `ValueError` for what this machine, or the environment in which the run was started, cannot do, and for a run
    of a multirun (Hydra's -m) on more than one device.
    """
    from slm.training.branching import find_branch
    from slm.training.plan import make_plan, plan_lines, resolve_hardware

    hardware = resolve_hardware(settings["trainer"])
    if is_multirun and hardware.world_size > 1:
        raise ValueError(
            f"trainer.devices={hardware.devices} with -m: every device would repeat the whole multirun; use one "
            "device, or start the runs one by one"
        )
    enter(find_world(os.environ, devices=hardware.devices, num_nodes=hardware.num_nodes))
    plan = make_plan(settings, hardware)
    plan = dataclasses.replace(plan, branch=find_branch(plan))
    say(*plan_lines(plan))
    if settings["dry_run"] == "plan":
        say("dry run      nothing was measured or written (dry_run=true also measures speed and duration)")
    return plan
