"""The base class of mixers, and the projections that softmax and linear attention share.

Legend: B batch, T tokens, D hidden, H query heads, K key/value heads, C head_dim.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from slm.model.config import ModelConfig
from slm.model.layers import Linear, RMSNorm, rms_norm
from slm.model.positions import Rotary, rotate


class Memory:
    """What a block remembers of earlier tokens. A shared block has a memory for each of its uses in a forward pass."""

    tensors: tuple[Tensor, ...]  # all tensors of the memory

    def past(self) -> tuple[Tensor, ...]:
        """Return the tensors with which `Mixer.step` computes the next token; they are not copies."""
        raise NotImplementedError

    def append(self, new: Sequence[Tensor]) -> None:
        """Add one token, given what `Mixer.step` returned for it."""
        raise NotImplementedError

    def select(self, source: Any, rows: Tensor) -> None:
        """Copy row `rows[r]` of `source`, which is not longer than this memory, to row r."""
        raise NotImplementedError

    def past_at(self, length: Tensor) -> tuple[Tensor, ...]:
        """Return `past` for use in a CUDA graph, which freezes shapes and Python numbers, so neither may change.

        `length` is the number of tokens so far, as a tensor on the device. Without this method no graph is used.
        """
        raise NotImplementedError

    def append_at(self, new: Sequence[Tensor], length: Tensor) -> None:
        """Do `append` in a CUDA graph, but without counting the token."""
        raise NotImplementedError

    def count_token(self) -> None:
        """Count one token that `append_at` has added."""


class State(Memory):
    """The memory of a recurrence: tensors (B, ...), in float32 at least."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], batch_size: int, **options: Any) -> None:
        options["dtype"] = torch.promote_types(options["dtype"], torch.float32)
        self.tensors = tuple(torch.zeros(batch_size, *shape, **options) for shape in shapes)

    def past(self) -> tuple[Tensor, ...]:
        return self.tensors

    def append(self, new: Sequence[Tensor]) -> None:
        for tensor, state in zip(self.tensors, new, strict=True):
            tensor.copy_(state)

    def select(self, source: Any, rows: Tensor) -> None:
        self.append([tensor[rows] for tensor in source.tensors])

    def past_at(self, length: Tensor) -> tuple[Tensor, ...]:
        return self.past()

    def append_at(self, new: Sequence[Tensor], length: Tensor) -> None:
        self.append(new)


