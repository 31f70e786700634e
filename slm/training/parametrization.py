"""Parametrizations: how initial weights, learning rates and multipliers follow from a shape.

Settings tuned at a base shape then hold at other sizes. At the base shape all parametrizations are the same to the last
bit. With m = hidden_size / base_width, d = uses of blocks / base_depth and c = head_dim / base_head_dim:

|                                        | standard   | mup        | completep  |
|----------------------------------------|------------|------------|------------|
| initial std of hidden matrices         | 1          | m^-1/2     | m^-1/2     |
| AdamW's learning rate of them          | 1          | m^-1       | m^-1       |
| Muon's learning rate of them           | 1          | m^-1/2     | m^-1/2     |
| weight decay of them                   | 1          | 1 / lr's   | 1 / lr's   |
| epsilon, blocks                        | 1          | m^-1       | (m d)^-1   |
| epsilon, embedding, head, final norm   | 1          | m^-1       | m^-1       |
| std, lr, weight decay of all others    | 1          | 1          | 1          |
| logits times                           | 1          | m^-1       | m^-1       |
| each branch of a block times           | 1          | 1          | d^-1       |
| attention scores times                 | C^-1/2     | C^-1/2 c^-1/2 | C^-1/2 c^-1/2 |

Sources. mup: Tensor Programs V (arXiv:2203.03466), table 8, with its 1/C attention; in the form of arXiv:2505.01618,
table 1, where learning rate times weight decay stays as at the base (arXiv:2405.13698) and epsilon follows the size of
gradients. completep: arXiv:2505.01618, table 1 at alpha = 1, where learning rates do not depend on depth. Muon: an
update must have a spectral norm in proportion to sqrt(rows / columns) (arXiv:2310.17813, condition 1); that of
`slm.training.muon` is 0.2 lr sqrt(max(rows, columns)), so lr falls as m^-1/2.

Notable: "hidden" are the weights of linear maps inside blocks, whose number of inputs is taken to grow with the width;
gains, biases, decay rates and convolutions over time have a fixed number of inputs and are "vectors". A tied table
keeps the embedding's rule, and the logits' multiplier scales it as a head. Each use of a shared block counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slm.composition.budget import BASE_SHAPE
from slm.model.config import ModelConfig
from slm.model.decoder import Decoder

Kind = Literal["outer", "hidden", "vector"]
"""outer: embedding, head and final norm; hidden: matrices of linear maps in blocks; vector: all else in blocks."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Factors on the config's values, for one kind of parameter."""

    init_std: float = 1.0
    lr: float = 1.0
    """On AdamW's learning rate; weight decay is divided by it."""
    muon_lr: float = 1.0
    """The same for Muon."""
    eps: float = 1.0
    """On AdamW's epsilon."""


Rules = Mapping[Kind, Rule]

STANDARD: Rules = {"outer": Rule(), "hidden": Rule(), "vector": Rule()}


def _ratios(parametrization: Mapping[str, Any], shape: ModelConfig) -> tuple[float, float, float]:
    """m, d, c of the table; 1 where a parametrization ignores the size."""
    sizes = {"base_width": shape.hidden_size, "base_depth": len(shape.block_uses), "base_head_dim": shape.head_width}
    used = BASE_SHAPE[parametrization["name"]]
    m, d, c = (size / parametrization[key] if key in used else 1.0 for key, size in sizes.items())
    return m, d, c


def make_rules(parametrization: Mapping[str, Any], shape: ModelConfig) -> Rules:
    """The table's factors for a decoder of this shape."""
    m, d, _ = _ratios(parametrization, shape)
    return {
        "outer": Rule(eps=1 / m),
        "hidden": Rule(init_std=m**-0.5, lr=1 / m, muon_lr=m**-0.5, eps=1 / (m * d)),
        "vector": Rule(eps=1 / (m * d)),
    }


def with_multipliers(parametrization: Mapping[str, Any], shape: ModelConfig) -> ModelConfig:
    """`shape` with its multipliers times the table's."""
    m, d, c = _ratios(parametrization, shape)
    scores = shape.attention_multiplier
    if c != 1:
        scores = (shape.head_width / c) ** -0.5 / c if scores is None else scores / c
    return dataclasses.replace(
        shape,
        logits_multiplier=shape.logits_multiplier / m,
        residual_multiplier=shape.residual_multiplier / d,
        attention_multiplier=scores,
    )


def kinds_of(decoder: Decoder) -> dict[Tensor, Kind]:
    """The kind of each parameter."""
    kinds: dict[Tensor, Kind] = dict.fromkeys(decoder.parameters(), "outer")
    kinds.update(dict.fromkeys(decoder.layers.parameters(), "vector"))
    kinds.update({module.weight: "hidden" for module in decoder.layers.modules() if isinstance(module, nn.Linear)})
    return kinds


@torch.no_grad()
def scale_initial_weights(decoder: Decoder, rules: Rules) -> None:
    """Scale standard initial weights to the table's stds: the same draws under every parametrization."""
    for parameter, kind in kinds_of(decoder).items():
        if rules[kind].init_std != 1:
            parameter.mul_(rules[kind].init_std)
