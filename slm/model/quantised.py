"""Weights rounded to integers of 8 or 4 bits: modules that hold such integers, and the same rounding in training.

Notable: the rounding is torchao's, bit for bit, so a checkpoint scores here as in programs that torchao wrote. Integers
are stored packed and become numbers again where they are used. Compiled code does so within the product, so that a
decoded token reads only the integers.

What the kinds of `QUANTISATIONS` round:

| what                                   | becomes                                  | scale                            |
|----------------------------------------|------------------------------------------|----------------------------------|
| linear maps of blocks, int8            | 8 bits                                   | one for a row (output)           |
| linear maps of blocks, int4            | 4 bits                                   | one for `GROUP` inputs, bfloat16 |
| embedding and head                     | 8 bits, whatever the kind                | one for a row (token)            |
| inputs of maps and head, `..._dynamic` | 8 bits and a zero point, as XNNPACK does | one for a token                  |
| norms, biases, learned positions       | not rounded                              |                                  |
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.config import QUANTISATIONS, ModelConfig
from slm.model.decoder import Decoder
from slm.model.empty import empty_decoder
from slm.model.layers import Linear, linear

GROUP = 32  # weights of 4 bits that share a scale


def round_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -2^(bits-1) to 2^(bits-1) - 1, in the dtype of the weight, and their scales.

    (out, in) -> (out, G, in / G) and (out, G, 1), with G = 1 for 8 bits. The largest value of a group lies half a step
    beyond the last whole number, so that steps are as small as possible: torchao's `MappingType.SYMMETRIC`. Scales of
    4 bits are bfloat16, which XNNPACK's products need.
    """
    groups = weight.unflatten(1, (-1, GROUP if bits == 4 else weight.shape[1]))
    limit = 2 ** (bits - 1)
    largest = groups.abs().amax(-1, keepdim=True)
    scales = (largest / (limit - 0.5)).clamp(min=torch.finfo(weight.dtype).smallest_normal)
    scales = scales.bfloat16() if bits == 4 else scales
    return (groups * (1 / scales)).round().clamp(-limit, limit - 1), scales


