"""The environment's ranks count in a world of the run's own size, and nothing that another run left behind does."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf

from slm.training.process import RUN_DIR, World, find_world
from slm.training.run import train
from slm.training.setup import checked_settings, set_up
from tests.composing import composed
from tests.running import make_command
from tests.training.small import CPU

Train = Callable[..., dict[str, Any]]
SRUN = {"SLURM_JOB_ID": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "1", "SLURM_NNODES": "1"}
TWO_TASKS = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "there"}
LEFT_OVER = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "3", "MASTER_ADDR": "there"}


@pytest.mark.parametrize(
    ("environment", "devices", "rank", "launcher"),
    [
        ({}, 1, 0, "lightning"),
        ({"RANK": "1"}, 1, 0, "lightning"),
        ({"LOCAL_RANK": "no number"}, 1, 0, "lightning"),
        (LEFT_OVER, 1, 0, "lightning"),
        (LEFT_OVER, 2, 0, "lightning"),  # of other processes: this one is to start its own
        (LEFT_OVER | {RUN_DIR: "run"}, 2, 1, "lightning"),  # one that it has started
        (LEFT_OVER | {RUN_DIR: "run"}, 1, 0, "lightning"),
        (SRUN | {"SLURM_NTASKS": "1"}, 1, 0, "lightning"),
        (SRUN | {"SLURM_NTASKS": "1"}, 2, 0, "lightning"),  # one task that has two GPUs
        (SRUN | TWO_TASKS, 2, 1, "slurm"),
        (SRUN | {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}, 1, 0, "lightning"),  # a shell with room for two
        (TORCHRUN, 2, 1, "torchrun"),
        (TORCHRUN | {"WORLD_SIZE": "1"}, 1, 0, "lightning"),
    ],
)
def test_a_rank_counts_in_a_world_of_that_size(environment: dict, devices: int, rank: int, launcher: str) -> None:
    world = find_world(environment, devices=devices, num_nodes=1)
    assert (world.rank, world.launcher) == (rank, launcher)
    believed = rank > 0 or launcher != "lightning"
    assert set(world.foreign_variables) == (set() if believed else set(environment) & set(LEFT_OVER))


def test_tasks_of_two_nodes_are_one_world() -> None:
    two = SRUN | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "3"}
    assert find_world(two, devices=2, num_nodes=2) == World("slurm", 3)


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "said"),
    [
        ({"SLURM_NTASKS": "2"}, 1, 1, "SLURM_NTASKS=2 does not match trainer.devices=1"),
        (SRUN | {"SLURM_NTASKS": "4"}, 2, 1, "SLURM_NTASKS=4 does not match trainer.devices=2"),
        (SRUN | {"SLURM_NTASKS": "2"}, 2, 1, "an environment without SLURM_NTASKS_PER_NODE does not match"),
        (TWO_TASKS, 2, 1, "SLURM_NTASKS=2 without SLURM_PROCID: start train.py with srun"),
        (SRUN | TWO_TASKS, 1, 2, "SLURM_NTASKS_PER_NODE=2 does not match"),
        (
            SRUN | TWO_TASKS | {"SLURM_JOB_NAME": "bash", "SLURM_STEP_NUM_TASKS": "2"},
            1,
            1,
            "SLURM_STEP_NUM_TASKS=2 does",
        ),
        (TORCHRUN, 1, 1, "WORLD_SIZE=2 does not match trainer.devices=1"),
        (TORCHRUN, 4, 1, "WORLD_SIZE=2 does not match trainer.devices=4"),
        ({}, 1, 2, "trainer.num_nodes=2 needs srun or torchrun"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "there"}, 1, 2, "trainer.num_nodes=2 needs srun or torchrun"),
    ],
)
def test_a_world_that_would_never_form_is_refused(environment: dict, devices: int, nodes: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        find_world(environment, devices=devices, num_nodes=nodes)


def test_a_process_plans_and_measures_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen before the plan asks for free memory, since that takes memory of the GPU that is asked."""
    order: list[object] = []
    two_gpus = replace(CPU, accelerator="cuda", devices=2, strategy="ddp")
    monkeypatch.setattr("slm.training.hardware.resolve_hardware", lambda trainer: two_gpus)
    monkeypatch.setattr("slm.training.plan.make_plan", lambda settings, hardware: order.append("plan"))
    monkeypatch.setattr("slm.training.plan.plan_lines", lambda plan: [])
    monkeypatch.setattr(torch.cuda, "set_device", order.append)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    set_up({"trainer": {}, "dry_run": False})
    assert order == [1, "plan"]


@pytest.fixture
def train_here(text_file: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    monkeypatch.chdir(tmp_path)

    def run(name: str, *changes: str) -> dict[str, Any]:
        changes = ("trainer.precision=32-true", f"output_dir={tmp_path / name}", *changes)
        config = composed(*make_command(text_file, cache_dir, *changes)[2:])
        train(set_up(checked_settings(OmegaConf.create(config))))
        return json.loads((tmp_path / name / "result.json").read_text())

    return run


def test_a_run_is_the_same_whatever_others_left_in_the_environment_and_in_the_working_directory(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning takes a rank from variables when it is imported, and under SLURM begins at `hpc_ckpt_*.ckpt`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train_here("alone")
    train_here("other", "seed=2", "train.tokens=2560")
    shutil.copy(tmp_path / "other" / "checkpoints" / "last.ckpt", tmp_path / "hpc_ckpt_1.ckpt")
    for name, value in (LEFT_OVER | SRUN | {"SLURM_NTASKS": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    among = train_here("among")
    torch.set_num_threads(threads)
    assert among["val"] == alone["val"]
    assert among["train_loss_final"] == alone["train_loss_final"]
    assert (tmp_path / "among" / "model" / "model.safetensors").exists()
    assert "LOCAL_RANK" not in os.environ
