"""Mixer F: causal softmax attention to all tokens so far (arXiv:1706.03762), with grouped queries.

Notable: K = H is multi-head and K = 1 multi-query attention. Positions are rotations (`rope`), linear biases of the
scores (`alibi`), or none. On a GPU, grouped queries never reach torch's math kernel, which keeps all B H T T scores.

Legend: B batch, T new tokens, S all tokens (cached and new), D hidden, H query heads, K key/value heads,
G = H/K query heads per key head, C head_dim.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.layers import float32_or_wider
from slm.model.mixers.base import Memory, Projections, num_causal_pairs
from slm.model.mixers.blocked import (
    alibi_bias,
    blocked_attention,
    distances_to_keys,
    in_document,
    inference_attention,
    visible_keys,
)
from slm.model.positions import Rotary, alibi_slopes

# Up to this many tokens, compiled training on a CPU uses `blocked_attention`, because SDPA's flash kernel loses more
# time in its backward pass than it gains by saving memory. Without gradients, or uncompiled, SDPA is up to ten times as
# fast (docs/log.md, 2026-11-21 and 2026-11-29), and `inference_attention` in bfloat16 faster still up to this length.
CPU_BLOCKED_ATTENTION_MAX_TOKENS = 2048

FLEX_HEAD_DIMS = range(16, 129)
"""Head widths for FlexAttention's kernel. It refuses smaller ones; with larger ones, its tiles do not fit every GPU."""


def has_fused_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has 16-bit kernels for grouped queries (flash attention, FlexAttention): on Ampere or newer."""
    is_16_bit = dtype in (torch.bfloat16, torch.float16)
    return is_16_bit and device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 8


def causal_attention(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, scale: float, slopes: list[float], starts_BT: Any = None
) -> Tensor:
    """Return softmax(scale q k^T - slope distance) v, (B, H, T, C), where query t sees keys 0 .. S - T + t.

    `slopes` has one number per query head, or is empty for scores without bias. `starts_BT`, only for T = S, has the
    first key that each query sees. Without slopes, the `document_block_mask` of the starts may be given instead.
    """
    T, S = q_BHTC.shape[2], k_BKSC.shape[2]
    if starts_BT is not None and not isinstance(starts_BT, Tensor):
        from torch.nn.attention.flex_attention import flex_attention  # imports the compiler, which takes 1.4 s

        return flex_attention(q_BHTC, k_BKSC, v_BKSC, block_mask=starts_BT, scale=scale, enable_gqa=True)
    is_plain = not slopes and starts_BT is None
    if q_BHTC.device.type == "cpu" and T > 1 and S <= CPU_BLOCKED_ATTENTION_MAX_TOKENS:
        if torch.compiler.is_compiling() and q_BHTC.requires_grad:
            return blocked_attention(q_BHTC, k_BKSC, v_BKSC, scale, slopes, starts_BT=starts_BT)
        if is_plain and _infers_in_bfloat16(q_BHTC):
            return inference_attention(q_BHTC, k_BKSC, v_BKSC, scale)
    if is_plain and T == S:
        return _sdpa(q_BHTC, k_BKSC, v_BKSC, scale=scale, is_causal=True)
    mask = None if T == 1 else visible_keys(T, S, q_BHTC.device)  # a single query sees all keys
    if mask is not None and starts_BT is not None:
        mask = mask & in_document(starts_BT, 0, S)
    if slopes:
        bias = alibi_bias(slopes, 1, distances_to_keys(T, S, q_BHTC))[0].type_as(q_BHTC)
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    return _sdpa(q_BHTC, k_BKSC, v_BKSC, scale=scale, attn_mask=mask)


def _infers_in_bfloat16(q_BHTC: Tensor) -> bool:
    """Whether this is uncompiled, without gradients, in bfloat16, and the CPU has products of bfloat16."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or q_BHTC.dtype != torch.bfloat16:
        return False
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _sdpa(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Call torch's attention. If no fused kernel takes grouped queries, each query head gets a copy of its keys."""
    G = q_BHTC.shape[1] // k_BKSC.shape[1]
    copies_keys = G > 1 and not _takes_groups(q_BHTC, attn_mask)
    if copies_keys:
        k_BKSC, v_BKSC = (x.repeat_interleave(G, dim=1) for x in (k_BKSC, v_BKSC))
    enable_gqa = G > 1 and not copies_keys
    return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask, enable_gqa=enable_gqa, **options)


