"""AdamW and Muon over parameter groups, gradient clipping, and a guard that skips bad steps without a host sync."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slm.model.decoder import Decoder
from slm.training.muon import Muon
from slm.training.parametrization import STANDARD, Rules, kinds_of

GUARD_WINDOW = 50
"""Steps in the guard's running mean of gradient norms; until it has seen as many, it skips no large norm."""


def parameter_groups(
    model: Decoder, optim: Mapping[str, Any], rules: Rules, *, muon: bool = False
) -> list[dict[str, Any]]:
    """Groups with one learning rate, weight decay and epsilon each: matrices first, then vectors, in the model's order.

    Weight decay applies to tensors with two axes or more (embedding and head included), not to gains and biases. With
    `muon`, hidden matrices are in groups marked `orthogonal`.
    """
    kinds = kinds_of(model)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter in sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: p.ndim < 2):
        rule, has_decay = rules[kinds[parameter]], parameter.ndim >= 2
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
    """Fused AdamW."""
    return torch.optim.AdamW(parameter_groups(model, optim, rules), betas=tuple(optim["betas"]), fused=True)


def make_muon(model: Decoder, optim: Mapping[str, Any], rules: Rules = STANDARD) -> torch.optim.Optimizer:
    """Muon for hidden matrices, fused AdamW for the rest."""
    groups = parameter_groups(model, optim, rules, muon=True)
    return Muon(groups, betas=tuple(optim["betas"]), momentum=optim["momentum"], iterations=optim["iterations"])


OPTIMIZERS: dict[str, Callable[[Decoder, Mapping[str, Any], Rules], torch.optim.Optimizer]] = {
    "adamw": make_adamw,
    "muon": make_muon,
}
"""Makers of optimizers by `optim.name`. Each optimizer must honour `found_inf` (see `skip_if`)."""


class StepGuard(nn.Module):
    """Finds bad steps by their gradient norm, on the device.

    A step is bad if its norm is not finite, or above `skip_factor` times the geometric mean of recent norms. `skipped`
    counts all bad steps, `in_a_row` those since the last good one. All state is in buffers, so checkpoints hold it.
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
    def judge(self, grad_norm: Tensor) -> Tensor:
        """1.0 if the step is bad and must be skipped, else 0.0, as a scalar tensor; updates the buffers."""
        log_norm = grad_norm.to(self.log_mean.dtype).clamp(min=1e-12).log()
        is_exploding = (self.seen >= GUARD_WINDOW) & (log_norm > self.log_mean + self.log_factor)
        is_bad = is_exploding | ~log_norm.isfinite()
        weight = 1 / (self.seen + 1).clamp(max=GUARD_WINDOW)
        self.log_mean.copy_(torch.where(is_bad, self.log_mean, self.log_mean.lerp(log_norm, weight)))
        self.seen.add_(~is_bad)
        self.skipped.add_(is_bad)
        self.in_a_row.copy_(torch.where(is_bad, self.in_a_row + 1, torch.zeros_like(self.in_a_row)))
        return is_bad.float()


def skip_if(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Make the next fused step leave weights, moments and step count as they are if the scalar `bad` is 1.

    The decision stays on the device. `torch.amp.GradScaler` sets the same attribute of fused optimizers.
    """
    optimizer.found_inf = bad  # type: ignore[attr-defined]


def full_grad_norm(parameters: list[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients; if they are sharded, over all shards."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