def round_activations(x: Tensor) -> Tensor:
    """Return x rounded to 256 values between the least and the largest of each token (0 included), (..., in)."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(x.dtype).smallest_normal)
    zero = (-128 - (low / scale).round()).clamp(-128, 127)
    return (((x * (1 / scale)).round() + zero).clamp(-128, 127) - zero) * scale


class _Packed(nn.Module):
    """A matrix of integers with scales. Two integers of 4 bits are in one byte: number i of a group, and i + 16."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        codes, scales = round_weight(weight, bits)
        if bits == 4:
            low, high = (codes + 8).to(torch.uint8).chunk(2, dim=-1)
            codes = low | high << 4
        self.codes = nn.Parameter(codes.to(torch.uint8 if bits == 4 else torch.int8), requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.dtype = weight.dtype

    @property
    def weight(self) -> Tensor:
        """The rounded matrix, in the dtype of the original."""
        numbers = torch.cat(self.halves(), dim=-1) if self.codes.dtype == torch.uint8 else self.codes.float()
        return (numbers * self.scales).flatten(1).to(self.dtype)

    def halves(self) -> tuple[Tensor, Tensor]:
        """Return the first and the second half of each group of 4-bit numbers, (out, G, 16), without their scales."""
        codes = self.codes.int()
        return ((codes & 15) - 8).float(), ((codes >> 4) - 8).float()


class QuantisedLinear(_Packed):
    """A linear map with integer weights; `is_dynamic` also rounds its input."""

    def __init__(self, original: nn.Linear, bits: int, *, is_dynamic: bool) -> None:
        super().__init__(original.weight, bits)
        self.bias, self.is_dynamic = original.bias, is_dynamic
        self.in_features, self.out_features = original.in_features, original.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = round_activations(x) if self.is_dynamic else x
        is_step = torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() == self.in_features
        if not is_step or self.codes.dtype != torch.uint8:
            return linear(x, self.weight, self.bias)
        # As `linear` computes a row. Compiled, the concatenation in `weight` takes several times as long, and so do
        # scales within the inner sum (docs/log.md, 2026-11-29).
        (low, high), x_G2 = self.halves(), x.view(-1, 2, GROUP // 2)
        sums = (low * x_G2[:, 0] + high * x_G2[:, 1]).sum(-1)
        y = (sums * self.scales.squeeze(-1)).sum(-1).to(x).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class QuantisedEmbedding(_Packed):
    """An embedding whose rows have 8 bits. A tied head uses its `weight`."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        scales = F.embedding(tokens, self.scales.flatten(1))
        return F.embedding(tokens, self.codes.flatten(1)).to(self.dtype) * scales


class _RoundedNorm(nn.Module):
    """The final norm, with its output rounded for the head, whether tied or not."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return round_activations(self.norm(x))


class RoundedLinear(Linear):
    """A linear map for training whose products are those of `QuantisedLinear`. Gradients ignore the rounding.

    They pass straight through (Bengio et al. 2013, arXiv:1308.3432), to weights that are not rounded.
    """

    def __init__(self, original: nn.Linear, bits: int, *, is_dynamic: bool) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = original.weight, original.bias
        self.bits, self.is_dynamic = bits, is_dynamic
        self.in_features, self.out_features = original.in_features, original.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        codes, scales = round_weight(self.weight.detach(), self.bits)
        weight = _straight_through((codes * scales).flatten(1).to(self.weight), self.weight)
        return linear(_straight_through(round_activations(x.detach()), x) if self.is_dynamic else x, weight, self.bias)


def _straight_through(rounded: Tensor, original: Tensor) -> Tensor:
    return rounded + (original - original.detach())  # the second term is zero, with the gradient of `original`


def quantise(model: nn.Module, kind: str, *, keep: Collection[nn.Module | None] = ()) -> str:
    """Round the weights of a model in place, by a kind of `QUANTISATIONS`; returns a sentence on what was rounded.

    Of a model other than a `Decoder`, these are the `nn.Linear` that are not in `keep`. Raises `ValueError` as
    `linears_to_round` does.
    """
    linears = linears_to_round(model, kind, keep)
    bits, is_dynamic = QUANTISATIONS[kind]
    num_params = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(model, Decoder):
        model.embed_tokens = QuantisedEmbedding(model.embed_tokens.weight, 8)  # type: ignore[assignment]
        if not model.config.tie_embeddings:
            model.lm_head = QuantisedLinear(model.lm_head, 8, is_dynamic=False)  # type: ignore[assignment]
        if is_dynamic:
            model.norm = _RoundedNorm(model.norm)
    for parent, name in linears:
        setattr(parent, name, QuantisedLinear(getattr(parent, name), bits, is_dynamic=is_dynamic))
    codes = [module.codes for module in model.modules() if isinstance(module, _Packed)]
    num_rounded = sum(tensor.numel() * (2 if tensor.dtype == torch.uint8 else 1) for tensor in codes)
    return f"quantize={kind} rounded {num_rounded / num_params:.1%} of the parameters"


def round_in_training(decoder: Decoder, kind: str) -> None:
    """Let the linear maps of the blocks train for `quantise(decoder, kind)`. Names of parameters stay."""
    bits, is_dynamic = QUANTISATIONS[kind]
    for parent, name in linears_to_round(decoder, kind):
        setattr(parent, name, RoundedLinear(getattr(parent, name), bits, is_dynamic=is_dynamic))


def check_shape(config: ModelConfig, kind: str) -> None:
    """Raise `ValueError` if a decoder of this shape cannot be rounded so, before it has weights."""
    linears_to_round(empty_decoder(config), kind)


def linears_to_round(
    model: nn.Module, kind: str, keep: Collection[nn.Module | None] = ()
) -> list[tuple[nn.Module, str]]:
    """Return the linear maps to round, each as its parent and its name there.

    They are those of the blocks of a `Decoder`; of another model, all but those in `keep`. Raises `ValueError` if there
    are none, if `GROUP` does not divide a number of inputs, and for an unknown kind.
    """
    if kind not in QUANTISATIONS:
        raise ValueError(f"quantize={kind} must be one of {', '.join(QUANTISATIONS)}")
    blocks = model.layers if isinstance(model, Decoder) else model
    found = []
    for path, parent in blocks.named_modules(prefix="layers" if isinstance(model, Decoder) else ""):
        for name, child in parent.named_children():
            if not isinstance(child, nn.Linear) or any(child is kept for kept in keep):
                continue
            if QUANTISATIONS[kind][0] == 4 and child.in_features % GROUP:
                raise ValueError(
                    f"quantize={kind} rounds weights in groups of {GROUP}, but {path}.{name} has {child.in_features} "
                    f"inputs, which {GROUP} does not divide: give quantize={kind.replace('4', '8')}"
                )
            found.append((parent, name))
    if not found:
        raise ValueError(f"quantize={kind} is for models with linear maps (nn.Linear), and this one has none")
    return found
