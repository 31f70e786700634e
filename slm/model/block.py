"""A block: a mixer of tokens, then a feed-forward, each added to the residual stream.

Notable: a block has two ways through, `forward` for many tokens and `step` for the next one of one sequence; both use
the same parts, and `step` is made to be compiled (`slm.model.decoding`). The mixer is `self_attn` in the names of
tensors, whatever it is, so that Llama's names are ours.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from slm.model.cache import KVCache
from slm.model.config import ModelConfig
from slm.model.layers import FeedForward, make_norm, scaled
from slm.model.mixers import make_mixer
from slm.model.positions import Rotary


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); with `parallel_block`, x + mixer(norm(x)) + mlp(norm(x)).

    `norm_position` says whether there is a norm of a branch's input, of its output, or of both.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        before, after = config.norm_position != "post", config.norm_position != "pre"
        self.input_layernorm = make_norm(config) if before else nn.Identity()
        self.self_attn = make_mixer(config, layer)
        self.attention_output_norm = make_norm(config) if after else nn.Identity()
        self.post_attention_layernorm = make_norm(config) if before and not config.parallel_block else nn.Identity()
        self.mlp = FeedForward(config)
        self.mlp_output_norm = make_norm(config) if after else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary | None,
        cache: KVCache | None = None,
        use: int = 0,
        starts_BT: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        normed = self.input_layernorm(x_BTD)
        return self._finish(x_BTD, normed, self.self_attn(normed, rotary, cache, use, starts_BT))

    def step(self, x_B1D: Tensor, rotary: Rotary | None, *past: Tensor) -> tuple[Tensor, ...]:
        """`forward` of one token, given the past of this use; also returns what the cache shall keep of it."""
        normed = self.input_layernorm(x_B1D)
        mixer: Any = self.self_attn
        mixed, *new = mixer.step(normed, rotary, *past)
        return self._finish(x_B1D, normed, mixed), *new

    def _finish(self, x_BTD: Tensor, normed_BTD: Tensor, mixed_BTD: Tensor) -> Tensor:
        middle = self._add(x_BTD, self.attention_output_norm(mixed_BTD))
        into_mlp = normed_BTD if self.config.parallel_block else self.post_attention_layernorm(middle)
        return self._add(middle, self.mlp_output_norm(self.mlp(into_mlp)))

    def _add(self, x_BTD: Tensor, branch_BTD: Tensor) -> Tensor:
        return x_BTD + scaled(branch_BTD, self.config.residual_multiplier)
