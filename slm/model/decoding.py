"""Logits of the next token, for one sequence that grows by a token at a time.

Notable: on a CPU a step reads every weight once and computes next to nothing, so it is as fast as the memory only if
the arithmetic is fused: the step of a block is compiled, once for all blocks of a kind. Where there is no compiler, or
several tokens are new (the prompt), the decoder itself runs.

Legend: T new tokens, S cached tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.block import Block
from slm.model.cache import KVCache
from slm.model.decoder import Decoder, let_every_kind_compile
from slm.model.layers import linear

RECURRENT = {"L", "G"}
"""Mixers whose past does not grow."""

NextLogits = Callable[[Tensor, KVCache], Tensor]
"""(tokens of shape (1, T), cache) -> logits (V,) of the token that follows; the cache then holds the T tokens too."""


def eager_logits(decoder: Decoder) -> NextLogits:
    """By the decoder itself, uncompiled. Only the last token goes through the head."""

    def next_logits(tokens_1T: Tensor, cache: KVCache) -> Tensor:
        # The cache grows with each token, which compiled blocks would answer with a compilation each.
        with torch.compiler.set_stance("force_eager"):
            return F.linear(decoder.hidden(tokens_1T, cache)[0, -1], decoder.head_weight)

    return next_logits


def compiled_logits(decoder: Decoder) -> NextLogits:
    """As `eager_logits`, with the step of one token compiled: seconds at the first of them, then several times faster.

    Call it without gradients. Empties the compiler's caches, which hold few shapes at a time.
    """
    torch._dynamo.reset()
    let_every_kind_compile(decoder.config)
    block_step: Any = torch.compile(Block.step, fullgraph=True)
    last: Any = torch.compile(_head, fullgraph=True)
    eager = eager_logits(decoder)

    def next_logits(tokens_1T: Tensor, cache: KVCache) -> Tensor:
        if tokens_1T.shape[1] > 1 or cache.length < 2:  # to the compiler, lengths of 0 and 1 are shapes of their own
            return eager(tokens_1T, cache)
        decoder.require_room(1, cache)
        x_11D, rotary = decoder.embed(tokens_1T, cache.length)
        new = []
        for use, block in enumerate(decoder.config.block_uses):
            past = cache.past(use)
            if decoder.config.mixers[block] not in RECURRENT:
                for tensor, axis in zip(past, (2, 2, 0), strict=False):  # keys, values, and perhaps distances
                    torch._dynamo.maybe_mark_dynamic(tensor, axis)
            x_11D, *own = block_step(decoder.layers[block], x_11D, rotary, *past)
            new.append(tuple(own))
        cache.append(new)
        return last(decoder, x_11D[0, 0])

    return next_logits


def _head(decoder: Decoder, x_D: Tensor) -> Tensor:
    return linear(decoder.finish(x_D), decoder.head_weight)
