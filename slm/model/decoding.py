"""Decoding: logits of the next token of one sequence, compiled or not, and sampling by them.

Notable: on a CPU a step reads every weight once and computes next to nothing, so it reaches the speed of the memory
only if the arithmetic is fused: the step of a block is compiled, once for all blocks of a kind. The decoder itself runs
if there is no compiler, and for the prompt.

Legend: T new tokens, S cached tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.decoder import Block, Decoder, KVCache, raise_recompile_limit
from slm.model.layers import linear

NextLogits = Callable[[Tensor, KVCache], Tensor]
"""(tokens of shape (1, T), cache) -> logits (V,) of the token that follows; the cache then holds the T tokens too."""


def eager_logits(decoder: Decoder) -> NextLogits:
    """Logits by the decoder itself, uncompiled. Only the last token goes through the head."""

    def next_logits(tokens_1T: Tensor, cache: KVCache) -> Tensor:
        # Compiled blocks would compile once for each token, since the cache grows.
        with torch.compiler.set_stance("force_eager"):
            return F.linear(decoder.hidden(tokens_1T, cache)[0, -1], decoder.head_weight)

    return next_logits


def compiled_logits(decoder: Decoder) -> NextLogits:
    """`eager_logits` with the step of one token compiled: it takes seconds once, and is then several times faster.

    Call it without gradients. It empties the compiler's caches, which hold few shapes at a time.
    """
    torch._dynamo.reset()
    raise_recompile_limit(decoder.config)
    block_step: Any = torch.compile(Block.step, fullgraph=True)
    last: Any = torch.compile(_head, fullgraph=True)
    eager = eager_logits(decoder)

    def next_logits(tokens_1T: Tensor, cache: KVCache) -> Tensor:
        if tokens_1T.shape[1] > 1 or cache.length < 2:  # the compiler specialises on lengths of 0 and 1
            return eager(tokens_1T, cache)
        decoder.require_room(1, cache)
        x_11D, rotary = decoder.embed(tokens_1T, cache.length)
        for block, memory in zip(decoder.config.block_uses, cache.memories, strict=True):
            layer: Any = decoder.layers[block]
            x_11D, *new = block_step(layer, x_11D, rotary, *memory.past())
            memory.append(new)
        cache.length += 1
        return last(decoder, x_11D[0, 0])

    return next_logits


def _head(decoder: Decoder, x_D: Tensor) -> Tensor:
    return linear(decoder.finish(x_D), decoder.head_weight)


@torch.inference_mode()
def generate(
    decoder: Decoder,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float | None = None,
    stop_id: int | None = None,
    num_ids: int | None = None,
    seed: int = 0,
    next_logits: NextLogits | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that continue `prompt`, until `stop_id` or the end of the context.

    `temperature` 0 takes the most likely id; `top_p` keeps the fewest ids that hold that much probability
    (arXiv:1904.09751); `num_ids` excludes the padding ids at the end of the vocabulary. The random numbers are the
    sampler's own (`seed`), so training is not disturbed. For many tokens, `next_logits` should be `compiled_logits`.
    """
    table = decoder.embed_tokens.weight
    rng = torch.Generator(device=table.device).manual_seed(seed)
    room = decoder.config.max_position_embeddings
    cache = KVCache(
        decoder.config,
        batch_size=1,
        max_length=min(room, len(prompt) + max_new_tokens),
        device=table.device,
        dtype=table.dtype,
    )
    next_logits = next_logits or eager_logits(decoder)
    new = torch.tensor([prompt], device=table.device)
    for _ in range(min(max_new_tokens, room - len(prompt))):
        logits = next_logits(new, cache)[:num_ids].float()
        if not logits.isfinite().all():  # a model that diverged
            return
        token = _pick(logits, temperature, top_k, top_p, rng)
        if token == stop_id:
            return
        yield token
        new = torch.tensor([[token]], device=table.device)


def _pick(logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None, rng: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < logits_V.numel():
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -torch.inf)
    p_V = ((logits_V - logits_V.max()) / temperature).softmax(-1)  # a tiny temperature must not overflow
    if top_p is not None and top_p < 1:
        sorted_V, order_V = p_V.sort(descending=True)
        # An id is kept if the more likely ids hold less than top_p; the first id always is.
        p_V = torch.zeros_like(p_V).scatter(0, order_V, sorted_V * (sorted_V.cumsum(-1) - sorted_V < top_p))
    return int(torch.multinomial(p_V, 1, generator=rng))
