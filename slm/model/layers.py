"""The parts of a block that process each token separately: linear maps, norms, feed-forwards.

Legend: B batch, T tokens, D hidden.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.config import ModelConfig


def float32_or_wider(x: Tensor) -> torch.dtype:
    """Return the dtype for sums and exponentials of `x`."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear`. On a CPU, two cases are computed in a faster way.

    - Compiled, for one row: an elementwise product and a sum.
    - Uncompiled, in float32 and inference mode: by oneDNN, where torch would call MKL, which on AMD's processors takes
      twice as long (docs/log.md, 2026-11-29).
    """
    if torch.compiler.is_exporting():  # the backend of the export has kernels of its own
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() == weight.shape[1]:
        # The sum reads the weight at memory bandwidth. The libraries' matrix-vector products reach less than half of
        # this bandwidth (docs/log.md, 2026-11-22).
        y = (weight * x.view(-1)).sum(-1).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias
    if _takes_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether torch would call MKL and oneDNN can be called in its place. Its operator has no gradients."""
    if torch.compiler.is_compiling():  # first, because the other questions would break the compiler's graph
        return False
    is_float32_on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if not is_float32_on_cpu or not torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """`nn.Linear` that calls `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) over the last axis (arXiv:1910.07467), in float32, or in float64 if x is float64."""
    x = x.to(float32_or_wider(x))
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """RMSNorm with float32 statistics and a learned gain; the output has the input's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return (rms_norm(x, self.eps) * self.weight).type_as(x)


class LayerNorm(RMSNorm):
    """LayerNorm (arXiv:1607.06450) with float32 statistics, a gain and an optional bias."""

    def __init__(self, size: int, eps: float, *, bias: bool) -> None:
        super().__init__(size, eps)
        self.bias = nn.Parameter(torch.empty(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        precise = x.to(float32_or_wider(x))
        y = rms_norm(precise - precise.mean(-1, keepdim=True), self.eps) * self.weight
        return (y if self.bias is None else y + self.bias).type_as(x)


def make_norm(config: ModelConfig) -> nn.Module:
    """Return a norm over the hidden size."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return LayerNorm(config.hidden_size, config.norm_eps, bias=config.norm_bias)


_gelu = partial(F.gelu, approximate="tanh")  # arXiv:1606.08415, section 2; GPT-2 and Gemma use it
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": _gelu,
    "gelu": _gelu,
    "relu2": lambda x: F.relu(x).square(),  # arXiv:2109.08668
}


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) if gated (arXiv:2002.05202), else down(act(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.gated_mlp
        self.activation = _ACTIVATIONS[config.mlp]
        if self.gated:
            self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.gated:
            return self.down_proj(self.activation(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return self.down_proj(self.activation(self.up_proj(x_BTD)))


def scaled(x: Tensor, multiplier: float) -> Tensor:
    """Return x * multiplier, or x itself if the multiplier is 1."""
    return x if multiplier == 1.0 else x * multiplier
