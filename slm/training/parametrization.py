"""Parametrizations: how initial weights, learning rates and multipliers depend on the shape.

Under mup and completep, hyperparameters tuned at a base shape transfer to other shapes. At the base shape all
parametrizations agree to the last bit. The values of the config are multiplied by these factors, where C = head_dim,
c = C / base_head_dim, m = hidden_size / base_width and d = depth / base_depth. Depth counts each use of a shared block.

|                                        | standard | mup           | completep     |
|----------------------------------------|----------|---------------|---------------|
| hidden matrices: initial std           | 1        | m^-1/2        | m^-1/2        |
| hidden matrices: AdamW's learning rate | 1        | m^-1          | m^-1          |
| hidden matrices: Muon's learning rate  | 1        | m^-1/2        | m^-1/2        |
| hidden matrices: weight decay          | 1        | 1 / lr factor | 1 / lr factor |
| other parameters: the values above     | 1        | 1             | 1             |
| epsilon in blocks                      | 1        | m^-1          | (m d)^-1      |
| epsilon elsewhere                      | 1        | m^-1          | m^-1          |
| logits                                 | 1        | m^-1          | m^-1          |
| output of each residual branch         | 1        | 1             | d^-1          |
| attention scores                       | C^-1/2   | C^-1/2 c^-1/2 | C^-1/2 c^-1/2 |

Sources. mup: Tensor Programs V (arXiv:2203.03466), table 8, with its 1/C attention, in the form of arXiv:2505.01618,
table 1: learning rate times weight decay does not change with the shape (arXiv:2405.13698), and epsilon scales as the
gradients do. completep: arXiv:2505.01618, table 1 at alpha = 1, where learning rates do not depend on depth. Muon: the
spectral norm of an update must be proportional to sqrt(rows / columns) (arXiv:2310.17813, condition 1). An update by
`slm.training.muon` has the norm 0.2 lr sqrt(max(rows, columns)), so lr must be proportional to m^-1/2.

Notable: hidden matrices are the weights of linear maps inside blocks; their number of inputs is assumed to grow with
the width. Gains, biases, decay rates and convolutions over time have a fixed number of inputs and are called vectors. A
tied embedding follows the rule of embeddings; as a head it is scaled by the multiplier of logits.
"""

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
"""outer: embedding, head and final norm; hidden: weights of linear maps in blocks; vector: all others in blocks."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Factors by which the config's values are multiplied, for one kind of parameter."""

    init_std: float = 1.0
    lr: float = 1.0
    """For AdamW's learning rate. AdamW's weight decay is divided by it."""
    muon_lr: float = 1.0
    """For Muon's learning rate. Muon's weight decay is divided by it."""
    eps: float = 1.0


Rules = Mapping[Kind, Rule]

STANDARD: Rules = {"outer": Rule(), "hidden": Rule(), "vector": Rule()}


def _ratios(parametrization: Mapping[str, Any], shape: ModelConfig) -> tuple[float, float, float]:
    """Return m, d and c of the table; a ratio on which the parametrization does not depend is 1."""
    sizes = {"base_width": shape.hidden_size, "base_depth": len(shape.block_uses), "base_head_dim": shape.head_width}
    used_keys = BASE_SHAPE[parametrization["name"]]
    m, d, c = (size / parametrization[key] if key in used_keys else 1.0 for key, size in sizes.items())
    return m, d, c


def make_rules(parametrization: Mapping[str, Any], shape: ModelConfig) -> Rules:
    """Return the table's factors for a decoder of this shape."""
    m, d, _ = _ratios(parametrization, shape)
    return {
        "outer": Rule(eps=1 / m),
        "hidden": Rule(init_std=m**-0.5, lr=1 / m, muon_lr=m**-0.5, eps=1 / (m * d)),
        "vector": Rule(eps=1 / (m * d)),
    }


def with_multipliers(parametrization: Mapping[str, Any], shape: ModelConfig) -> ModelConfig:
    """Return `shape` with its multipliers multiplied by the table's factors."""
    m, d, c = _ratios(parametrization, shape)
    attention_multiplier = shape.attention_multiplier
    if c != 1:
        if attention_multiplier is None:  # start from the default of the base shape, whose head_dim is C / c
            attention_multiplier = (shape.head_width / c) ** -0.5
        attention_multiplier /= c
    return dataclasses.replace(
        shape,
        logits_multiplier=shape.logits_multiplier / m,
        residual_multiplier=shape.residual_multiplier / d,
        attention_multiplier=attention_multiplier,
    )


def parameter_kinds(decoder: Decoder) -> dict[Tensor, Kind]:
    """Return the kind of each parameter."""
    kinds: dict[Tensor, Kind] = dict.fromkeys(decoder.parameters(), "outer")
    kinds.update(dict.fromkeys(decoder.layers.parameters(), "vector"))
    kinds.update({module.weight: "hidden" for module in decoder.layers.modules() if isinstance(module, nn.Linear)})
    return kinds


@torch.no_grad()
def scale_initial_weights(decoder: Decoder, rules: Rules) -> None:
    """Scale initial weights by the table's factors. The random draws are the same under every parametrization."""
    for parameter, kind in parameter_kinds(decoder).items():
        if rules[kind].init_std != 1:
            parameter.mul_(rules[kind].init_std)
