"""Exponential moving average of the weights over optimizer steps: where one is kept, it is validated and exported.

Notable: the average is of the trajectory alone and not of the initial weights too, by Adam's correction for a short
history (arXiv:1412.6980, section 3); skipped steps do not count; nothing waits for the device; shards stay apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from slm.checkpoints.weights import buffer_of


class WeightAverage(nn.Module):
    """After t steps: (1 - decay) / (1 - decay^t) x sum over steps i of decay^(t - i) x weights after step i.

    The averages are buffers, so checkpoints carry them (`slm.checkpoints.weights` says where).
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
        """Take in the weights after a step, unless it was skipped (a scalar that is true or false, on the device)."""
        self.count.add_(~skipped)
        share = (1 - self.decay) / -torch.expm1(self.count.clamp(min=1) * math.log(self.decay)) * ~skipped
        averages = self._averages(decoder)
        steps = torch._foreach_sub([_local(p) for p in decoder.parameters()], averages)
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
                module.reshard()  # what is gathered is a copy of what changes here
        for parameter, average in zip(decoder.parameters(), self._averages(decoder), strict=True):
            weight = _local(parameter)
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)

    def _averages(self, decoder: nn.Module) -> list[Tensor]:
        return [_local(self.get_buffer(buffer_of(name))) for name, _ in decoder.named_parameters()]


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x
