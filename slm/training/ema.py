"""Exponential moving average of the weights over optimizer steps. If one is kept, it is validated and exported.

The average is over the trajectory without the initial weights, by Adam's correction for a short history
(arXiv:1412.6980, section 3). Skipped steps do not count. Nothing waits for the device, and shards are not gathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from slm.checkpoints.weights import buffer_of
from slm.training.muon import local_part


class WeightAverage(nn.Module):
    """After t steps: (1 - decay) / (1 - decay^t) x sum over steps i of decay^(t - i) x weights after step i.

    The averages are buffers, so checkpoints hold them (`slm.checkpoints.weights` has their names).
    """

    count: Tensor

    def __init__(self, decoder: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("count", torch.zeros(()))  # steps averaged
        for name, parameter in decoder.named_parameters():
            self.register_buffer(buffer_of(name), parameter.detach().clone())

    @torch.no_grad()
    def update(self, decoder: nn.Module, skipped: Tensor) -> None:
        """Add the weights after a step unless `skipped`, a boolean scalar on the device."""
        self.count.add_(~skipped)
        share = (1 - self.decay) / -torch.expm1(self.count.clamp(min=1) * math.log(self.decay)) * ~skipped
        averages = self._averages(decoder)
        steps = torch._foreach_sub([local_part(p) for p in decoder.parameters()], averages)
        torch._foreach_mul_(steps, share.to(steps[0].dtype))
        torch._foreach_add_(averages, steps)

    @contextmanager
    def applied(self, decoder: nn.Module) -> Iterator[None]:
        """Within, the decoder's weights are the averages."""
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
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)

    def _averages(self, decoder: nn.Module) -> list[Tensor]:
        return [local_part(self.get_buffer(buffer_of(name))) for name, _ in decoder.named_parameters()]
