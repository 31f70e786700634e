"""The parts of a block: RMSNorm, rotary positions, grouped-query causal attention, SwiGLU.

Notable: a block has two ways through, `forward` for many tokens and `step` for the next one of one sequence; both use
the same parts, and `step` is made to be compiled (`slm.model.decoding`).

Legend: B batch, T new tokens, S all tokens seen (cached and new), D hidden, H query heads, K key/value heads,
G = H/K queries a key, C head_dim, F feed-forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.cache import KVCache
from slm.model.config import ModelConfig

# Up to this many tokens, attention on a CPU is plain matmuls around a softmax, in blocks of so many queries: the flash
# kernel there spends more on its backward pass than it saves in memory (measured: docs/log.md, 2026-11-21).
CPU_MATMUL_ATTENTION_MAX_TOKENS = 2048
CPU_QUERY_BLOCK = 128


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; where one row is compiled for a CPU, multiply and sum, which reads the weight at memory bandwidth.

    The libraries' products of a matrix and a vector reach a third of it there (docs/log.md, 2026-11-22).
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() == weight.shape[1]:
        y = (weight * x.view(-1)).sum(-1).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last axis, in float32 at least, returned in float32 at least (arXiv:1910.07467)."""
    x = x if x.dtype == torch.float64 else x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """RMSNorm with float32 statistics and a learned gain; the output has the input's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return (rms_norm(x, self.eps) * self.weight).type_as(x)


def rotary_table(config: ModelConfig, start: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, C/2) of positions `start` .. `start + length - 1`.

    Made anew for each forward pass (T x C/2 numbers) and not kept as a buffer, which `module.to(bfloat16)` would round.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    positions = torch.arange(start, start + length, device=like.device, dtype=dtype)
    channels = torch.arange(0, config.head_width, 2, device=like.device, dtype=dtype)
    angles = positions[:, None] * config.rope_theta ** (-channels / config.head_width)
    return angles.cos(), angles.sin()


def rotate(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor, style: str) -> Tensor:
    """Turn each pair of channels by its angle (arXiv:2104.09864, eq. 34), in the precision of the table."""
    if style == "half":
        a, b = x_BHTC.chunk(2, dim=-1)
        turned = torch.cat((a * cos_TC - b * sin_TC, b * cos_TC + a * sin_TC), dim=-1)
    else:
        a, b = x_BHTC[..., 0::2], x_BHTC[..., 1::2]
        turned = torch.stack((a * cos_TC - b * sin_TC, b * cos_TC + a * sin_TC), dim=-1).flatten(-2)
    return turned.type_as(x_BHTC)


def causal_attention(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v where query t sees the keys up to S - T + t. Returns (B, H, T, C)."""
    T, S = q_BHTC.shape[2], k_BKSC.shape[2]
    if q_BHTC.device.type == "cpu" and T > 1 and S <= CPU_MATMUL_ATTENTION_MAX_TOKENS:
        return _matmul_attention(q_BHTC, k_BKSC, v_BKSC, scale)
    gqa = q_BHTC.shape[1] != k_BKSC.shape[1]
    if T == S:
        return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, is_causal=True, scale=scale, enable_gqa=gqa)
    mask = None if T == 1 else _visible(T, S, q_BHTC.device)
    return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask=mask, scale=scale, enable_gqa=gqa)


