"""An optimizer step: parameter groups, AdamW or Muon, a guard that skips bad steps, and the average of the weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from slm.checkpoints.weights import average_name
from slm.model.decoder import Decoder
from slm.training.muon import Muon, local_part
from slm.training.parametrization import STANDARD, Rules, parameter_kinds

GUARD_WINDOW = 50
"""Steps in the guard's running mean of gradient norms. Until it has seen so many, it accepts every finite norm."""
LOSS_SCALE_PATIENCE = 2000
"""Good steps in a row after which the loss scale is doubled: torch's default."""
DEVICES_IGNORING_FOUND_INF = ("mps",)
"""Devices on which fused AdamW may take a step that `found_inf` forbids (pytorch/pytorch#186360, June 2026)."""


def parameter_groups(
    model: Decoder, optim: Mapping[str, Any], rules: Rules, *, muon: bool = False
) -> list[dict[str, Any]]:
    """Group the parameters by learning rate, weight decay and epsilon: matrices first, then vectors, in model order.

    Weight decay applies to tensors with two axes or more (embedding and head included), not to gains and biases. With
    `muon`, hidden matrices are in groups marked `orthogonal`.
    """
    kinds = parameter_kinds(model)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in sorted(trainable, key=lambda p: p.ndim < 2):
        rule = rules[kinds[parameter]]
        has_decay = parameter.ndim >= 2
        is_orthogonal = muon and kinds[parameter] == "hidden"
        lr_factor = rule.muon_lr if is_orthogonal else rule.lr
        settings = {
            "lr": optim["lr"] * lr_factor,
            "weight_decay": optim["weight_decay"] / lr_factor if has_decay else 0.0,
            "eps": optim["eps"] * rule.eps,
        }
        if muon:
            settings["orthogonal"] = is_orthogonal
        group = groups.setdefault((has_decay, *settings.values()), {"params": [], **settings})
        group["params"].append(parameter)
    return list(groups.values())


def make_adamw(model: Decoder, optim: Mapping[str, Any], rules: Rules = STANDARD) -> torch.optim.Optimizer:
    """Make a fused AdamW."""
    return torch.optim.AdamW(parameter_groups(model, optim, rules), betas=tuple(optim["betas"]), fused=True)


def make_muon(model: Decoder, optim: Mapping[str, Any], rules: Rules = STANDARD) -> torch.optim.Optimizer:
    """Make an optimizer that uses Muon for hidden matrices and fused AdamW for the rest."""
    groups = parameter_groups(model, optim, rules, muon=True)
    return Muon(groups, betas=tuple(optim["betas"]), momentum=optim["momentum"], iterations=optim["iterations"])


OPTIMIZERS: dict[str, Callable[[Decoder, Mapping[str, Any], Rules], torch.optim.Optimizer]] = {
    "adamw": make_adamw,
    "muon": make_muon,
}
"""`optim.name` -> a function that makes the optimizer. The optimizer must honour `found_inf` (see `skip_if`)."""


