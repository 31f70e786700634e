"""AdamW with decay on matrices only, gradient clipping, and a guard that skips bad steps without a host sync."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Steps over which the guard's mean gradient norm forgets, and before which it only watches.
GUARD_WINDOW = 50


def make_adamw(model: nn.Module, optim: Mapping[str, Any]) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices (embedding and head among them), none on gains and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim["weight_decay"]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim["lr"], betas=tuple(optim["betas"]), eps=optim["eps"], fused=True)


OPTIMIZERS: dict[str, Callable[[nn.Module, Mapping[str, Any]], torch.optim.Optimizer]] = {"adamw": make_adamw}
"""By `optim.name`. Each must honour `found_inf` (see `skip_if`)."""


class StepGuard(nn.Module):
    """Judges each step by its gradient norm, on the device.

    A norm that is not finite, or `skip_factor` times the geometric mean of recent ones, makes the step bad. State is in
    buffers, so checkpoints carry it. `skipped` counts all bad steps, `in_a_row` those since the last good one.
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
        """1.0 if the step should be skipped, else 0.0, as a scalar tensor."""
        log_norm = grad_norm.to(self.log_mean.dtype).clamp(min=1e-12).log()
        exploding = (self.seen >= GUARD_WINDOW) & (log_norm > self.log_mean + self.log_factor)
        bad = exploding | ~log_norm.isfinite()
        weight = 1 / (self.seen + 1).clamp(max=GUARD_WINDOW)
        self.log_mean.copy_(torch.where(bad, self.log_mean, self.log_mean.lerp(log_norm, weight)))
        self.seen.add_(~bad)
        self.skipped.add_(bad)
        self.in_a_row.copy_(torch.where(bad, self.in_a_row + 1, torch.zeros_like(self.in_a_row)))
        return bad.float()


def skip_if(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Make the next fused step a no-op on the device where `bad` is 1: weights, moments and step count stay.

    `found_inf` is how `torch.amp.GradScaler` tells fused optimizers the same thing.
    """
    optimizer.found_inf = bad  # type: ignore[attr-defined]


def full_grad_norm(parameters: list[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients, over all shards where they are sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
