"""The Lightning side of a run: its trainer, its batches and the state that Lightning leaves out of a checkpoint.

Lightning runs the loop. `journal.py` logs, saves and shows progress instead of Lightning.
"""

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import ClusterEnvironment, TorchCheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor

from slm.data.corpus import Corpus
from slm.data.loader import Batch, MixedOrder, train_loader
from slm.runtime.machine import has_mps
from slm.training.checkpointing import write_checkpoint
from slm.training.hardware import Hardware
from slm.training.module import LanguageModel
from slm.training.plan import Plan
from slm.training.process import RUN_DIR, find_world

VOTE_SECONDS = 1.0
"""Time between two votes (see `Votes`). A vote makes the host wait for the device. Between votes, it runs ahead."""


def make_trainer(plan: Plan, callbacks: list[L.Callback]) -> L.Trainer:
    """Return a trainer that takes `plan.steps` optimizer steps and prints nothing."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # our loader begins at `start_step`
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 under torch 2.13
    hardware = plan.hardware
    if hardware.world_size > 1:
        os.environ[RUN_DIR] = str(plan.folder.path)  # for the processes that Lightning starts from this one
        torch._dynamo.config.optimize_ddp = False  # it would also cut each block's graph where DDP's buckets end
    trainer = L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=_strategy(hardware),
        precision=None if hardware.precision == "16-mixed" else hardware.precision,  # type: ignore[arg-type]
        max_steps=plan.steps,
        max_epochs=-1,
        accumulate_grad_batches=plan.accumulation,
        callbacks=[*callbacks, RandomState()],
        plugins=[AtomicCheckpointIO(), _cluster_environment(hardware), *_precision_plugins(hardware)],
        # Under SLURM, Lightning resumes from any hpc_ckpt_*.ckpt in this folder, by default the working directory.
        default_root_dir=plan.folder.path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    # `process.Interrupt` handles signals. Lightning would broadcast before each pass whether SIGTERM has arrived, and
    # make the host wait for the answer.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _precision_plugins(hardware: Hardware) -> list[MixedPrecision]:
    """For float16, return Lightning's autocast without its loss scaler, because `LanguageModel` has a `LossScale`."""
    if hardware.precision != "16-mixed":
        return []
    plugin = MixedPrecision("16-mixed", hardware.accelerator)
    plugin.scaler = None
    return [plugin]


def _strategy(hardware: Hardware) -> Strategy | str:
    if hardware.strategy == "ddp":
        # Each process has its own sums in buffers. A broadcast would replace them by the sums of the first process.
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    if hardware.strategy == "fsdp":
        return ShardedStrategy(
            data_parallel_size=hardware.world_size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return "auto"


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 with one reduction of gradients per step, where Lightning's strategy would reduce them in every pass."""

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Add gradients up on each device in this context. Lightning enters it for all but the last pass of a step."""
        assert isinstance(self.lightning_module, LanguageModel)
        self.lightning_module.set_gradient_sync(False)
        try:
            yield
        finally:
            self.lightning_module.set_gradient_sync(True)


def _cluster_environment(hardware: Hardware) -> ClusterEnvironment:
    """Return the environment explicitly, because Lightning would infer SLURM or torchrun from leftover variables."""
    world = find_world(os.environ, devices=hardware.devices, num_nodes=hardware.num_nodes)
    if world.launcher == "slurm":
        return SLURMEnvironment(auto_requeue=False)  # requeueing saves a checkpoint that only Lightning finds
    return TorchElasticEnvironment() if world.launcher == "torchrun" else LightningEnvironment()


class Votes:
    """Lets the processes of a run agree, after the same pass, that it was interrupted or that a checkpoint is late."""

    def __init__(self) -> None:
        self._interval, self._passes_left = 1, 1  # numbers of passes: between two votes, and until the next vote
        self._voted_at = time.perf_counter()

    def take(self, trainer: L.Trainer, signal: int, is_late: bool) -> tuple[int, bool]:
        """Return the signal that any process has received, or 0, and whether a checkpoint is late in any of them.

        Must be called after each pass. Several processes vote about every `VOTE_SECONDS`, and otherwise get (0, False).
        """
        if trainer.world_size == 1:
            return signal, is_late
        self._passes_left -= 1
        if self._passes_left > 0:
            return 0, False
        now = time.perf_counter()
        ballot = torch.tensor([signal, is_late, now - self._voted_at], device=trainer.strategy.root_device)
        any_signal, any_late, seconds = trainer.strategy.reduce(ballot, reduce_op="max").tolist()
        wanted_interval = int(self._interval * VOTE_SECONDS / seconds)
        self._interval = max(1, min(2 * self._interval, wanted_interval))
        self._passes_left = self._interval
        self._voted_at = now
        return int(any_signal), bool(any_late)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Makes Lightning write checkpoints with `write_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path` completely or not at all."""
        write_checkpoint(checkpoint, Path(path))


class RandomState(L.Callback):
    """Stores torch's random states in checkpoints, because Lightning does not. Blocks of users may draw numbers."""

    def __init__(self) -> None:
        self._before_step: dict[str, Any] | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the states at the beginning of a step, because a continued run repeats an unfinished step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._before_step = self._states()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Forget the noted states, because this step will not be repeated."""
        self._before_step = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states on the CPU and on all GPUs after the last finished step."""
        return self._before_step or self._states()

    def _states(self) -> dict[str, Any]:
        mps = {"mps": torch.mps.get_rng_state()} if has_mps() else {}
        return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all(), **mps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states, but GPU states only if the number of GPUs is the same."""
        torch.set_rng_state(state_dict["torch"])
        if len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state_dict["cuda"])
        if "mps" in state_dict and has_mps():
            torch.mps.set_rng_state(state_dict["mps"])


def mixed_order(plan: Plan, corpus: Corpus) -> MixedOrder | None:
    """Return the order of a run on a mix; None for other data. Raises ValueError if the run is too short for it."""
    if corpus.mixture is None:
        return None
    return MixedOrder(
        corpus.mixture,
        {name: source.train for name, source in corpus.sources.items()},
        seed=plan.settings["seed"],
        steps=plan.steps,
        batch_size=plan.batch_size,
        sequence_length=plan.sequence_length,
    )


def epochs_by_source(plan: Plan, corpus: Corpus, step: int) -> dict[str, float]:
    """Return how often the training text was seen in the first `step` steps, for each source of a mix or in all."""
    if order := mixed_order(plan, corpus):
        return order.epochs(step)
    return {corpus.name: step * plan.batch_size / corpus.train.num_windows(plan.sequence_length)}


class Batches:
    """The micro-batches of `train_loader`: this process's share of each step.

    They begin at `start_step`, but `len` counts the passes of the whole run, as Lightning expects in a continued run.
    Without a length, Lightning would fetch one batch ahead, and a continued run would lose that batch.
    """

    def __init__(self, plan: Plan, corpus: Corpus, start_step: int, *, rank: int) -> None:
        self.length = plan.steps * plan.accumulation
        self.loader = train_loader(
            corpus.train,
            sequence_length=plan.sequence_length,
            batch_size=plan.batch_size,
            seed=plan.settings["seed"],
            start_step=start_step,
            end_step=plan.steps,
            micro_batch_size=plan.micro_batch_size,
            rank=rank,
            world_size=plan.hardware.world_size,
            num_workers=plan.hardware.num_workers,
            pin_memory=plan.hardware.accelerator == "cuda",  # elsewhere it would take memory of a GPU that is not used
            order=mixed_order(plan, corpus),
        )

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor | Batch]:
        return iter(self.loader)
