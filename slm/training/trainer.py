"""The Lightning trainer of a run. Lightning runs the loop; what it would log, save or show is the journal's."""

from __future__ import annotations

import logging
import warnings

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from slm.training.checkpointing import AtomicCheckpointIO
from slm.training.hardware import Hardware
from slm.training.plan import Plan


def make_trainer(plan: Plan, hardware: Hardware, *, callbacks: list[L.Callback]) -> L.Trainer:
    """A trainer that takes `plan.steps` optimizer steps and says nothing."""
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
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


def _strategy(hardware: Hardware) -> Strategy | str:
    if hardware.strategy == "ddp":
        # Buffers are each process's own sums; a broadcast would replace them by the first process's.
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    if hardware.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=hardware.world_size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return "auto"
