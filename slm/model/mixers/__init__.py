"""What mixes tokens in a block, by letter: one module of this folder a mixer, chosen by `mixer_pattern`.

A mixer is an `nn.Module` made from (config, number of its block) with two ways through,
`forward(x_BTD, rotary, cache, use, starts_BT)` for many tokens and `step(x_B1D, rotary, *past)` for the next one, where
`past` is what `KVCache.past` says of its use; `step` also returns what `KVCache.append` shall keep. `starts_BT`, which
does not go with a cache, says where the document of each token starts: nothing before that may reach it. A mixer's
counts are in `slm.model.counts`, its place in a cache in `slm.model.cache`, both under the same letter.
"""

from __future__ import annotations

from torch import nn

from slm.model.config import ModelConfig
from slm.model.mixers.linear import LinearAttention
from slm.model.mixers.sliding import SlidingAttention
from slm.model.mixers.softmax import SoftmaxAttention
from slm.model.mixers.sparse import SparseAttention
from slm.model.mixers.ssd import SSD

REGISTRY: dict[str, type[nn.Module]] = {
    "F": SoftmaxAttention,
    "S": SlidingAttention,
    "P": SparseAttention,
    "L": LinearAttention,
    "G": SSD,
}


def make_mixer(config: ModelConfig, layer: int) -> nn.Module:
    """The mixer of block number `layer`."""
    return REGISTRY[config.mixers[layer]](config, layer)
