"""What follows from a shape alone: parameters, matmul weights, FLOPs, and what decoding has to remember.

Notable: closed forms (tests hold them against the real modules and torch's FLOP counter), one `MixerCounts` a mixer,
and no torch. FLOPs are those of matrix products, two a multiply-add; what runs element by element is not in them
(norms, activations, softmax, rotations, the short convolution, sums of chunk states).

Legend: D hidden, H query heads, K key/value heads, C head_dim, N state_size, I = HC inner width, T tokens, b number of
a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slm.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class MixerCounts:
    """The closed forms of one mixer."""

    weights: Callable[[ModelConfig], int]
    """Weights that each token is multiplied with."""
    vectors: Callable[[ModelConfig], int]
    """All other parameters: biases, gains, decay rates, convolutions."""
    mixing_flops: Callable[[ModelConfig, int, int], float]
    """In block b, forward FLOPs that mix T tokens with each other, all together, where no masked score is computed."""
    cached_tokens: Callable[[ModelConfig, int, int], int] = lambda c, b, T: 0
    """In block b, tokens whose keys and values must be kept to go on after T."""
    state_values: Callable[[ModelConfig], int] = lambda c: 0
    """Numbers of recurrent state, whatever T."""


def _triangle(n: int) -> float:
    return n * (n + 1) / 2


def full_pairs(T: int) -> float:
    """Pairs of a query and a key not after it."""
    return _triangle(T)


def sliding_pairs(T: int, window: int) -> float:
    """Pairs at a distance below `window`."""
    return _triangle(T) - _triangle(max(T - window, 0))


def block_pairs(T: int, block: int) -> float:
    """Pairs within one block of `block` tokens."""
    return T // block * _triangle(block) + _triangle(T % block)


def sparse_pairs(T: int, block: int, stride: int) -> float:
    """Pairs within a block, or of a query with every stride-th key of the blocks before its own."""
    blocks, rest = divmod(T, block)
    return block_pairs(T, block) + block // stride * (block * _triangle(blocks - 1) + rest * blocks)


def sparse_slots(T: int, block: int, stride: int) -> int:
    """Most keys that are kept at once on the way to T tokens: columns of the blocks gone by, and the current block."""
    blocks, rest = divmod(T, block)
    columns = block // stride
    return max(blocks * columns + rest, (blocks - 1) * columns + block if blocks else 0)


def _attention_weights(c: ModelConfig) -> int:
    return c.hidden_size * c.head_width * (2 * c.num_heads + 2 * c.kv_heads)


def _attention_vectors(c: ModelConfig) -> int:
    gains = 2 * c.head_width if c.qk_norm == "learned" else 0
    biases = c.head_width * (c.num_heads + 2 * c.kv_heads) + c.hidden_size
    return gains + (biases if c.attention_bias else 0)


def _attention(
    pairs: Callable[[ModelConfig, int, int], float], cached_tokens: Callable[[ModelConfig, int, int], int]
) -> MixerCounts:
    return MixerCounts(
        weights=_attention_weights,
        vectors=_attention_vectors,
        mixing_flops=lambda c, b, T: 4 * c.num_heads * c.head_width * pairs(c, b, T),  # a score and a value a pair
        cached_tokens=cached_tokens,
    )


def _linear_mixing(c: ModelConfig, b: int, T: int) -> float:
    within = 4 * c.num_heads * c.head_width * block_pairs(T, c.chunk_size)
    states = 2 * (c.num_heads + c.kv_heads) * c.head_width**2 * T  # read by every query, written by every key
    return within + states


def _ssd_weights(c: ModelConfig) -> int:
    return c.hidden_size * (3 * c.num_heads * c.head_width + 2 * c.kv_heads * c.state_size + c.num_heads)


def ssd_channels(c: ModelConfig) -> int:
    """Channels of the short convolution: values, keys and queries."""
    return c.num_heads * c.head_width + 2 * c.kv_heads * c.state_size


def _ssd_vectors(c: ModelConfig) -> int:
    inner, channels = c.num_heads * c.head_width, ssd_channels(c)
    biases = channels + inner + c.hidden_size if c.attention_bias else 0
    return channels * (c.conv_kernel + 1) + 3 * c.num_heads + inner + biases


def _ssd_mixing(c: ModelConfig, b: int, T: int) -> float:
    scores = 2 * c.kv_heads * c.state_size * block_pairs(T, c.chunk_size)
    values = 2 * c.num_heads * c.head_width * block_pairs(T, c.chunk_size)
    states = 4 * c.num_heads * c.head_width * c.state_size * T
    return scores + values + states


COUNTS: dict[str, MixerCounts] = {
    "F": _attention(lambda c, b, T: full_pairs(T), lambda c, b, T: T),
    "S": _attention(lambda c, b, T: sliding_pairs(T, c.windows[b]), lambda c, b, T: min(T, c.windows[b] - 1)),
    "P": _attention(
        lambda c, b, T: sparse_pairs(T, c.sparse_block, c.sparse_stride),
        lambda c, b, T: sparse_slots(T, c.sparse_block, c.sparse_stride),
    ),
    "L": MixerCounts(
        weights=_attention_weights,
        vectors=_attention_vectors,
        mixing_flops=_linear_mixing,
        state_values=lambda c: c.kv_heads * c.head_width * (c.head_width + 1),
    ),
    "G": MixerCounts(
        weights=_ssd_weights,
        vectors=_ssd_vectors,
        mixing_flops=_ssd_mixing,
        state_values=lambda c: c.num_heads * c.head_width * c.state_size + ssd_channels(c) * (c.conv_kernel - 1),
    ),
}
"""By the letter of `mixer_pattern`."""


def _mlp_weights(c: ModelConfig) -> int:
    return (3 if c.gated_mlp else 2) * c.hidden_size * c.intermediate_size


def _block_vectors(c: ModelConfig) -> int:
    """Norms and the feed-forward's biases."""
    branches_in = 1 if c.parallel_block else 2
    norms = {"pre": branches_in, "post": 2, "both": branches_in + 2}[c.norm_position]
    biases = (2 if c.gated_mlp else 1) * c.intermediate_size + c.hidden_size if c.mlp_bias else 0
    return norms * norm_size(c) + biases