class Mixer(nn.Module):
    """The part of a block that mixes tokens: `forward` for many tokens, `step` for one, its memory, and its costs.

    To add a mixer, subclass this in your own file, write the methods that raise `NotImplementedError`, and call
    `register_mixer` (docs/extending.md). A mixer is made as `cls(config, layer)`, where `layer` is the number of its
    block. Its linear maps must be `slm.model.layers.Linear`, which muP and CompleteP scale as matrices of a block.
    """

    takes_block_mask = False
    """Whether `forward` takes a `slm.model.positions.document_block_mask` in place of `starts_BT`."""
    compiles_on_cpu = True
    """Whether training on a CPU may compile blocks with this mixer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, x_BTD: Tensor, rotary: Rotary | None, memory: Any = None, starts_BT: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), where output t depends only on inputs up to t.

        With a `memory` from `make_memory`, the T tokens come after the tokens in the memory, and are added to it.
        `starts_BT` has for each token the position at which its document starts. Tokens before that position must not
        influence the output. `memory` and `starts_BT` are never given together.
        """
        raise NotImplementedError

    def step(self, x_B1D: Tensor, rotary: Rotary | None, *past: Tensor) -> tuple[Tensor, ...]:
        """Return `forward` of one token, then what `Memory.append` must keep. `past` comes from `Memory.past`.

        The method is compiled, so it must not write into `past`. On a GPU it becomes part of a CUDA graph, and `past`
        comes from `Memory.past_at`; there it must not wait for the device, as `.item()` would.
        """
        raise NotImplementedError

    def forward_static(
        self, x_1TD: Tensor, rotary: Rotary | None, start_1: Tensor, bias: Any, *memory: Tensor
    ) -> Tensor:
        """Return `forward` of T tokens from position `start_1`, and write what later tokens need into `memory`.

        For compilers that fix all shapes but T (`slm.model.static`). `memory` has tensors (1, ...) of `static_shapes`,
        whose contents do not count if `start_1` is 0. `bias` comes from `static_bias`. Without this method a decoder
        with the mixer cannot be exported to ExecuTorch.
        """
        raise NotImplementedError

    def static_bias(self, T: int, start_1: Tensor, max_length: int) -> Tensor | None:
        """Return what hides keys from queries in `forward_static` of T tokens; blocks of one kind share it."""
        return None

    @classmethod
    def static_shapes(cls, config: ModelConfig, max_length: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the memory for `forward_static`, by default `state_shapes`."""
        return cls.state_shapes(config)

    def init_special(self) -> None:
        """Initialise parameters that need other values than N(0, init_std), 1 for gains and 0 for biases."""

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Raise `ValueError` for a shape that this mixer cannot have."""

    @classmethod
    def num_params(cls, config: ModelConfig) -> tuple[int, int]:
        """Return two numbers: the weights of linear maps, each used once per token, and all other parameters."""
        raise NotImplementedError

    @classmethod
    def mixing_flops(cls, config: ModelConfig, layer: int, T: int) -> float:
        """Return the forward FLOPs of the matrix products between T tokens. Masked scores do not count."""
        raise NotImplementedError

    @classmethod
    def num_cached_tokens(cls, config: ModelConfig, layer: int, T: int) -> int:
        """Return for how many tokens keys and values must be kept to continue after T tokens; 0 by default."""
        return 0

    @classmethod
    def state_shapes(cls, config: ModelConfig) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a sequence's recurrent state, which do not depend on its length; by default no state."""
        return ()

    @classmethod
    def make_memory(cls, config: ModelConfig, layer: int, batch_size: int, max_length: int, **options: Any) -> Memory:
        """Return a memory for `max_length` tokens, by default a `State`; `options` are `device` and `dtype`."""
        return State(cls.state_shapes(config), batch_size, **options)


def restarted(memory: Sequence[Tensor], start_1: Tensor) -> list[Tensor]:
    """Return the recurrent state in `memory`, or zeros if `start_1` is 0."""
    return [torch.where(start_1 > 0, tensor, 0.0) for tensor in memory]


def running_sum(x: Tensor, dim: int) -> Tensor:
    """Return `x.cumsum(dim)`, by separate additions where torch would refuse it (`trainer.deterministic` on a GPU)."""
    return torch.stack([*accumulate(x.unbind(dim))], dim) if refuses_cumsum(x) else x.cumsum(dim)


def refuses_cumsum(x: Tensor) -> bool:
    """Whether operations must be deterministic and torch's kernel of `cumsum` is not: on a GPU, uncompiled."""
    return not torch.compiler.is_compiling() and torch.are_deterministic_algorithms_enabled() and x.is_cuda


def num_causal_pairs(n: int) -> float:
    """Return the number of causal (query, key) pairs of n tokens: the key is not after the query."""
    return n * (n + 1) / 2


def causal_pairs_in_blocks(T: int, block: int) -> float:
    """Return the number of causal pairs of T tokens that lie within one block of `block` tokens."""
    return T // block * num_causal_pairs(block) + num_causal_pairs(T % block)


class Projections(Mixer):
    """Grouped-query projections (arXiv:2305.13245) with optional norms and rotation. Tensor names are Llama's."""

    rope = False
    """Whether queries and keys are rotated; subclasses set it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        q_size, kv_size = config.num_heads * config.head_width, config.kv_heads * config.head_width
        self.q_proj = Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = Linear(q_size, config.hidden_size, bias=config.attention_bias)
        if config.qk_norm == "learned":
            self.q_norm = RMSNorm(config.head_width, config.norm_eps)
            self.k_norm = RMSNorm(config.head_width, config.norm_eps)

    def project(self, x_BTD: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, T, C), keys and values (B, K, T, C)."""
        q, k, v = (
            proj(x_BTD).unflatten(-1, (-1, self.config.head_width)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.qk_norm == "learned":
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.config.qk_norm == "weightless":
            q, k = (rms_norm(x, self.config.norm_eps).type_as(x) for x in (q, k))
        if self.rope and rotary is not None:
            q, k = (rotate(x, *rotary, self.config.rope_style) for x in (q, k))
        return q, k, v

    def rows_of_queries(self, q_1HTC: Tensor) -> Tensor:
        """Return (K, r, C) for `forward_static`, where a key head has r = TG rows: T tokens, each with G queries.

        The other order of r, or four axes, would give shapes that a compiler cannot derive from T, or copies.
        """
        q_1KTGC = q_1HTC.unflatten(1, (self.config.kv_heads, -1)).transpose(2, 3)
        return q_1KTGC.flatten(2, 3).flatten(0, 1)

    def project_rows(self, mixed_KrC: Tensor) -> Tensor:
        """Return the output projection (1, T, D) of mixed values in the order of `rows_of_queries`."""
        mixed_KTGC = mixed_KrC.unflatten(1, (-1, self.config.num_heads // self.config.kv_heads))
        projected: Tensor = self.o_proj(mixed_KTGC.transpose(0, 1).flatten(1)[None])
        return projected

    @classmethod
    def num_params(cls, config: ModelConfig) -> tuple[int, int]:
        weights = config.hidden_size * config.head_width * (2 * config.num_heads + 2 * config.kv_heads)
        biases = config.head_width * (config.num_heads + 2 * config.kv_heads) + config.hidden_size
        gains = 2 * config.head_width if config.qk_norm == "learned" else 0
        return weights, gains + (biases if config.attention_bias else 0)
