"""The Lightning module: the decoder, its optimizer, and one step of training. Axes: B sequences, T tokens."""

import itertools
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from slm.composition.schedules import lr_factor
from slm.data.loader import Batch, document_numbers
from slm.model.decoder import Decoder
from slm.model.loss import IGNORE
from slm.model.mixers.base import Mixer
from slm.model.quantised import round_in_training
from slm.training.distillation import load_teacher
from slm.training.optim import OPTIMIZERS, LossScale, StepGuard, WeightAverage, full_grad_norm, skip_if
from slm.training.parametrization import scale_initial_weights
from slm.training.plan import Plan

LOSSES = ("train/loss", "train/distill_loss")
"""Metrics in `LanguageModel.loss_sum`: the cross-entropy with the text and, in a distilled run, the soft loss."""


class LanguageModel(L.LightningModule):
    """A decoder in training. Buffers on the device collect the metrics.

    `separator` is the token that begins each document, or None if documents are not masked from each other. Batches of
    conversations know their documents themselves.
    """

    loss_sum: Tensor
    loss_count: Tensor
    step_loss: Tensor
    step_count: Tensor
    grad_norm: Tensor
    scored_tokens: Tensor
    step_scored: Tensor

    def __init__(self, plan: Plan, separator: int | None = None, *, counts_scored: bool = False) -> None:
        super().__init__()
        self.plan = plan
        self.optim, self.schedule = plan.settings["optim"], plan.settings["schedule"]
        self.separator, self.counts_scored = separator, counts_scored
        self.syncs_gradients = True
        with torch.random.fork_rng():
            torch.manual_seed(plan.settings["seed"])
            self.decoder = Decoder(plan.model)
        self.decoder.activation_checkpointing = plan.passes.activation_checkpointing
        scale_initial_weights(self.decoder, plan.rules)
        if kind := plan.settings.get("quantize"):  # older configs lack the key
            round_in_training(self.decoder, kind)
        self.guard = StepGuard(self.optim["skip_factor"])
        self.loss_scale = LossScale() if plan.hardware.precision == "16-mixed" else None
        losses = torch.zeros(2 if plan.teacher else ())  # with a teacher, the cross-entropy and the soft loss
        self.register_buffer("loss_sum", losses)  # finite losses of this process's steps since the last row
        self.register_buffer("loss_count", torch.zeros(()))  # number of steps in `loss_sum`
        # Loss and number of finite passes so far, divided by passes per step.
        self.register_buffer("step_loss", torch.zeros_like(losses), persistent=False)
        self.register_buffer("step_count", torch.zeros(()), persistent=False)
        self.register_buffer("grad_norm", torch.zeros(()))  # of the last step, before clipping
        if counts_scored:  # scored tokens of the whole run, and of the current step
            self.register_buffer("scored_tokens", torch.zeros((), dtype=torch.long))
            self.register_buffer("step_scored", torch.zeros((), dtype=torch.long), persistent=False)
        self.average = self._new_average()
        compiled_for = plan.hardware.accelerator if plan.hardware.compile else None
        if compiled_for is not None:
            self.decoder.compile_blocks(compiled_for)
        # Not a module of this one, so that checkpoints and optimizers leave it out.
        self.teacher = load_teacher(plan.teacher, compiled_for=compiled_for) if plan.teacher else None

    def configure_model(self) -> None:
        """Under FSDP, shard each block and then the rest."""
        is_sharded = hasattr(self.decoder, "unshard")
        if self.device_mesh is None or is_sharded:
            return
        mesh = self.device_mesh["data_parallel"]
        for block_number, block in enumerate(self.decoder.layers):
            fully_shard(block, mesh=mesh, mp_policy=_gather_policy(block, self.plan.hardware.precision))
            num_calls = sum(block_number == called for called, _ in self.decoder.config.block_rows)
            if num_calls > 1:
                self._reduce_after_all_calls(block, num_calls)
        fully_shard(self.decoder, mesh=mesh)
        for method in ("loss", "token_losses"):
            register_fsdp_forward_method(self.decoder, method)
        self.average = self._new_average()  # again, so that the averages are sharded like the weights

    def set_gradient_sync(self, enabled: bool) -> None:
        """Under FSDP, let backward passes reduce gradients over all devices if `enabled`; else only add them up."""
        self.syncs_gradients = enabled
        decoder: Any = self.decoder
        decoder.set_requires_gradient_sync(enabled)

    def _reduce_after_all_calls(self, block: Any, num_calls: int) -> None:
        """Under FSDP, let a block that a pass calls `num_calls` times reduce gradients only in the last backward."""
        call_numbers = itertools.count(1)

        def before_backward(grad: Tensor) -> None:
            is_last_call = next(call_numbers) % num_calls == 0
            block.set_requires_gradient_sync(is_last_call and self.syncs_gradients)

        @torch.compiler.disable
        def after_forward(block: Any, args: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(before_backward)

        block.register_forward_hook(after_forward)

    def _new_average(self) -> WeightAverage | None:
        decay = self.optim["ema_decay"]
        return None if decay is None else WeightAverage(self.decoder, decay)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer and its schedule, which advances at every optimizer step."""
        optimizer = OPTIMIZERS[self.optim["name"]](self.decoder, self.optim, self.plan.rules)
        factor = partial(lr_factor, total_steps=self.plan.steps, schedule=self.schedule)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Set the learning rate of the next step, because a branch's checkpoint holds the trunk's learning rate."""
        optimizer, scheduler = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        factor = lr_factor(self.trainer.global_step, self.plan.steps, self.schedule)
        for group, peak_lr in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = peak_lr * factor

    def training_step(self, batch: Tensor | Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a micro-batch, in which each token predicts the next one.

        A tensor is (B, T + 1). With a teacher, this is the first of the losses of `distillation_loss`, and metrics have
        the other two. If the micro-batches of a step do not score equally many tokens, the loss is weighted so that its
        mean over passes and devices is the mean over all scored tokens of the step.
        """
        if isinstance(batch, Tensor):
            batch = Batch(batch[:, :-1], batch[:, 1:])
        inputs_BT, targets_BT, documents_BT, step_scored = batch
        if self.plan.padding:
            inputs_BT = inputs_BT.clamp(min=0)  # empty sequences consist of `IGNORE`, which is negative
        scale = self.loss_scale.factor if self.loss_scale else None
        documents_BT = self.documents(inputs_BT, documents_BT)
        soft = self.teacher.soft_targets(inputs_BT, documents_BT) if self.teacher else None
        loss = self.decoder.loss(inputs_BT, targets_BT, documents_BT, scale, soft)
        num_passes = self.plan.accumulation * self.plan.hardware.world_size
        if step_scored is not None:
            loss = loss * ((targets_BT != IGNORE).sum() * num_passes) / step_scored
            self.step_scored.copy_(step_scored)
        elif self.plan.padding:
            num_sequences = (targets_BT[:, 0] != IGNORE).sum()  # without the empty ones
            loss = loss * num_sequences / (self.plan.batch_size / num_passes)
        is_finite = loss.detach().isfinite().all()
        noted = loss.detach() if soft is None else loss.detach()[1:]
        self.step_loss += torch.where(is_finite, noted, 0.0) / self.plan.accumulation
        self.step_count += is_finite / self.plan.accumulation
        return loss if soft is None else loss[0]

    def documents(self, tokens_BT: Tensor, given_BT: Tensor | None = None) -> Tensor | None:
        """Number each token by its document (B, T), as `given_BT` if the batch knows it; None if nothing is masked."""
        if self.separator is None:
            return None
        return document_numbers(tokens_BT, self.separator) if given_BT is None else given_BT.to(tokens_BT.device)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, and let the guard decide on the device whether the step is skipped."""
        for row_value, step_value in ((self.loss_sum, self.step_loss), (self.loss_count, self.step_count)):
            row_value += step_value  # in place
            step_value.zero_()
        if self.counts_scored:
            self.scored_tokens += self.step_scored
        parameters: list[nn.Parameter] = list(self.decoder.parameters())
        if self.loss_scale:
            self.loss_scale.unscale(parameters)
        norm = full_grad_norm(parameters)
        if self.loss_scale:
            self.loss_scale.update(norm)
        self.grad_norm.copy_(norm)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.optim["clip_norm"], norm)
        skip_if(optimizer, self.guard.check_step(norm))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, then update the average of the weights if there is one."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.decoder, skipped=self.guard.in_a_row > 0)

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the decoder has the weights to validate and export: the average if there is one."""
        return nullcontext() if self.average is None else self.average.applied(self.decoder)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`, counted from 1, before the parametrization's factors."""
        return self.optim["lr"] * lr_factor(step - 1, self.plan.steps, self.schedule)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Recompute Lightning's count of passes: the checkpoint may be from a run with other passes per step."""
        num_passes = checkpoint["global_step"] * self.plan.accumulation
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            # The journal saves in on_train_batch_end, before Lightning counts the last pass as completed.
            counts.update(ready=num_passes, started=num_passes, processed=num_passes, completed=num_passes - 1)


def _gather_policy(block: Any, precision: str) -> MixedPrecisionPolicy:
    """Return FSDP's policy for a block: its weights are gathered in bfloat16 if its matmuls run in bfloat16.

    Gradients are reduced in float32, and the block's inputs, the residual stream, stay in float32. A block whose mixer
    has special parameters, such as SSD's decay rates, is gathered in float32, because autocast does not convert them.
    Embedding and head are gathered in float32 too, because the residual stream has the embedding's dtype.
    """
    has_special_parameters = type(block.self_attn).init_special is not Mixer.init_special
    if precision != "bf16-mixed" or has_special_parameters:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
