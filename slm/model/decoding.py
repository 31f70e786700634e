"""Decoding one sequence: the logits of the next token, by compiled code or not, and sampling from the logits.

Notable: a prompt of several tokens runs uncompiled. A compiled step decodes one token:
- On a CPU, it reads every weight once and computes very little. Fused arithmetic makes it as fast as memory allows, so
  the step of a block is compiled, once for all blocks of a kind.
- On a GPU, the host would limit the speed (3.9 ms per token to launch the kernels of 30 blocks). So the whole step is
  captured as a CUDA graph, which one call launches.

Legend: T new tokens, D hidden, V vocabulary; an axis 1 is one sequence or one token.
"""

import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from slm.model.decoder import Block, Decoder, KVCache, block_kinds, configure_compiler
from slm.model.interface import CausalLM
from slm.model.layers import linear
from slm.model.mixers.base import Memory

NextLogits = Callable[[Tensor, Any], Tensor]
"""Takes tokens (1, T) and a cache of the model, to which they are added; returns the logits (V,) of the next token."""


def eager_logits(model: CausalLM) -> NextLogits:
    """Return `NextLogits` that run any model uncompiled. Only the last token goes through the head."""

    def next_logits(tokens_1T: Tensor, cache: Any) -> Tensor:
        # Compiled blocks would be compiled again for each token, because the cache grows. If nothing has been compiled,
        # importing the compiler would delay the first token by seconds.
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            return model.head(model.hidden(tokens_1T, cache)[0, -1])

    return next_logits


def compiled_logits(decoder: Decoder) -> NextLogits:
    """Return `NextLogits` that are several times faster, once the first step has been compiled, which takes seconds.

    Use them without gradients. This call empties the compiler's caches, which hold few shapes at a time. On a GPU the
    first step with each KV cache also captures a CUDA graph, in a fraction of a second.
    """
    torch._dynamo.reset()
    configure_compiler(decoder.config)
    block_step, head = _Precompiled(Block.step), _Precompiled(_head)
    eager = eager_logits(decoder)
    captured_steps: WeakKeyDictionary[KVCache, _CapturedStep] = WeakKeyDictionary()
    versions_of_caches: WeakKeyDictionary[KVCache, dict[int, Any]] = WeakKeyDictionary()
    kinds = block_kinds(decoder.config)

    def next_logits(tokens_1T: Tensor, cache: KVCache) -> Tensor:
        uses_graph = can_capture(decoder, cache)
        # Without a graph, shapes depend on the cache's length. The compiler would specialise on the lengths 0 and 1.
        if tokens_1T.shape[1] > 1 or (cache.length < 2 and not uses_graph):
            return eager(tokens_1T, cache)
        decoder.require_room(1, cache)
        if uses_graph:
            if cache not in captured_steps:
                steps = block_step.compiled, head.compiled
                captured_steps[cache] = _CapturedStep(decoder, cache.memories, *steps)
            logits_V: Any = captured_steps[cache](tokens_1T, cache.length)
            for memory in cache.memories:
                memory.count_token()
            cache.length += 1
            return logits_V
        x_11D, rotary = decoder.embed(tokens_1T, cache.length)
        versions = versions_of_caches.setdefault(cache, {})  # by use of a block
        checked = set()
        for use, (block, memory) in enumerate(zip(decoder.config.block_uses, cache.memories, strict=True)):
            arguments = decoder.layers[block], x_11D, rotary, *memory.past()
            # From token to token, the shapes of one kind of block all change alike, so one use of a version is checked.
            if (versions.get(use), kinds[block]) not in checked:
                versions[use] = block_step.version_for(*arguments, first=versions.get(use))
                checked.add((versions[use], kinds[block]))
            x_11D, *new = versions[use](*arguments)
            memory.append(new)
        cache.length += 1
        return head.version_for(decoder, x_11D[0, 0])(decoder, x_11D[0, 0])

    return next_logits


