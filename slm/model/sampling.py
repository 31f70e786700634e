"""Sampling from a decoder with its cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from slm.model.cache import KVCache
from slm.model.decoder import Decoder
from slm.model.decoding import NextLogits, eager_logits


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

    `temperature` 0 takes the likeliest id; `top_p` keeps the fewest ids that hold that much probability
    (arXiv:1904.09751); `num_ids` bars the padding ids at the end of the vocabulary; the random numbers are the
    sampler's own (`seed`), so training is not disturbed. `next_logits` is `slm.model.decoding.compiled_logits` where
    many tokens are wanted; uncompiled by default.
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
        if not logits.isfinite().all():  # a diverged model has nothing to say
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
        # Kept are those before which less than top_p is held: the first always is.
        p_V = torch.zeros_like(p_V).scatter(0, order_V, sorted_V * (sorted_V.cumsum(-1) - sorted_V < top_p))
    return int(torch.multinomial(p_V, 1, generator=rng))
