"""Queries, keys and values: what softmax attention of any pattern and linear attention have in common.

Legend: B batch, T tokens, D hidden, H query heads, K key/value heads, C head_dim.
"""

from __future__ import annotations

from torch import Tensor, nn

from slm.model.config import ModelConfig
from slm.model.layers import Linear, RMSNorm, rms_norm
from slm.model.positions import Rotary, rotate


class Projections(nn.Module):
    """Grouped-query projections (arXiv:2305.13245) with optional norms and rotation. Tensor names are Llama's."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.rope = config.layer_positions[layer] == "rope"
        q_size, kv_size = config.num_heads * config.head_width, config.kv_heads * config.head_width
        self.q_proj = Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = Linear(q_size, config.hidden_size, bias=config.attention_bias)
        if config.qk_norm == "learned":
            self.q_norm = RMSNorm(config.head_width, config.norm_eps)
            self.k_norm = RMSNorm(config.head_width, config.norm_eps)

    def project(self, x_BTD: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, C), keys and values (B, K, T, C)."""
        B, T, _ = x_BTD.shape
        q, k, v = (
            proj(x_BTD).view(B, T, -1, self.config.head_width).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self._normalize(q, k)
        if self.rope and rotary is not None:
            q, k = (rotate(x, *rotary, self.config.rope_style) for x in (q, k))
        return q, k, v

    def _normalize(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.qk_norm == "learned":
            return self.q_norm(q), self.k_norm(k)
        if self.config.qk_norm == "weightless":
            return rms_norm(q, self.config.norm_eps).type_as(q), rms_norm(k, self.config.norm_eps).type_as(k)
        return q, k