def _takes_groups(q_BHTC: Tensor, attn_mask: Tensor | None) -> bool:
    """Whether torch has a fused kernel for grouped queries.

    On a GPU this is flash attention, which takes no mask, no float32 and at most 256 channels. Without a fused kernel,
    torch silently uses the math kernel, which keeps all scores for the backward pass: 2.4 GB per block in float32 for
    16 x 2,048 tokens and 9 heads.
    """
    if q_BHTC.device.type == "cpu":
        return True
    return attn_mask is None and q_BHTC.shape[3] <= 256 and has_fused_kernels(q_BHTC.device, q_BHTC.dtype)


class KeysAndValues(Memory):
    """Keeps all keys and values, in order. Subclasses for sliding and sparse attention keep fewer tokens."""

    def __init__(self, config: ModelConfig, layer: int, batch_size: int, num_places: int, **options: Any) -> None:
        self.config = config
        self.has_alibi = "alibi" in config.layer_positions
        self.store = torch.zeros(2, batch_size, config.kv_heads, num_places, config.head_width, **options)
        self.tensors = (self.store,)
        self.length = 0  # number of tokens so far

    def past(self) -> tuple[Tensor, ...]:
        """Return the keys and values (B, K, S, C) that the next token sees, and their distances (S,) for ALiBi."""
        k_BKSC, v_BKSC = self.store[:, :, :, : self.num_kept]
        past = (k_BKSC, v_BKSC, self.distances()) if self.has_alibi else (k_BKSC, v_BKSC)
        # The axes of tokens are marked as dynamic, so that `step` is not compiled again for each length.
        for tensor, axis in zip(past, (2, 2, 0), strict=False):  # distances may be missing
            torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return past

    def append(self, new: Sequence[Tensor]) -> None:
        # `new` is a key and a value, (B, K, 1, C) each.
        self.store[:, :, :, self.place_at(self.length)] = torch.stack(tuple(new)).squeeze(-2)
        self.length += 1

    def extend(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Add T tokens; returns all keys and values that these tokens may see, their own last."""
        start = self.length
        self.length += k_BKTC.shape[2]
        self.store[:, :, :, start : self.length] = torch.stack((k_BKTC, v_BKTC))
        k_BKSC, v_BKSC = self.store[:, :, :, : self.length]
        return k_BKSC, v_BKSC

    def select(self, source: Any, rows: Tensor) -> None:
        self.length = source.length
        self.store[:, :, :, : self.num_kept] = source.store[:, :, :, : self.num_kept].index_select(1, rows)

    def past_at(self, length: Tensor) -> tuple[Tensor, ...]:
        """Return all R places of the store, keys and values (B, K, R, C), and whether each place is in use (R,)."""
        is_kept_R = torch.arange(self.store.shape[3], device=self.store.device) < self.end_at(length)
        return self.store[0], self.store[1], is_kept_R

    def append_at(self, new: Sequence[Tensor], length: Tensor) -> None:
        self.store.index_copy_(3, self.place_at(length).view(1), torch.stack(tuple(new)).to(self.store.dtype))

    def count_token(self) -> None:
        self.length += 1

    def end_at(self, length: Any) -> Any:
        """Return the end of the places in use after `length` (an int or a tensor) tokens; may exceed the store."""
        return length

    def place_at(self, length: Any) -> Any:
        """Return the place in the store for the token after `length` tokens (an int or a tensor)."""
        return self.end_at(length)

    @property
    def num_kept(self) -> int:
        """Number of tokens in the store; they are at its front."""
        return int(self.end_at(self.length))

    def distances(self) -> Tensor:
        """Return the distances (S,) in tokens from each kept token to the next token."""
        return torch.arange(self.length, 0, -1, device=self.store.device)


class SoftmaxAttention(Projections):
    """Attention to all tokens so far. Subclasses override `mix`, `num_pairs`, `num_cached_tokens` and `memory`."""

    memory = KeysAndValues

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.rope = config.layer_positions[layer] == "rope"
        self.slopes = alibi_slopes(config.num_heads) if config.layer_positions[layer] == "alibi" else []
        self.takes_block_mask = type(self) is SoftmaxAttention and not self.slopes  # subclasses have other patterns

    def forward(self, x_BTD: Tensor, rotary: Rotary | None, memory: Any = None, starts_BT: Any = None) -> Tensor:
        q, k, v = self.project(x_BTD, rotary)
        past = 0
        if memory:
            past = memory.length
            k, v = memory.extend(k, v)
        mixed = self.mix(q, k, v, past, starts_BT)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def mix(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, past: int, starts_BT: Any = None) -> Tensor:
        """Return the mixed values (B, H, T, C) of T queries that come after `past` earlier tokens."""
        return causal_attention(q_BHTC, k_BKSC, v_BKSC, self.config.attention_scale, self.slopes, starts_BT)

    def step(self, x_B1D: Tensor, rotary: Rotary | None, *past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BH1C, k_BK1C, v_BK1C = self.project(x_B1D, rotary)
        # `rest` is empty, or holds one tensor (S,): distances with ALiBi; in a CUDA graph, whether a place is in use.
        past_k_BKSC, past_v_BKSC, *rest = past
        q_BKGC = q_BH1C.view(len(q_BH1C), k_BK1C.shape[1], -1, q_BH1C.shape[3]) * self.config.attention_scale
        # Sums of products are compiled into loops that read the cache. A concatenation would copy the cache, so the
        # token's own key and value are added separately.
        sum_dtype = float32_or_wider(q_BH1C)
        past_scores_BKGS = (q_BKGC[:, :, :, None] * past_k_BKSC[:, :, None]).sum(-1, dtype=sum_dtype)
        if self.slopes:
            past_scores_BKGS = past_scores_BKGS + alibi_bias(self.slopes, self.config.kv_heads, rest[0])
        elif rest and rest[0].dtype == torch.bool:
            past_scores_BKGS = past_scores_BKGS.masked_fill(~rest[0], -torch.inf)
        own_score_BKG1 = (q_BKGC * k_BK1C).sum(-1, keepdim=True, dtype=sum_dtype)
        highest = torch.maximum(past_scores_BKGS.amax(-1, keepdim=True), own_score_BKG1)
        past_weights = (past_scores_BKGS - highest).exp()
        own_weight = (own_score_BKG1 - highest).exp()
        total = past_weights.sum(-1, keepdim=True) + own_weight
        mixed = (past_weights[..., None] * past_v_BKSC[:, :, None]).sum(-2) + own_weight * v_BK1C
        return self.o_proj((mixed / total).type_as(v_BK1C).flatten(1)[:, None]), k_BK1C, v_BK1C

    def forward_static(
        self, x_1TD: Tensor, rotary: Rotary | None, start_1: Tensor, bias: Any, *memory: Tensor
    ) -> Tensor:
        q_1HTC, *new = self.project(x_1TD, rotary)
        for store_1KLC, x_1KTC in zip(memory, new, strict=True):
            store_1KLC.index_copy_(2, torch.arange(x_1TD.shape[1]) + start_1, x_1KTC)
        k_KLC, v_KLC = (store_1KLC.flatten(0, 1) for store_1KLC in memory)
        q_KrC = self.rows_of_queries(q_1HTC * self.config.attention_scale)
        weights_KrL = (torch.bmm(q_KrC, k_KLC.transpose(1, 2)) + bias).softmax(-1)
        return self.project_rows(torch.bmm(weights_KrL, v_KLC))

    def static_bias(self, T: int, start_1: Tensor, max_length: int) -> Tensor:
        """Return (K or 1, r, L): -inf where a query must not see a key, and ALiBi's bias elsewhere."""
        key_L, query_T1 = torch.arange(max_length), (torch.arange(T) + start_1)[:, None]
        G = self.config.num_heads // self.config.kv_heads
        bias_KGTL = torch.zeros(1, G, 1, 1)
        if self.slopes:
            bias_KGTL = alibi_bias(self.slopes, self.config.kv_heads, (query_T1 - key_L).float())
        bias_KGTL = bias_KGTL.masked_fill(~self.sees(query_T1, key_L), -torch.inf)
        return bias_KGTL.transpose(1, 2).flatten(1, 2)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the query at one position sees the key at another; subclasses override it."""
        return key <= query

    @classmethod
    def static_shapes(cls, config: ModelConfig, max_length: int) -> tuple[tuple[int, ...], ...]:
        return ((config.kv_heads, max_length, config.head_width),) * 2

    @classmethod
    def num_pairs(cls, config: ModelConfig, layer: int, T: int) -> float:
        """Return the number of (query, key) pairs of T tokens in which the query sees the key."""
        return num_causal_pairs(T)

    @classmethod
    def mixing_flops(cls, config: ModelConfig, layer: int, T: int) -> float:
        """Count two multiply-adds per channel for each pair and head: one in the score, one in the mixed value."""
        return 4 * config.num_heads * config.head_width * cls.num_pairs(config, layer, T)

    @classmethod
    def num_cached_tokens(cls, config: ModelConfig, layer: int, T: int) -> int:
        return T

    @classmethod
    def make_memory(cls, config: ModelConfig, layer: int, batch_size: int, max_length: int, **options: Any) -> Memory:
        return cls.memory(config, layer, batch_size, cls.num_cached_tokens(config, layer, max_length), **options)
