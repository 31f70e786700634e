"""Mixer G: linear attention with one data-dependent decay for each head, as in Mamba-2 (arXiv:2405.21060).

    h_t = exp(dt_t A) h_(t-1) + dt_t k_t v_t^T        (state of a head, N x C; k, q, v are the paper's B, C, x)
    y_t = q_t h_t + D v_t                              A = -exp(A_log) < 0, dt_t = softplus(dt_proj x_t + dt_bias)
    out = o_proj(RMSNorm(y * silu(g_proj x)))          (RMSNorm over the heads of a group, with a gain)

As published (section 7 and the authors' module): a causal depthwise convolution with SiLU on q, k and v, the skip D,
the gated norm, initial dt in [0.001, 0.1] and -A in [1, 16], queries and keys shared by groups of heads. Departures:
- The number of these groups is `num_kv_heads`, and the projections are separate matrices.
- The inner width is num_heads x head_dim, which need not be twice the hidden size.
- Every block keeps its feed-forward, as in hybrid models, while Mamba-2 has none.

Training works in chunks. Every decay is the exponential of a difference of summed logs that is never above 0. Decoding
keeps the state and the last `conv_kernel` - 1 inputs of the convolution. With documents, the state holds only the
document that is still open, and the convolution takes 0 for inputs from other documents. `position` (rope and alibi),
`qk_norm` and `attention_multiplier` have no effect: decay and convolution already depend on distance.

Legend: B batch, T tokens, D hidden, H heads, K groups, R = H/K heads per group, N state_size, C head_dim, I = HC,
n chunks of c tokens, X channels of the convolution (I + 2KN), t = conv_kernel - 1.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.config import ModelConfig
from slm.model.layers import Linear, float32_or_wider, rms_norm
from slm.model.mixers.base import Mixer, causal_pairs_in_blocks, restarted, running_sum
from slm.model.positions import Rotary, documents_in_chunks

DT_RANGE = (1e-3, 1e-1)  # initial dt, uniform in logs
A_RANGE = (1.0, 16.0)  # initial -A, uniform


class SSD(Mixer):
    """The mixer of Mamba-2: state-space duality."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        inner_size, key_size = config.num_heads * config.head_width, config.kv_heads * config.state_size
        self.q_proj = Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, inner_size, bias=config.attention_bias)
        self.g_proj = Linear(config.hidden_size, inner_size, bias=config.attention_bias)
        self.dt_proj = Linear(config.hidden_size, config.num_heads, bias=False)
        self.o_proj = Linear(inner_size, config.hidden_size, bias=config.attention_bias)
        self.conv_weight = nn.Parameter(torch.empty(_channels(config), 1, config.conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(_channels(config)))
        self.A_log = nn.Parameter(torch.empty(config.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.num_heads))
        self.D = nn.Parameter(torch.empty(config.num_heads))
        self.norm_weight = nn.Parameter(torch.empty(inner_size))

    def init_special(self) -> None:
        # As in the authors' module. D and norm_weight start at 1 and conv_bias at 0, as gains and biases do by default.
        nn.init.uniform_(self.conv_weight, -(self.config.conv_kernel**-0.5), self.config.conv_kernel**-0.5)
        nn.init.uniform_(self.A_log, A_RANGE[0], A_RANGE[1]).log_()
        nn.init.uniform_(self.dt_bias, math.log(DT_RANGE[0]), math.log(DT_RANGE[1])).exp_()
        self.dt_bias.add_(torch.log(-torch.expm1(-self.dt_bias)))  # the inverse of softplus

    def forward(
        self, x_BTD: Tensor, rotary: Rotary | None, memory: Any = None, starts_BT: Tensor | None = None
    ) -> Tensor:
        tail, state = memory.past() if memory else (None, None)
        q, k, v, tail = self._convolved(x_BTD, tail, starts_BT)
        dt, log_decay = self._dt_and_log_decay(x_BTD)
        dt_v = self._heads(v) * dt[..., None].type_as(v)
        y, state = chunkwise(q, k, dt_v, log_decay, self.config.chunk_size, state, starts_BT)
        if memory:
            memory.append((tail, state))
        return self._gated_output(x_BTD, y, v)

    def step(self, x_B1D: Tensor, rotary: Rotary | None, *past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tail_BtX, h_BKRNC = past
        q, k, v, tail_BtX = self._convolved(x_B1D, tail_BtX)
        dt_B1KR, log_decay_B1KR = self._dt_and_log_decay(x_B1D)
        k_BKN, v_BKRC = k[:, 0], (self._heads(v) * dt_B1KR[..., None].type_as(v))[:, 0]
        decay_BKR = log_decay_B1KR[:, 0].exp()
        h_BKRNC = h_BKRNC * decay_BKR[..., None, None] + k_BKN[:, :, None, :, None] * v_BKRC[:, :, :, None]
        y_BKRC = (q[:, 0, :, None, :, None] * h_BKRNC).sum(-2)
        return self._gated_output(x_B1D, y_BKRC[:, None].type_as(v), v), tail_BtX, h_BKRNC

    def forward_static(
        self, x_1TD: Tensor, rotary: Rotary | None, start_1: Tensor, bias: Any, *memory: Tensor
    ) -> Tensor:
        tail, state = restarted(memory, start_1)
        q, k, v, tail = self._convolved(x_1TD, tail)
        dt, log_decay = self._dt_and_log_decay(x_1TD)
        y, state = chunkwise(q, k, self._heads(v) * dt[..., None].type_as(v), log_decay, x_1TD.shape[1], state)
        for tensor, value in zip(memory, (tail, state), strict=True):
            tensor.copy_(value)
        return self._gated_output(x_1TD, y, v)

    def _convolved(
        self, x_BTD: Tensor, tail_BtX: Tensor | None, starts_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q and k (B, T, K, N) and v (B, T, I) after the convolution, and the last inputs to it (B, t, X)."""
        (B, T, _), t = x_BTD.shape, self.config.conv_kernel - 1
        x_BTX = torch.cat([proj(x_BTD) for proj in (self.v_proj, self.k_proj, self.q_proj)], dim=-1)
        past = F.pad(x_BTX, (0, 0, t, 0)) if tail_BtX is None else torch.cat([tail_BtX.type_as(x_BTX), x_BTX], dim=1)
        inputs = [past[:, i : i + T] for i in range(t + 1)]
        if starts_BT is not None:
            position_in_document_BT = torch.arange(T, device=x_BTX.device) - starts_BT
            # inputs[i] are from t - i tokens earlier: zero where that token is before the document.
            inputs = [x * (position_in_document_BT >= t - i)[..., None] for i, x in enumerate(inputs)]
        y = self.conv_bias + sum(x * tap for x, tap in zip(inputs, self.conv_weight[:, 0].unbind(1), strict=True))
        inner_size, key_size = self.g_proj.out_features, self.q_proj.out_features
        v, k, q = F.silu(y).type_as(x_BTX).split([inner_size, key_size, key_size], dim=-1)
        return q.view(B, T, self.config.kv_heads, -1), k.view(B, T, self.config.kv_heads, -1), v, past[:, T:]

    def _dt_and_log_decay(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return dt and the log of the decay, dt A; each (B, T, K, R), in float32 at least."""
        raw = self.dt_proj(x_BTD)
        dt = F.softplus(raw.to(float32_or_wider(raw)) + self.dt_bias)
        groups = (self.config.kv_heads, -1)
        return dt.unflatten(-1, groups), (-self.A_log.exp() * dt).unflatten(-1, groups)

    def _heads(self, v_BTI: Tensor) -> Tensor:
        """(B, T, I) -> (B, T, K, R, C)."""
        return v_BTI.unflatten(-1, (self.config.kv_heads, -1, self.config.head_width))

    def _gated_output(self, x_BTD: Tensor, y_BTKRC: Tensor, v_BTI: Tensor) -> Tensor:
        """Return the output of the mixer (B, T, D): y plus the skip, then gate, norm and output projection."""
        y = y_BTKRC + self.D.view(*y_BTKRC.shape[2:4], 1) * self._heads(v_BTI)
        gated = y * self._heads(F.silu(self.g_proj(x_BTD)))
        normed = rms_norm(gated.flatten(3), self.config.norm_eps).flatten(2) * self.norm_weight
        return self.o_proj(normed.type_as(v_BTI))

    @classmethod
    def num_params(cls, config: ModelConfig) -> tuple[int, int]:
        inner_size, channels = config.num_heads * config.head_width, _channels(config)
        weights = config.hidden_size * (channels + 2 * inner_size + config.num_heads)  # q, k and v; g and o; dt
        biases = (channels + inner_size + config.hidden_size) if config.attention_bias else 0
        return weights, channels * (config.conv_kernel + 1) + 3 * config.num_heads + inner_size + biases

    @classmethod
    def mixing_flops(cls, config: ModelConfig, layer: int, T: int) -> float:
        inner_size = config.num_heads * config.head_width
        num_pairs = causal_pairs_in_blocks(T, config.chunk_size)
        in_chunks = 2 * (config.kv_heads * config.state_size + inner_size) * num_pairs
        states = 4 * inner_size * config.state_size * T  # written by keys, read by queries
        return in_chunks + states

    @classmethod
    def state_shapes(cls, config: ModelConfig) -> tuple[tuple[int, ...], ...]:
        tail = (config.conv_kernel - 1, _channels(config))
        return tail, (config.kv_heads, config.num_heads // config.kv_heads, config.state_size, config.head_width)


def _channels(config: ModelConfig) -> int:
    """Return the number of channels of the convolution: values, keys and queries."""
    return config.num_heads * config.head_width + 2 * config.kv_heads * config.state_size


def chunkwise(
    q_BTKN: Tensor,
    k_BTKN: Tensor,
    v_BTKRC: Tensor,
    log_decay_BTKR: Tensor,
    chunk: int,
    state_BKRNC: Tensor | None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return q_t h_t for all T tokens (B, T, K, R, C), and the state h after the last token (B, K, R, N, C).

    `v_BTKRC` holds dt v, and `state_BKRNC` the state before the first token (None: zeros), in float32 at least.
    """
    B, T, K, R, C = v_BTKRC.shape
    c = min(chunk, T)
    n = -(-T // c)

    def in_chunks(x: Tensor) -> Tensor:
        # Padding neither decays the state nor adds to it, so the last state is the state after T tokens.
        pad_tokens = (0, 0) * (x.ndim - 2) + (0, n * c - T)  # F.pad counts axes from the last
        return F.pad(x, pad_tokens).unflatten(1, (n, c))

    q, k = (in_chunks(x).permute(0, 3, 1, 2, 4) for x in (q_BTKN, k_BTKN))  # (B, K, n, c, N)
    v = in_chunks(v_BTKRC).permute(0, 3, 1, 4, 2, 5)  # (B, K, n, R, c, C)
    log_decay = in_chunks(log_decay_BTKR).permute(0, 3, 1, 4, 2)  # (B, K, n, R, c)
    log_from_start = running_sum(log_decay, -1)  # (B, K, n, R, c): of the decay from a chunk's start through token i

    log_between = log_from_start[..., :, None] - log_from_start[..., None, :]  # (..., i, j): after token j through i
    decay_to_end = (log_from_start[..., -1:] - log_from_start).exp()  # decay from each token to the end of its chunk
    decay_across = log_from_start[..., -1].exp()  # decay from the start of a chunk to its end
    decay_from_start = log_from_start.exp()
    masked = torch.ones(c, c, dtype=torch.bool, device=q.device).triu(1)  # (query, key): keys that a query must not see
    if starts_BT is not None:
        documents = documents_in_chunks(starts_BT, n, c)
        masked = masked | documents.before_Bncc[:, None, :, None]
        decay_to_end = decay_to_end * documents.writes_Bnc[:, None, :, None]
        decay_across = decay_across * documents.carries_Bn[:, None, :, None]
        decay_from_start = decay_from_start * documents.reads_Bnc[:, None, :, None]

    decay = log_between.masked_fill(masked, -torch.inf).exp()
    scores = ((q @ k.transpose(-2, -1))[:, :, :, None] * decay).type_as(v)
    from_chunk = scores @ v  # (B, K, n, R, c, C)

    v_at_end = (decay_to_end[..., None].type_as(v) * v).permute(0, 1, 2, 4, 3, 5).reshape(B, K, n, c, R * C)
    written = (k.transpose(-2, -1) @ v_at_end).unflatten(-1, (R, C)).to(log_from_start.dtype)  # (B, K, n, N, R, C)
    h = torch.zeros_like(written[:, :, 0]) if state_BKRNC is None else state_BKRNC.transpose(2, 3)
    h_before = []  # the state before each chunk
    for chunk_decay, chunk_written in zip(decay_across.unbind(2), written.unbind(2), strict=True):
        h_before.append(h)
        h = h * chunk_decay[:, :, None, :, None] + chunk_written
    from_state = q @ torch.stack(h_before, dim=2).flatten(-2).type_as(q)  # (B, K, n, c, R C)
    from_state = from_state.unflatten(-1, (R, C)).transpose(3, 4) * decay_from_start[..., None]
    y = (from_chunk + from_state).type_as(v).permute(0, 2, 4, 1, 3, 5).reshape(B, n * c, K, R, C)[:, :T]
    return y, h.transpose(2, 3)
