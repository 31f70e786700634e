"""Which of a run's processes this one is. Imports no torch.

Notable: Lightning believes RANK, LOCAL_RANK and SLURM_PROCID whatever else is known. A shell that was started by some
distributed job keeps them, and a run that takes itself for the second process writes nothing. Here a rank counts only
in a world of the run's own size, made by torchrun, by srun, or by Lightning for us; all else is left over, and is taken
out of the environment before Lightning looks. A world that Lightning would wait for in vain is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lightning_utilities.core.rank_zero import rank_zero_only

RUN_DIR = "SLM_RUN_DIR"
"""What our first process tells those that Lightning starts from it: the run directory."""
RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a process of one world passes on to whatever it starts."""
INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs by which Lightning knows a shell, whose tasks are not the run's."""


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    maker: Literal["torchrun", "slurm", "lightning"]
    """Who starts them."""
    rank: int
    """Of this one, from 0."""
    leftovers: tuple[str, ...] = ()
    """Variables of the environment that speak of another world."""


def find_world(environment: Mapping[str, str], *, devices: int, num_nodes: int) -> World:
    """The world of a run on `num_nodes` with `devices` each; `ValueError` for one of another size.

    One process is the first, whatever ranks the environment holds.
    """
    size, asked = devices * num_nodes, f"trainer.devices={devices} and trainer.num_nodes={num_nodes}"
    if "TORCHELASTIC_RUN_ID" in environment:
        advice = "give trainer.devices what --nproc-per-node of torchrun is, or start without torchrun"
        _check(environment, "WORLD_SIZE", size, f"{asked}: {advice}")
        if size > 1:
            return World("torchrun", int(environment["RANK"]))
    tasks = "SLURM_STEP_NUM_TASKS" if environment.get("SLURM_JOB_NAME") in INTERACTIVE else "SLURM_NTASKS"
    if environment.get(tasks, "1") != "1":
        advice = "start a task for each device (srun --ntasks-per-node), or a single task (srun --ntasks=1)"
        for name, number in ((tasks, size), ("SLURM_NTASKS_PER_NODE", devices), ("SLURM_NNODES", num_nodes)):
            _check(environment, name, number, f"{asked}: {advice}")
        if "SLURM_PROCID" not in environment:
            raise ValueError(f"{tasks}={size} without SLURM_PROCID: start train.py with srun, which starts all {size}")
        return World("slurm", int(environment["SLURM_PROCID"]))
    if num_nodes > 1:
        raise ValueError(f"trainer.num_nodes={num_nodes} needs srun or torchrun, which start a process for each device")
    rank = environment.get("LOCAL_RANK", "0")
    if size > 1 and RUN_DIR in environment and environment.get("WORLD_SIZE") == str(size) and rank != "0":
        return World("lightning", int(rank))
    return World("lightning", 0, tuple(name for name in RANKS if name in environment))


def enter(world: World) -> None:
    """Make all in this process believe it, Lightning first."""
    for name in world.leftovers:
        del os.environ[name]
    # Lightning's own, which it fills in only where it is not yet set.
    rank_zero_only.rank = world.rank  # type: ignore[attr-defined]


def is_first_process() -> bool:
    """Whether this process is the one that speaks and writes; known once its world was entered."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _check(environment: Mapping[str, str], name: str, number: int, asked: str) -> None:
    if environment.get(name) != str(number):
        given = f"{name}={environment[name]}" if name in environment else f"an environment without {name}"
        raise ValueError(f"{given} does not go with {asked}")
