"""Sampling from a decoder with its cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from slm.model.cache import KVCache
from slm.model.decoder import Decoder


@torch.inference_mode()
def generate(
    decoder: Decoder,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    stop_id: int | None = None,
    num_ids: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that continue `prompt`, until `stop_id` or the end of the context.

    `temperature` 0 takes the likeliest id; `num_ids` bars the padding ids at the end of the vocabulary; the random
    numbers are the sampler's own (`seed`), so training is not disturbed.
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
    new = torch.tensor([prompt], device=table.device)
    for _ in range(min(max_new_tokens, room - len(prompt))):
        # The cache grows with each token, which compiled blocks would answer with a compilation each.
        with torch.compiler.set_stance("force_eager"):
            logits = decoder(new, cache)[0, -1, :num_ids].float()
        if not logits.isfinite().all():  # a diverged model has nothing to say
            return
        token = _pick(logits, temperature, top_k, rng)
        if token == stop_id:
            return
        yield token
        new = torch.tensor([[token]], device=table.device)


def _pick(logits_V: Tensor, temperature: float, top_k: int | None, rng: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < logits_V.numel():
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -torch.inf)
    return int(torch.multinomial((logits_V / temperature).softmax(-1), 1, generator=rng))
