"""Decoding: logits of the next token of one sequence, compiled or not, and sampling by them.

Notable: on a CPU a step reads every weight once and computes next to nothing, so it reaches the speed of the memory
only if the arithmetic is fused: the step of a block is compiled, once for all blocks of a kind. On a GPU the host would
be the limit (3.9 ms a token to launch the kernels of 30 blocks), so the whole step is captured once as a CUDA graph,
which one call launches. The decoder itself runs if there is no compiler, and for the prompt.

Legend: T new tokens, S cached tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.decoder import Block, Decoder, KVCache, raise_recompile_limit
from slm.model.layers import linear
from slm.model.mixers.base import Memory

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

    Call it without gradients. It empties the compiler's caches, which hold few shapes at a time. On a GPU the first
    step of each cache also captures a CUDA graph, in a fraction of a second.
    """
    torch._dynamo.reset()
    raise_recompile_limit(decoder.config)
    block_step: Any = torch.compile(Block.step, fullgraph=True)
    last: Any = torch.compile(_head, fullgraph=True)
    eager = eager_logits(decoder)
    captured: WeakKeyDictionary[KVCache, _CapturedStep] = WeakKeyDictionary()

    def next_logits(tokens_1T: Tensor, cache: KVCache) -> Tensor:
        is_captured = can_capture(decoder, cache)
        # Without a graph shapes grow, and the compiler specialises on lengths of 0 and 1.
        if tokens_1T.shape[1] > 1 or (cache.length < 2 and not is_captured):
            return eager(tokens_1T, cache)
        decoder.require_room(1, cache)
        if is_captured:
            if cache not in captured:
                captured[cache] = _CapturedStep(decoder, cache.memories, block_step, last)
            logits_V = captured[cache](tokens_1T, cache.length)
            for memory in cache.memories:
                memory.count()
            cache.length += 1
            return logits_V
        x_11D, rotary = decoder.embed(tokens_1T, cache.length)
        for block, memory in zip(decoder.config.block_uses, cache.memories, strict=True):
            layer: Any = decoder.layers[block]
            x_11D, *new = block_step(layer, x_11D, rotary, *memory.past())
            memory.append(new)
        cache.length += 1
        return last(decoder, x_11D[0, 0])

    return next_logits


def can_capture(decoder: Decoder, cache: KVCache) -> bool:
    """Whether a step is captured as a CUDA graph: on a GPU, if all memories allow it and no layer has ALiBi.

    The slopes of ALiBi are copied from the host in each step, which a graph does not allow.
    """
    if decoder.head_weight.device.type != "cuda" or "alibi" in decoder.config.layer_positions:
        return False
    return all(allows_graphs(type(memory)) for memory in cache.memories)


def allows_graphs(memory: type[Memory]) -> bool:
    """Whether `past_at` and `append_at` are as new as `past` and `append`.

    A subclass that overrides only the latter would be decoded in a graph by the rules of its parent.
    """
    for name in ("past", "append"):
        kind = next(kind for kind in memory.__mro__ if {name, f"{name}_at"} & vars(kind).keys())
        if kind is Memory or f"{name}_at" not in vars(kind):
            return False
    return True


class _CapturedStep:
    """The step of one token for the memories of one cache, launched by one call.

    What differs from token to token lies on the device, in tensors that stay where they are: the token, its position,
    and the memories.
    """

    def __init__(self, decoder: Decoder, memories: Sequence[Memory], block_step: Any, last: Any) -> None:
        device = decoder.head_weight.device
        self.token_11 = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.position = torch.zeros((), dtype=torch.long, device=device)

        def step() -> Tensor:
            x_11D, rotary = decoder.embed(self.token_11, self.position)
            for block, memory in zip(decoder.config.block_uses, memories, strict=True):
                x_11D, *new = block_step(decoder.layers[block], x_11D, rotary, *memory.past_at(self.position))
                memory.append_at(new, self.position)
            logits_V: Tensor = last(decoder, x_11D[0, 0])
            return logits_V

        self.replay = _capture(step, [tensor for memory in memories for tensor in memory.tensors])

    def __call__(self, token_11: Tensor, position: int) -> Tensor:
        """Logits (V,) of the token that follows `token_11`, which is at `position`."""
        self.token_11.copy_(token_11)
        self.position.fill_(position)
        return self.replay().clone()  # the next step overwrites the graph's own


def _capture(step: Callable[[], Tensor], changed: Sequence[Tensor]) -> Callable[[], Tensor]:
    """A function that launches as one CUDA graph what `step` launches, and returns the same tensor each time.

    `changed` is what a step changes; it is left as it was. See
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
    """
    before = [tensor.cpu() for tensor in changed]  # not on the GPU, whose peak of memory may be measured
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, and lets libraries allocate what they keep
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits_V = step()
    for tensor, values in zip(changed, before, strict=True):
        tensor.copy_(values)

    def replay() -> Tensor:
        graph.replay()
        return logits_V

    return replay


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
