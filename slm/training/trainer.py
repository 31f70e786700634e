"""The Lightning trainer of a run. Lightning runs the loop; what it would log, save or show is the journal's."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import lightning as L
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from slm.training.checkpointing import AtomicCheckpointIO
from slm.training.hardware import Hardware
from slm.training.plan import Plan
from slm.training.world import find_world


def make_trainer(plan: Plan, hardware: Hardware, *, folder: Path, callbacks: list[L.Callback]) -> L.Trainer:
    """A trainer that takes `plan.steps` optimizer steps in the run directory `folder`, and says nothing."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # it starts at the right step
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 under torch 2.13
    return L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=_strategy(hardware),
        precision=hardware.precision,  # type: ignore[arg-type]
        max_steps=plan.steps,
        max_epochs=-1,
        accumulate_grad_batches=plan.accumulation,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), _cluster_environment(hardware)],
        # Under SLURM, Lightning begins at an hpc_ckpt_*.ckpt that lies here: of any run, in the working directory.
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


def _cluster_environment(hardware: Hardware) -> ClusterEnvironment:
    """What Lightning is to go by: it would find SLURM or torchrun by traces of them alone."""
    world = find_world(os.environ, devices=hardware.devices, num_nodes=hardware.num_nodes)
    if world.maker == "slurm":
        return SLURMEnvironment(auto_requeue=False)  # which would save a checkpoint that only Lightning knows of
    return TorchElasticEnvironment() if world.maker == "torchrun" else LightningEnvironment()


def _strategy(hardware: Hardware) -> Strategy | str:
    if hardware.strategy == "ddp":
        # Buffers are each process's own sums; a broadcast would replace them by the first process's.
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    if hardware.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=hardware.world_size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return "auto"