def _visible(T: int, S: int, device: torch.device) -> Tensor:
    """(T, S), true where the query may look; aligned to the *last* key, unlike SDPA's is_causal."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def _matmul_attention(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, scale: float) -> Tensor:
    """Blocks of queries, each against the keys it can see: most of the scores above the diagonal are never made."""
    (B, H, T, C), (K, S) = q_BHTC.shape, k_BKSC.shape[1:3]
    G = H // K
    q_BKGTC = (q_BHTC * scale).view(B, K, G, T, C)
    size = max(CPU_QUERY_BLOCK, T // 8)  # more blocks save little and are long to compile
    blocks = []
    for start in range(0, T, size):
        q = q_BKGTC[:, :, :, start : start + size]
        t = q.shape[3]
        s = S - T + start + t  # keys up to the last query's own
        k, v = k_BKSC[:, :, :s], v_BKSC[:, :, :s]
        scores = (q.reshape(B, K, G * t, C) @ k.transpose(-2, -1)).view(B, K, G, t, s)  # G queries share a matmul
        scores = scores.masked_fill(~_visible(t, s, q.device), -torch.inf)
        dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
        weights = scores.softmax(-1, dtype=dtype).type_as(v)
        blocks.append((weights.view(B, K, G * t, s) @ v).view(B, K, G, t, C))
    return torch.cat(blocks, dim=3).view(B, H, T, C)


def attend_once(
    q_BH1C: Tensor, past_k_BKSC: Tensor, past_v_BKSC: Tensor, k_BK1C: Tensor, v_BK1C: Tensor, scale: float
) -> Tensor:
    """Attention of one query to the S tokens before it and to itself. Returns (B, H, 1, C).

    Written as sums of products, which compile into loops over the cache where it lies; the token's own key and value
    stay apart, so that nothing is copied.
    """
    B, H, _, C = q_BH1C.shape
    q_BKGC = q_BH1C.view(B, k_BK1C.shape[1], -1, C) * scale
    exact = torch.float64 if q_BH1C.dtype == torch.float64 else torch.float32
    past_BKGS = (q_BKGC[:, :, :, None] * past_k_BKSC[:, :, None]).sum(-1, dtype=exact)
    own_BKG1 = (q_BKGC * k_BK1C).sum(-1, keepdim=True, dtype=exact)
    highest = torch.maximum(past_BKGS.amax(-1, keepdim=True), own_BKG1)
    past_BKGS, own_BKG1 = (past_BKGS - highest).exp(), (own_BKG1 - highest).exp()
    total = past_BKGS.sum(-1, keepdim=True) + own_BKG1
    mixed = ((past_BKGS / total).type_as(v_BK1C)[..., None] * past_v_BKSC[:, :, None]).sum(-2)
    return (mixed + (own_BKG1 / total).type_as(v_BK1C) * v_BK1C).view(B, H, 1, C)


class Attention(nn.Module):
    """Grouped-query causal self-attention (arXiv:2305.13245) with rotary positions. Tensor names are Llama's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        q_size, kv_size = config.num_heads * config.head_width, config.kv_heads * config.head_width
        self.q_proj = Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = Linear(q_size, config.hidden_size, bias=config.attention_bias)
        if config.qk_norm == "learned":
            self.q_norm = RMSNorm(config.head_width, config.norm_eps)
            self.k_norm = RMSNorm(config.head_width, config.norm_eps)

    def forward(
        self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, cache: KVCache | None = None, use: int = 0
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); with a cache, T new tokens after the cached ones, in the slot of `use`."""
        q, k, v = self._project(x_BTD, cos_TC, sin_TC)
        if cache is not None:
            k, v = cache.extend(use, k, v)
        return self.o_proj(causal_attention(q, k, v, self.config.attention_scale).transpose(1, 2).flatten(2))

    def step(
        self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, past_k_BKSC: Tensor, past_v_BKSC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of one token (T = 1) after S others; also returns its key and value, (B, K, 1, C)."""
        q, k, v = self._project(x_BTD, cos_TC, sin_TC)
        attended = attend_once(q, past_k_BKSC, past_v_BKSC, k, v, self.config.attention_scale)
        return self.o_proj(attended.flatten(1)[:, None]), k, v

    def _project(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x_BTD.shape
        q, k, v = (
            proj(x_BTD).view(B, T, -1, self.config.head_width).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self._normalize(q, k)
        q, k = (rotate(x, cos_TC, sin_TC, self.config.rope_style) for x in (q, k))
        return q, k, v

    def _normalize(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.qk_norm == "learned":
            return self.q_norm(q), self.k_norm(k)
        if self.config.qk_norm == "weightless":
            return rms_norm(q, self.config.norm_eps).type_as(q), rms_norm(k, self.config.norm_eps).type_as(k)
        return q, k


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


def scaled(x: Tensor, multiplier: float) -> Tensor:
    """x times a multiplier of the config; x itself where that is 1."""
    return x if multiplier == 1.0 else x * multiplier


class Block(nn.Module):
    """Pre-norm attention, then pre-norm feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, cache: KVCache | None = None, use: int = 0
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x_BTD = self._add(x_BTD, self.self_attn(self.input_layernorm(x_BTD), cos_TC, sin_TC, cache, use))
        return self._add(x_BTD, self.mlp(self.post_attention_layernorm(x_BTD)))

    def step(
        self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, past_k_BKSC: Tensor, past_v_BKSC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of one token (T = 1) after S others; also returns its key and value, (B, K, 1, C)."""
        attended, k, v = self.self_attn.step(self.input_layernorm(x_BTD), cos_TC, sin_TC, past_k_BKSC, past_v_BKSC)
        x_BTD = self._add(x_BTD, attended)
        return self._add(x_BTD, self.mlp(self.post_attention_layernorm(x_BTD))), k, v

    def _add(self, x_BTD: Tensor, branch_BTD: Tensor) -> Tensor:
        return x_BTD + scaled(branch_BTD, self.config.residual_multiplier)