class _Precompiled:
    """A function that is compiled ahead of time, once for each kind of arguments.

    A call of such a version skips torch.compile's frames and checks, which take a tenth of a token's time at 125M
    parameters on a CPU (docs/log.md, 2026-11-29). The caller must know that the version fits the arguments.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.compiled: Any = torch.compile(function, fullgraph=True)
        self.guards: dict[Callable[..., Any], Callable[..., bool]] = {}  # by version
        if not hasattr(self.compiled, "aot_compile"):  # torch is older than 2.9, or its compiler is disabled
            self.guards[self.compiled] = lambda *_: True  # it checks its arguments itself, if they need to be checked

    def version_for(self, *arguments: Any, first: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Return a version that fits the arguments, compiled now if there is none; `first` is tried first."""
        for known in [first, *self.guards] if first else self.guards:
            if self.guards[known](*arguments):
                return known
        with torch._inductor.config.patch(force_disable_caches=False):  # without caches torch refuses
            precompiled = self.compiled.aot_compile((arguments, {}))
        new: Callable[..., Any] = precompiled.fn
        self.guards[new] = precompiled.guard_check
        return new


def can_capture(decoder: Decoder, cache: KVCache) -> bool:
    """Whether a step can be captured as a CUDA graph: on a GPU, if all memories allow it and no layer has ALiBi.

    ALiBi's slopes are copied from the host in each step, which a graph does not allow.
    """
    if decoder.device.type != "cuda" or "alibi" in decoder.config.layer_positions:
        return False
    return all(allows_graphs(type(memory)) for memory in cache.memories)


def allows_graphs(memory_class: type[Memory]) -> bool:
    """Whether `past_at` and `append_at`, the methods for a graph, do the same as `past` and `append`.

    They may differ if a subclass overrides only `past` or `append` and inherits the method for a graph. So the lowest
    class that defines `past` or `past_at` must define `past_at`, and likewise `append_at`.
    """
    for name in ("past", "append"):
        lowest_class = next(cls for cls in memory_class.__mro__ if name in vars(cls) or f"{name}_at" in vars(cls))
        if lowest_class is Memory or f"{name}_at" not in vars(lowest_class):
            return False
    return True


class _CapturedStep:
    """The step of one token for the memories of one cache, launched by one call.

    A graph reads and writes the same places on the device in each replay. So all that changes from token to token is in
    tensors that are never replaced: the token, its position and the memories.
    """

    def __init__(self, decoder: Decoder, memories: Sequence[Memory], block_step: Any, head: Any) -> None:
        device = decoder.device
        self.token_11 = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.position = torch.zeros((), dtype=torch.long, device=device)

        def step() -> Tensor:
            x_11D, rotary = decoder.embed(self.token_11, self.position)
            for block, memory in zip(decoder.config.block_uses, memories, strict=True):
                x_11D, *new = block_step(decoder.layers[block], x_11D, rotary, *memory.past_at(self.position))
                memory.append_at(new, self.position)
            logits_V: Tensor = head(decoder, x_11D[0, 0])
            return logits_V

        self.replay = _capture(step, [tensor for memory in memories for tensor in memory.tensors])

    def __call__(self, token_11: Tensor, position: int) -> Tensor:
        """Return the logits (V,) of the token that follows `token_11`, which is at `position`."""
        self.token_11.copy_(token_11)
        self.position.fill_(position)
        return self.replay().clone()  # the next step overwrites the graph's output


def _capture(step: Callable[[], Tensor], changed_tensors: Sequence[Tensor]) -> Callable[[], Tensor]:
    """Return a function that does `step` as one CUDA graph, and returns the same tensor each time.

    `changed_tensors` are the tensors that a step changes; their values are restored after the capture. See
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
    """
    saved = [tensor.cpu() for tensor in changed_tensors]  # not on the GPU, whose peak memory may be measured
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # to compile, and to let libraries allocate their workspaces
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits_V = step()
    for tensor, values in zip(changed_tensors, saved, strict=True):
        tensor.copy_(values)

    def replay() -> Tensor:
        graph.replay()
        return logits_V

    return replay