class StepGuard(nn.Module):
    """Detects bad steps by their gradient norm, on the device.

    A step is bad if its norm is not finite, or above `skip_factor` times the geometric mean of recent norms. `seen`
    counts good steps, `skipped` bad steps, and `in_a_row` bad steps since the last good one. All state is in buffers.
    """

    log_mean: Tensor
    seen: Tensor
    skipped: Tensor
    in_a_row: Tensor

    def __init__(self, skip_factor: float) -> None:
        super().__init__()
        self.log_factor = math.log(skip_factor)
        for name in ("log_mean", "seen", "skipped", "in_a_row"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def check_step(self, grad_norm: Tensor) -> Tensor:
        """Update the buffers. Returns a scalar tensor: 1.0 if the step is bad and must be skipped, else 0.0."""
        log_norm = grad_norm.to(self.log_mean.dtype).clamp(min=1e-12).log()
        is_exploding = (self.seen >= GUARD_WINDOW) & (log_norm > self.log_mean + self.log_factor)
        is_bad = is_exploding | ~log_norm.isfinite()
        weight = 1 / (self.seen + 1).clamp(max=GUARD_WINDOW)  # of this step in the mean
        self.log_mean.copy_(torch.where(is_bad, self.log_mean, self.log_mean.lerp(log_norm, weight)))
        self.seen.add_(~is_bad)
        self.skipped.add_(is_bad)
        self.in_a_row.copy_(torch.where(is_bad, self.in_a_row + 1, torch.zeros_like(self.in_a_row)))
        return is_bad.float()


class LossScale(nn.Module):
    """A factor on the loss that keeps float16 gradients, whose smallest normal number is 6e-5, from underflowing.

    As in `torch.amp.GradScaler`, it is halved after a step whose gradients overflow (that step is skipped), and doubled
    after 2,000 good steps in a row (arXiv:1710.03740). `GradScaler` itself is not used: it would overrule `skip_if` in
    fused optimizers, and wait for the device in others. All state is in buffers, so checkpoints hold it.
    """

    factor: Tensor
    good_steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(65536.0))
        self.register_buffer("good_steps", torch.zeros(()))

    @torch.no_grad()
    def unscale(self, parameters: list[nn.Parameter]) -> None:
        """Divide the gradients by the factor."""
        torch._foreach_mul_([local_part(p.grad) for p in parameters if p.grad is not None], 1 / self.factor)

    @torch.no_grad()
    def update(self, grad_norm: Tensor) -> None:
        """Choose the factor for the next step from the gradient norm of this step."""
        is_good = grad_norm.isfinite()
        self.good_steps.add_(1).mul_(is_good)  # a bad step resets the count to 0
        is_due = self.good_steps >= LOSS_SCALE_PATIENCE
        self.factor.mul_(torch.where(is_good, torch.where(is_due, 2.0, 1.0), 0.5))
        self.good_steps.mul_(~is_due)


def skip_if(optimizer: torch.optim.Optimizer, is_bad: Tensor) -> None:
    """Make the next fused step leave weights, moments and step count unchanged if the scalar `is_bad` is 1.

    The host does not wait for the value: fused optimizers read the attribute `found_inf` on the device. For devices in
    `DEVICES_IGNORING_FOUND_INF` it waits, and removes the gradients: a parameter without a gradient takes no step.
    """
    if is_bad.device.type in DEVICES_IGNORING_FOUND_INF:
        if is_bad.item():
            optimizer.zero_grad(set_to_none=True)
        return
    optimizer.found_inf = is_bad  # type: ignore[attr-defined]


def full_grad_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the L2 norm of all gradients, over all shards if they are sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


class WeightAverage(nn.Module):
    """Exponential moving average of the weights. It is validated and exported in place of the weights.

    After t steps it is (1 - decay) / (1 - decay^t) x sum over steps i of decay^(t - i) x weights after step i. The
    denominator is Adam's correction for a short history (arXiv:1412.6980, section 3): the initial weights have no part
    in the average. Skipped steps do not count. The averages are buffers (named by `average_name`), so checkpoints hold
    them. The host does not wait for the device, and shards are not gathered.
    """

    count: Tensor

    def __init__(self, decoder: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("count", torch.zeros(()))  # steps averaged
        for name, parameter in decoder.named_parameters():
            self.register_buffer(average_name(name), parameter.detach().clone())

    @torch.no_grad()
    def update(self, decoder: nn.Module, skipped: Tensor) -> None:
        """Add the weights after a step, unless the step was `skipped` (a boolean scalar on the device)."""
        self.count.add_(~skipped)
        total_weight = -torch.expm1(self.count.clamp(min=1) * math.log(self.decay))  # 1 - decay^t
        share = (1 - self.decay) / total_weight * ~skipped  # of this step in the average; 0 if it was skipped
        averages = self._averages(decoder)
        changes = torch._foreach_sub([local_part(p) for p in decoder.parameters()], averages)
        torch._foreach_mul_(changes, share.to(changes[0].dtype))
        torch._foreach_add_(averages, changes)

    @contextmanager
    def applied(self, decoder: nn.Module) -> Iterator[None]:
        """Exchange the decoder's weights for the averages in this context."""
        self._exchange(decoder)
        try:
            yield
        finally:
            self._exchange(decoder)

    @torch.no_grad()
    def _exchange(self, decoder: nn.Module) -> None:
        for module in decoder.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # gathered weights are copies of the shards, which change here
        for parameter, average in zip(decoder.parameters(), self._averages(decoder), strict=True):
            weight = local_part(parameter)
            previous = weight.clone()
            weight.copy_(average)
            average.copy_(previous)

    def _averages(self, decoder: nn.Module) -> list[Tensor]:
        return [local_part(self.get_buffer(average_name(name))) for name, _ in decoder.named_parameters()]
