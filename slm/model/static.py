"""A decoder for compilers that fix shapes ahead of time, as those for phones do: its memory is tensors of fixed shapes.

Notable: T is the only axis that may change between calls. Attention reads the whole cache, with a bias that hides what
a token must not see, since such a program has no loops over a length. A call at position 0 begins a new text.

Legend: T tokens, L max_length, D hidden, V vocabulary; an axis 1 is one sequence.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.counts import mixers_of_blocks
from slm.model.decoder import Decoder, block_kinds
from slm.model.mixers.base import Mixer


class StaticDecoder(nn.Module):
    """The decoder for one sequence of up to `max_length` tokens; `names` has the buffers of each use of a block.

    Raises `ValueError` for a mixer without `forward_static`.
    """

    def __init__(self, decoder: Decoder, max_length: int) -> None:
        super().__init__()
        self.decoder, self.max_length = decoder, max_length
        config = decoder.config
        mixers = mixers_of_blocks(config)
        for mixer, letter in zip(mixers, config.mixer_letters, strict=True):
            if mixer.forward_static is Mixer.forward_static:
                raise ValueError(f"mixer {letter} ({mixer.__name__}) has no forward_static, which a program needs")
        self.names: list[list[str]] = []
        for use, block in enumerate(config.block_uses):
            shapes = mixers[block].static_shapes(config, max_length)
            self.names.append([f"memory_{use}_{i}" for i in range(len(shapes))])
            for name, shape in zip(self.names[-1], shapes, strict=True):
                self.register_buffer(name, torch.zeros(1, *shape))

    def forward(self, tokens_1T: Tensor, start_1: Tensor) -> Tensor:
        """Return the logits (1, T, V) of T tokens, the first of which is at position `start_1`."""
        config = self.decoder.config
        x_1TD, rotary = self.decoder.embed(tokens_1T, start_1)
        kinds, biases = block_kinds(config), {}
        for names, block in zip(self.names, config.block_uses, strict=True):
            layer: Any = self.decoder.layers[block]
            if kinds[block] not in biases:
                biases[kinds[block]] = layer.self_attn.static_bias(tokens_1T.shape[1], start_1, self.max_length)
            memory = [getattr(self, name) for name in names]
            normed_1TD = layer.input_layernorm(x_1TD)
            mixed_1TD = layer.self_attn.forward_static(normed_1TD, rotary, start_1, biases[kinds[block]], *memory)
            x_1TD = layer.add_branches(x_1TD, normed_1TD, mixed_1TD)
        return F.linear(self.decoder.finish(x_1TD), self.decoder.head_weight)
