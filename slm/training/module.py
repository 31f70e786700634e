"""The Lightning module: the decoder, its optimizer, and one step of training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from slm.composition.schedules import lr_factor
from slm.data.loader import document_numbers
from slm.model.decoder import Decoder
from slm.training.ema import WeightAverage
from slm.training.optim import OPTIMIZERS, StepGuard, full_grad_norm, skip_if
from slm.training.parametrization import scale_initial_weights
from slm.training.plan import Plan


class LanguageModel(L.LightningModule):
    """A decoder in training. Buffers on the device collect the numbers that are logged.

    `separator` is the token that begins each document, or None if documents are not masked from each other.
    """

    loss_sum: Tensor
    loss_count: Tensor
    grad_norm: Tensor

    def __init__(self, plan: Plan, separator: int | None = None) -> None:
        super().__init__()
        self.plan, self.optim, self.schedule = plan, plan.settings["optim"], plan.settings["schedule"]
        self.separator = separator
        with torch.random.fork_rng():
            torch.manual_seed(plan.settings["seed"])
            self.decoder = Decoder(plan.model)
        scale_initial_weights(self.decoder, plan.rules)
        self.guard = StepGuard(self.optim["skip_factor"])
        self.register_buffer("loss_sum", torch.zeros(()))  # of this process's finite losses since the last log row
        self.register_buffer("loss_count", torch.zeros(()))  # optimizer steps in that sum
        self.register_buffer("grad_norm", torch.zeros(()))  # of the last step, before clipping
        self.average = self._new_average()
        if plan.hardware.compile:
            self.decoder.compile_blocks()

    def configure_model(self) -> None:
        """Under FSDP, shard each block and then the rest."""
        if self.device_mesh is None or hasattr(self.decoder, "unshard"):
            return
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = self.device_mesh["data_parallel"]
        for block in self.decoder.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(self.decoder, mesh=mesh)
        for method in ("loss", "token_losses"):
            register_fsdp_forward_method(self.decoder, method)
        self.average = self._new_average()  # anew, so that it is sharded like the weights

    def _new_average(self) -> WeightAverage | None:
        decay = self.optim["ema_decay"]
        return None if decay is None else WeightAverage(self.decoder, decay)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and its schedule, which advances at every optimizer step."""
        optimizer = OPTIMIZERS[self.optim["name"]](self.decoder, self.optim, self.plan.rules)
        factor = partial(lr_factor, total_steps=self.plan.steps, schedule=self.schedule)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Set the learning rate of the next step: a branch's checkpoint holds that of the trunk's schedule."""
        optimizer, scheduler = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        factor = lr_factor(self.trainer.global_step, self.plan.steps, self.schedule)
        for group, peak in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = peak * factor

    def training_step(self, tokens_BT: Tensor, batch_idx: int) -> Tensor:
        """Mean loss of a micro-batch (B, T + 1); every token but the first of each sequence is predicted."""
        inputs_BT = tokens_BT[:, :-1]
        loss = self.decoder.loss(inputs_BT, tokens_BT[:, 1:], self.documents(inputs_BT))
        finite = loss.detach().isfinite()
        self.loss_sum += torch.where(finite, loss.detach(), 0.0) / self.plan.accumulation
        self.loss_count += finite / self.plan.accumulation
        return loss

    def documents(self, tokens_BT: Tensor) -> Tensor | None:
        """The number of each token's document (B, T); None if documents are not masked from each other."""
        return None if self.separator is None else document_numbers(tokens_BT, self.separator)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, and let the guard decide on the device whether the step is skipped."""
        parameters: list[nn.Parameter] = list(self.decoder.parameters())
        norm = full_grad_norm(parameters)
        self.grad_norm.copy_(norm)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.optim["clip_norm"], norm)
        skip_if(optimizer, self.guard.judge(norm))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, then update the average of the weights if there is one."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.decoder, skipped=self.guard.in_a_row > 0)

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """A context in which the decoder has the weights to validate and export: the average if there is one."""
        return nullcontext() if self.average is None else self.average.applied(self.decoder)

    def learning_rate(self, step: int) -> float:
        """The learning rate at optimizer step `step`, counted from 1, before the parametrization's factors."""
        return self.optim["lr"] * lr_factor(step - 1, self.plan.steps, self.schedule)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set Lightning's count of forward passes from the steps: passes per step depend on the devices."""
        passes = checkpoint["global_step"] * self.plan.accumulation
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            # The journal saves in on_train_batch_end, before Lightning counts the last pass as completed.
            counts.update(ready=passes, started=passes, processed=passes, completed=passes - 1)
