"""The rank of this process in its run, and the signals that end the run. Imports no torch.

Notable: Lightning trusts RANK, LOCAL_RANK and SLURM_PROCID even if they are left over from another job, and a process
that mistakes itself for the second one writes nothing. So a rank is accepted only under two conditions: the environment
states as many processes as the run has, and this process was started by torchrun, by srun, or by Lightning in our first
process. Otherwise these variables are removed before Lightning reads them. A run whose other processes were never
started is refused, because Lightning would wait for them forever.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_only

RUN_DIR = "SLM_RUN_DIR"
"""Environment variable with the run directory, set for the processes that Lightning starts from our first process."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that processes of a distributed job pass on to whatever they start."""
INTERACTIVE_JOBS = ("bash", "interactive")
"""Names by which Lightning recognises a SLURM job as an interactive shell. There, only srun's tasks are of the run."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK") if hasattr(signal, name))
"""Signals that end a run. Many SLURM scripts announce the time limit by SIGUSR1, so it counts as SIGTERM. SIGBREAK
exists only on Windows, where a sweep cannot send SIGTERM (`slm.sweep.job.stop`)."""


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    launcher: Literal["torchrun", "slurm", "lightning"]
    """What starts the processes."""
    rank: int
    """The number of this process, from 0."""
    foreign_variables: tuple[str, ...] = ()
    """Environment variables that another job left behind."""


def find_world(environment: Mapping[str, str], *, devices: int, num_nodes: int) -> World:
    """Return launcher and rank of this process in a run on `num_nodes` nodes with `devices` processes each.

    A single process has rank 0, even if another job left a rank in the environment. Raises `ValueError` if torchrun or
    SLURM states another number of processes.
    """
    size = devices * num_nodes
    requested = f"trainer.devices={devices} and trainer.num_nodes={num_nodes}"
    if "TORCHELASTIC_RUN_ID" in environment:
        advice = "set trainer.devices to torchrun's --nproc-per-node, or start without torchrun"
        _check(environment, "WORLD_SIZE", size, f"{requested}: {advice}")
        if size > 1:
            return World("torchrun", int(environment["RANK"]))
    tasks_key = "SLURM_STEP_NUM_TASKS" if environment.get("SLURM_JOB_NAME") in INTERACTIVE_JOBS else "SLURM_NTASKS"
    if environment.get(tasks_key, "1") != "1":
        advice = "start a task for each device (srun --ntasks-per-node), or a single task (srun --ntasks=1)"
        for key, number in ((tasks_key, size), ("SLURM_NTASKS_PER_NODE", devices), ("SLURM_NNODES", num_nodes)):
            _check(environment, key, number, f"{requested}: {advice}")
        if "SLURM_PROCID" not in environment:
            raise ValueError(f"{tasks_key}={size} without SLURM_PROCID: start train.py with srun, as {size} tasks")
        return World("slurm", int(environment["SLURM_PROCID"]))
    if num_nodes > 1:
        raise ValueError(f"trainer.num_nodes={num_nodes} needs srun or torchrun, which start a process for each device")
    local_rank = environment.get("LOCAL_RANK", "0")  # the rank itself, because from here on there is one node
    is_started_by_us = RUN_DIR in environment and environment.get("WORLD_SIZE") == str(size)
    if size > 1 and is_started_by_us and local_rank != "0":
        return World("lightning", int(local_rank))
    foreign_variables = tuple(name for name in RANK_VARIABLES if name in environment)
    return World("lightning", 0, foreign_variables)


def _check(environment: Mapping[str, str], name: str, number: int, requested: str) -> None:
    if environment.get(name) != str(number):
        given = f"{name}={environment[name]}" if name in environment else f"an environment without {name}"
        raise ValueError(f"{given} does not match {requested}")


def set_rank(world: World) -> None:
    """Set the rank of this process for slm and for Lightning."""
    for name in world.foreign_variables:
        del os.environ[name]
    rank_zero_only.rank = world.rank  # type: ignore[attr-defined]  # Lightning keeps a rank that is set


def is_first_process() -> bool:
    """Return whether this process prints and writes. Valid after `set_rank`."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(*lines: str) -> None:
    """Print lines, but only in the first process."""
    if is_first_process():
        print(*lines, sep="\n", flush=True)


class Stop(BaseException):
    """Raised by `Interrupt` in the middle of a pass, which is then discarded."""


class Interrupt:
    """A context that stores the first signal it gets in `received`. A SIGINT after that raises `KeyboardInterrupt`.

    The run can then end after the current pass, with a checkpoint of the last optimizer step. While `can_stop` is true,
    a signal raises `Stop`, which ends the pass at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.can_stop = False
        self._process = os.getpid()
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        self._previous_handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # this process is a worker of the loader, which inherited our handlers
            return
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        self.received = signal.SIGTERM if name == "SIGUSR1" else number
        print(f"\n{name}: saving a checkpoint and stopping (Ctrl-C again: stop without saving)", flush=True)
        if self.can_stop:
            raise Stop
