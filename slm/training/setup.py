"""Turn a composed config into the plan of a run. Wrong settings are refused here, before anything is written.

Only `set_up` and a checkpoint to start from (`init_from`) import torch, so that `checked_settings` reports any other
mistake within a second.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from slm.composition.budget import shape_and_steps
from slm.composition.keys import check_keys
from slm.composition.mixing import expand_sources
from slm.composition.settings import check_settings
from slm.data.corpus import check_sources
from slm.data.mixture import check_phases
from slm.data.questions import read_tasks
from slm.runtime.address import local_folder, named, split_revision
from slm.runtime.extensions import load_extensions
from slm.runtime.files import check_folders, check_writable
from slm.runtime.settings import plain_settings
from slm.tracking import check_logger
from slm.training.process import find_world, say, set_rank
from slm.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from slm.training.plan import Plan


def checked_settings(config: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Check the values of a composed `conf/train.yaml`, and return them as plain dicts and lists.

    `overrides` are the arguments of the command line, which messages quote. Raises `ValueError` for what is wrong on
    any machine: keys that nothing reads, values of a wrong kind, shapes and budgets that do not fit together, missing
    texts and tokenizers, and an output directory of another run.
    """
    settings = plain_settings(config)
    check_keys(settings, "train", overrides)
    settings["extensions"] = load_extensions(settings)
    settings = expand_sources(settings)
    check_settings(settings)
    check_folders(settings, "output_dir", "cache_dir")
    cache_dir = Path(os.path.expanduser(settings["cache_dir"]))
    if settings["dry_run"] != "plan" and not cache_dir.exists():
        check_writable(cache_dir, "cache_dir")
    _check_addresses(settings)
    tokenizer = settings["tokenizer"]
    if settings.get("init_from") is not None:  # older configs lack the key
        from slm.training.initial import complete_settings, tokenizer_source  # imports torch

        settings = complete_settings(settings, overrides)
        tokenizer = tokenizer_source(settings)
    elif tokenizer["kind"] == "checkpoint":
        raise ValueError("tokenizer=checkpoint is the tokenizer of the initial weights: set init_from=CHECKPOINT too")
    _, steps = shape_and_steps(settings)  # raises `ValueError` for shapes and budgets that do not fit together
    check_logger(settings["logger"])
    RunDirectory(settings["output_dir"]).check(settings)
    check_sources(settings["data"], tokenizer)
    check_phases(settings["data"], steps)
    train = settings["train"]
    read_tasks(train.get("eval_tasks"), "train.eval_tasks", train.get("eval_task_limit"))  # raises for bad files
    return settings


def _check_addresses(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for checkpoints that are neither a folder nor a hub id, before torch is imported to read them.

    A run that goes on may do so without its initial weights, so a directory with checkpoints is left out here.
    """
    teacher = (settings.get("distill") or {}).get("teacher")
    if not RunDirectory(settings["output_dir"]).checkpoints.exists():
        for key, given in (("init_from", settings.get("init_from")), ("distill.teacher", teacher)):
            if given is not None:
                with named(key):
                    local_folder(*split_revision(given))


def set_up(settings: Mapping[str, Any], *, is_multirun: bool = False) -> "Plan":
    """Make and print the plan of a run on this machine. `settings` come from `checked_settings`.

    Raises `ValueError` for devices that this machine lacks, for an environment that states another number of processes
    than the settings, and for a multirun (Hydra's -m) on more than one device.
    """
    import torch

    from slm.runtime.machine import limit_gpu_memory
    from slm.training.hardware import resolve_hardware
    from slm.training.plan import make_plan, plan_lines

    hardware = resolve_hardware(settings["trainer"])
    if is_multirun and hardware.world_size > 1:
        raise ValueError(
            f"trainer.devices={hardware.devices} with -m: every device would repeat the whole multirun; use one "
            "device, or start the runs one by one"
        )
    world = find_world(os.environ, devices=hardware.devices, num_nodes=hardware.num_nodes)
    set_rank(world)
    if hardware.accelerator == "cuda":
        torch.cuda.set_device(world.rank % hardware.devices)  # each process uses its own GPU, not the first one
    limit_gpu_memory()
    plan = make_plan(settings, hardware)
    say(*plan_lines(plan))
    if settings["dry_run"] == "plan":
        say("dry run      nothing was measured or written (dry_run=true also measures speed and duration)")
    return plan
