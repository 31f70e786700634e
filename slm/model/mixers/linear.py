"""Mixer L: linear attention (arXiv:2006.16236), where phi(q) phi(k) replaces exp(q k), with phi(x) = elu(x) + 1.

y_t = phi(q_t) S_t / (phi(q_t) z_t) with the state S_t = S_(t-1) + phi(k_t) v_t^T and z_t = z_(t-1) + phi(k_t).

Notable: in training, tokens of a chunk see each other through a masked matrix of scores, and all earlier tokens through
the state. Decoding uses only the state. With documents, the state holds only the document that is still open. All
weights are positive, so y is a weighted mean of values; `EPSILON` only prevents 0 / 0. `position` (rope, alibi) has no
effect: order enters through causality and through other layers. `attention_multiplier` would cancel in the mean.

Legend: B batch, T tokens, D hidden, H query heads, K key/value heads, G = H/K, C head_dim, n chunks of c tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.layers import float32_or_wider
from slm.model.mixers.base import Projections, causal_pairs_in_blocks, restarted, running_sum
from slm.model.positions import Rotary, documents_in_chunks

EPSILON = 1e-6  # added to the normaliser, as in the authors' code


class LinearAttention(Projections):
    """Grouped-query linear attention."""

    compiles_on_cpu = False  # in bfloat16, torch 2.13's code for a CPU has NaN in the gradient of k

    def forward(
        self, x_BTD: Tensor, rotary: Rotary | None, memory: Any = None, starts_BT: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.project(x_BTD, rotary)
        state = memory.past() if memory else None
        y, *new = chunkwise(feature(q), feature(k), v, self.config.chunk_size, state, starts_BT)
        if memory:
            memory.append(new)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def step(self, x_B1D: Tensor, rotary: Rotary | None, *past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        S_BKCC, z_BKC = past
        q, k, v = self.project(x_B1D, rotary)
        q, k = (feature(x).to(z_BKC.dtype) for x in (q, k))
        S_BKCC = S_BKCC + k.transpose(-2, -1) * v
        z_BKC = z_BKC + k[:, :, 0]
        q_BKGC = q.view(q.shape[0], k.shape[1], -1, q.shape[-1])
        y = (q_BKGC[..., None] * S_BKCC[:, :, None]).sum(-2)
        y = y / ((q_BKGC * z_BKC[:, :, None]).sum(-1, keepdim=True) + EPSILON)
        return self.o_proj(y.type_as(v).flatten(1)[:, None]), S_BKCC, z_BKC

    def forward_static(
        self, x_1TD: Tensor, rotary: Rotary | None, start_1: Tensor, bias: Any, *memory: Tensor
    ) -> Tensor:
        # The T tokens are one chunk. `chunkwise` has shapes that a compiler cannot derive from T.
        q_1HTC, k_1KTC, v_1KTC = self.project(x_1TD, rotary)
        S_1KCC, z_1KC = restarted(memory, start_1)
        q_KrC, k_KTC, v_KTC = self.rows_of_queries(feature(q_1HTC)), feature(k_1KTC).flatten(0, 1), v_1KTC.flatten(0, 1)
        scores_KrT = torch.bmm(q_KrC, k_KTC.transpose(1, 2)) * bias
        numerator_KrC = torch.bmm(scores_KrT, v_KTC) + torch.bmm(q_KrC, S_1KCC.flatten(0, 1))
        normaliser_Kr1 = scores_KrT.sum(-1, keepdim=True) + torch.bmm(q_KrC, z_1KC.flatten(0, 1)[..., None])
        memory[0].copy_(S_1KCC + torch.bmm(k_KTC.transpose(1, 2), v_KTC)[None])
        memory[1].copy_(z_1KC + feature(k_1KTC).sum(2))
        return self.project_rows(numerator_KrC / (normaliser_Kr1 + EPSILON))

    def static_bias(self, T: int, start_1: Tensor, max_length: int) -> Tensor:
        """Return (r, T): the factor on scores, 1 where a query sees a key of the same call."""
        token_T = torch.arange(T)
        sees_TT = (token_T <= token_T[:, None]).to(self.q_proj.weight.dtype)
        return sees_TT[:, None].expand(-1, self.config.num_heads // self.config.kv_heads, -1).flatten(0, 1)

    @classmethod
    def mixing_flops(cls, config: ModelConfig, layer: int, T: int) -> float:
        in_chunks = 4 * config.num_heads * config.head_width * causal_pairs_in_blocks(T, config.chunk_size)
        states = 2 * (config.num_heads + config.kv_heads) * config.head_width**2 * T  # read by queries, written by keys
        return in_chunks + states

    @classmethod
    def state_shapes(cls, config: ModelConfig) -> tuple[tuple[int, ...], ...]:
        # S, then z
        return (config.kv_heads, config.head_width, config.head_width), (config.kv_heads, config.head_width)


def feature(x: Tensor) -> Tensor:
    """Return elu(x) + 1, computed without the cancellation in exp(x) - 1 + 1 where x is far below 0."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def chunkwise(
    q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, chunk: int, state: Any, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return linear attention y (B, H, T, C) of T tokens, and the state after them: S (B, K, C, C) and z (B, K, C).

    `q_BHTC` and `k_BKTC` are features, phi(q) and phi(k). `state` is the state before the tokens, or None.
    """
    (B, H, T, C), K = q_BHTC.shape, k_BKTC.shape[1]
    sum_dtype = float32_or_wider(v_BKTC)
    c = min(chunk, T)
    n = -(-T // c)
    padding = n * c - T
    q = F.pad(q_BHTC, (0, 0, 0, padding)).view(B, K, H // K, n, c, C).transpose(2, 3).reshape(B, K, n, -1, C)
    k, v = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (n, c)) for x in (k_BKTC, v_BKTC))
    masked = torch.ones(c, c, dtype=torch.bool, device=q.device).triu(1)
    q_reading, k_writing = q, k  # 0 for queries that must not read the state, and keys that must not be written to it
    carries_Bn = None
    if starts_BT is not None:
        documents = documents_in_chunks(starts_BT, n, c)
        masked = masked | documents.before_Bncc[:, None, :, None]
        q_reading = q * documents.reads_Bnc.repeat(1, 1, H // K)[:, None, ..., None]
        k_writing = k * documents.writes_Bnc[:, None, ..., None]
        carries_Bn = documents.carries_Bn

    written = (k_writing.transpose(-2, -1) @ v).to(sum_dtype)
    S = _states_before(written, state[0] if state else None, carries_Bn)
    z = _states_before(k_writing.sum(-2, dtype=sum_dtype), state[1] if state else None, carries_Bn)

    scores = (q @ k.transpose(-2, -1)).view(B, K, n, -1, c, c).masked_fill(masked, 0.0).view(B, K, n, -1, c)
    numerator = scores @ v + q_reading @ S[:, :, :-1].type_as(q)
    from_state = (q_reading * z[:, :, :-1, None]).sum(-1, keepdim=True, dtype=sum_dtype)
    normaliser = scores.sum(-1, keepdim=True, dtype=sum_dtype) + from_state
    y = (numerator / (normaliser + EPSILON)).type_as(v).view(B, K, n, -1, c, C).transpose(2, 3)
    return y.reshape(B, H, n * c, C)[:, :, :T], S[:, :, -1], z[:, :, -1]


def _states_before(written: Tensor, first_state: Tensor | None, carries_Bn: Tensor | None) -> Tensor:
    """Return the state before each chunk, then the state after the last chunk, (B, K, n + 1, ...).

    A state is `first_state` plus what the chunks so far wrote. It restarts from 0 at a chunk that does not carry it.
    """
    initial = torch.zeros_like(written[:, :, :1]) if first_state is None else first_state[:, :, None]
    if carries_Bn is None:
        return torch.cat([initial, initial + running_sum(written, 2)], dim=2)
    states = [initial]
    for addition, carries_B in zip(written.split(1, dim=2), carries_Bn.unbind(1), strict=True):
        states.append(states[-1] * carries_B.view(-1, *[1] * (addition.ndim - 1)) + addition)
    return torch.cat(states, dim=2)