def _head(decoder: Decoder, x_D: Tensor) -> Tensor:
    return linear(decoder.finish(x_D), decoder.head_weight)


@torch.inference_mode()
def generate(
    model: CausalLM,
    prompt: list[int],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_id: int | Collection[int] | None = None,
    num_ids: int | None = None,
    seed: int = 0,
    next_logits: NextLogits | None = None,
    cache: Any = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that continue `prompt`, until a `stop_id` or the end of the context.

    `temperature` 0 takes the most likely id; `likely_logits` has `top_k`, `top_p` and `min_p`, and `penalised_logits`
    the `repetition_penalty` of all ids so far, those of the prompt too. `num_ids` excludes later ids, which only pad
    the vocabulary. Sampling has a random generator of its own (`seed`), so it does not disturb training. For many
    tokens, give `compiled_logits(decoder)`. A `cache` holds the first tokens of the prompt, but not all of them; all
    ids but the last one are added to it.
    """
    rng = torch.Generator(device=model.device).manual_seed(seed)
    context = model.config.max_position_embeddings
    ids = torch.tensor(prompt, device=model.device)
    new_tokens = ids[None, cache.length if cache else 0 :]
    if cache is None:
        cache = model.make_cache(1, min(context, len(prompt) + max_new_tokens))
    next_logits = next_logits or eager_logits(model)
    stop_ids = stop_id if isinstance(stop_id, Collection) else (stop_id,)
    for _ in range(min(max_new_tokens, context - len(prompt))):
        logits = next_logits(new_tokens, cache)[:num_ids].float()
        if not logits.isfinite().all():  # the model diverged
            return
        if repetition_penalty != 1:
            logits = penalised_logits(logits, ids, repetition_penalty)
        if temperature == 0:
            token_1 = logits.argmax(keepdim=True)
        else:
            likely = likely_logits(logits, temperature, top_k=top_k, top_p=top_p, min_p=min_p)
            token_1 = torch.multinomial(likely.softmax(-1), 1, generator=rng)
        token = int(token_1)
        if token in stop_ids:
            return
        yield token
        ids = torch.cat([ids, token_1])
        new_tokens = token_1[None]


def penalised_logits(logits_V: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make the ids that occurred less likely: divide their logits by `penalty`, or multiply them if they are negative.

    This is the repetition penalty of CTRL (arXiv:1909.05858, section 4.1) as it is used since: the paper's division
    alone would make an id with a negative logit more likely.
    """
    seen = logits_V[ids]
    return logits_V.index_put((ids,), torch.where(seen < 0, seen * penalty, seen / penalty))


def likely_logits(
    logits_V: Tensor,
    temperature: float,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Return the logits divided by `temperature`, with -inf for the ids that must not be drawn. The largest is 0.

    In this order: `top_k` keeps the k most likely ids; `top_p` the fewest ids whose probabilities sum to at least
    `top_p` (arXiv:1904.09751); `min_p` those with at least `min_p` times the highest probability (arXiv:2407.01082).
    """
    logits_V = (logits_V - logits_V.max()) / temperature  # a tiny temperature must not overflow
    if top_k is not None and top_k < logits_V.numel():
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -torch.inf)
    if top_p is not None and top_p < 1:
        p_V, order_V = logits_V.softmax(-1).sort(descending=True)
        is_excluded_V = p_V.cumsum(-1) - p_V >= top_p  # the most likely id is always kept
        logits_V = logits_V.masked_fill(is_excluded_V.scatter(0, order_V, is_excluded_V), -torch.inf)
    if min_p:
        logits_V = logits_V.masked_fill(logits_V < math.log(min_p), -torch.inf)
    return logits_V