def norm_size(c: ModelConfig) -> int:
    """Parameters of one norm over the hidden size."""
    return c.hidden_size * (2 if c.norm_bias else 1)


def num_params(c: ModelConfig, *, non_embedding: bool = False) -> int:
    """Unique parameters: tied embeddings once, shared blocks once. `non_embedding` leaves out tables and head."""
    mixers = (COUNTS[letter] for letter in c.mixers)
    body = sum(m.weights(c) + m.vectors(c) + _mlp_weights(c) + _block_vectors(c) for m in mixers) + norm_size(c)
    tables = c.vocab_size * c.hidden_size * (1 if c.tie_embeddings else 2)
    positions = c.max_position_embeddings * c.hidden_size if c.position == "learned" else 0
    return body if non_embedding else body + tables + positions


def forward_flops(c: ModelConfig, T: int) -> float:
    """FLOPs of one forward pass over one sequence of T tokens, head included."""
    used = [(COUNTS[c.mixers[b]], b) for b in c.block_uses]
    per_token = sum(m.weights(c) + _mlp_weights(c) for m, _ in used) + c.vocab_size * c.hidden_size
    return 2 * per_token * T + sum(m.mixing_flops(c, b, T) for m, b in used)


def cached_tokens(c: ModelConfig, b: int, T: int) -> int:
    """Tokens whose keys and values one use of block b must keep to go on after T."""
    return COUNTS[c.mixers[b]].cached_tokens(c, b, T)


def kv_cache_bytes(c: ModelConfig, num_tokens: int, *, batch_size: int, bytes_per_value: int) -> int:
    """Bytes of the keys and values that are kept for `num_tokens` tokens: one slot per *use* of a block."""
    tokens = sum(cached_tokens(c, b, num_tokens) for b in c.block_uses)
    return 2 * tokens * c.kv_heads * c.head_width * batch_size * bytes_per_value


def state_bytes(c: ModelConfig, *, batch_size: int, bytes_per_value: int) -> int:
    """Bytes of recurrent state, constant in the number of tokens."""
    values = sum(COUNTS[c.mixers[b]].state_values(c) for b in c.block_uses)
    return values * batch_size * bytes_per_value
