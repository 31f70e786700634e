"""C: a gated short convolution, the mixer of most layers of LFM2 (arXiv:2511.23404).

    y_t = out(c_t * sum_i w_i (b * v)_(t - i)),  b, c, v = in(x),  i = 0 .. conv_kernel - 1

Legend: B batch, T tokens, D hidden, k taps of the convolution.
"""

from typing import Any

import torch
from torch import Tensor, nn

from slm.model.config import ModelConfig
from slm.model.layers import Linear
from slm.model.mixers import register_mixer
from slm.model.mixers.base import Mixer
from slm.model.positions import Rotary


class Convolution(Mixer):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.in_proj = Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out_proj = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.taps = nn.Parameter(torch.empty(config.conv_kernel, config.hidden_size))

    def init_special(self) -> None:
        nn.init.uniform_(self.taps, -(self.config.conv_kernel**-0.5), self.config.conv_kernel**-0.5)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary | None, memory: Any = None, starts_BT: Tensor | None = None
    ) -> Tensor:
        (past_BkD,) = memory.past() if memory else (x_BTD.new_zeros(len(x_BTD), len(self.taps) - 1, x_BTD.shape[2]),)
        y_BTD, past_BkD = self.convolve(x_BTD, past_BkD, starts_BT)
        if memory:
            memory.append([past_BkD])
        return y_BTD

    def step(self, x_B1D: Tensor, rotary: Rotary | None, *past: Tensor) -> tuple[Tensor, ...]:
        return self.convolve(x_B1D, past[0])

    def convolve(self, x_BTD: Tensor, past_BkD: Tensor, starts_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output, and the last k - 1 inputs of the convolution, which the next token needs."""
        T, k = x_BTD.shape[1], len(self.taps)
        b, c, v = self.in_proj(x_BTD).chunk(3, dim=-1)
        inputs = torch.cat([past_BkD.type_as(v), b * v], dim=1)
        shifted = [inputs[:, i : i + T] for i in range(k)]
        if starts_BT is not None:  # inputs of other documents count as 0
            since_BT = torch.arange(T, device=x_BTD.device) - starts_BT
            shifted = [x * (since_BT >= k - 1 - i)[..., None] for i, x in enumerate(shifted)]
        mixed = sum(tap * x for tap, x in zip(self.taps, shifted, strict=True))
        return self.out_proj((c * mixed).type_as(x_BTD)), inputs[:, T:]

    @classmethod
    def num_params(cls, config: ModelConfig) -> tuple[int, int]:
        return 4 * config.hidden_size**2, config.conv_kernel * config.hidden_size

    @classmethod
    def mixing_flops(cls, config: ModelConfig, layer: int, T: int) -> float:
        return 0.0  # there are no matrix products besides the linear maps

    @classmethod
    def state_shapes(cls, config: ModelConfig) -> tuple[tuple[int, ...], ...]:
        return ((config.conv_kernel - 1, config.hidden_size),)


register_mixer("C", Convolution)
