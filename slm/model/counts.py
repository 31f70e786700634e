"""What follows from a shape alone: parameters, FLOPs, and the bytes of state that decoding keeps.

Notable: these are closed forms, which tests compare with the real modules and torch's FLOP counter. Those of a mixer
are in the mixer's file. FLOPs count matrix products only, two per multiply-add. They leave out elementwise operations:
norms, activations, softmax, rotations, the short convolution, sums of chunk states. Every function raises `ValueError`
for a shape that one of its mixers refuses. The first call imports the mixers, and so torch.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

from slm.model.config import ModelConfig
from slm.model.mixers import MIXERS

if TYPE_CHECKING:
    from slm.model.mixers.base import Mixer


def mixers_of(config: ModelConfig) -> dict[str, type[Mixer]]:
    """The mixers of a shape by letter. Raises `ValueError` if a mixer's own rules refuse the shape."""
    pattern = config.mixer_pattern[: config.num_layers]  # short even if num_layers is absurd, unlike config.mixers
    mixers = {letter: MIXERS[letter].load() for letter in pattern}
    for mixer in mixers.values():
        mixer.check(config)
    return mixers


def num_params(config: ModelConfig, *, non_embedding: bool = False) -> int:
    """Unique parameters: tied embeddings once, shared blocks once. `non_embedding` leaves out tables and head."""
    mixers = mixers_of(config)
    mixer_params = sum(sum(mixers[letter].num_params(config)) for letter in config.mixers)
    norm = config.hidden_size * (2 if config.norm_bias else 1)
    branches = 1 if config.parallel_block else 2
    norms = {"pre": branches, "post": 2, "both": branches + 2}[config.norm_position]
    biases = (2 if config.gated_mlp else 1) * config.intermediate_size + config.hidden_size if config.mlp_bias else 0
    body = mixer_params + config.num_layers * (_mlp_weights(config) + norms * norm + biases) + norm
    if non_embedding:
        return body
    tables = config.vocab_size * (1 if config.tie_embeddings else 2)
    tables += config.max_position_embeddings if config.position == "learned" else 0
    return body + tables * config.hidden_size


def flops_per_token(
    config: ModelConfig, sequence_length: int, *, convention: Literal["exact", "6n"] = "exact"
) -> float:
    """Training FLOPs (forward and backward) per token, averaged over a causal sequence of T = `sequence_length` tokens.

    "6n" is 6 x `num_params` (Kaplan et al. 2020, section 2.1, here with the total N). "exact" is 3 x the forward pass.
    That has two FLOPs per matmul weight and *use*: a shared block counts each time, the head counts, the embedding
    lookup does not. It also has the products between tokens in each mixer. For full attention these are
    2 x 2 x heads x head_dim x (T + 1) / 2, where (T + 1) / 2 is the mean number of keys.
    """
    if convention == "6n":
        return 6.0 * num_params(config)
    mixers = mixers_of(config)
    per_token, mixing = config.vocab_size * config.hidden_size, 0.0
    for block in config.block_uses:
        mixer = mixers[config.mixers[block]]
        per_token += mixer.num_params(config)[0] + _mlp_weights(config)
        mixing += mixer.mixing_flops(config, block, sequence_length)
    return 3.0 * (2 * per_token * sequence_length + mixing) / sequence_length


def kv_cache_bytes(config: ModelConfig, num_tokens: int, *, batch_size: int = 1, bytes_per_value: int = 2) -> int:
    """Bytes of keys and values kept for `num_tokens` tokens: one slot per *use* of a block, no recurrent state."""
    mixers = mixers_of(config)
    tokens = sum(mixers[config.mixers[b]].num_cached_tokens(config, b, num_tokens) for b in config.block_uses)
    return 2 * tokens * config.kv_heads * config.head_width * batch_size * bytes_per_value


def state_bytes(config: ModelConfig, *, batch_size: int = 1, bytes_per_value: int = 4) -> int:
    """Bytes of recurrent state, for any number of tokens. By default in float32, the narrowest dtype it is kept in."""
    mixers = mixers_of(config)
    shapes = [shape for block in config.block_uses for shape in mixers[config.mixers[block]].state_shapes(config)]
    return sum(map(prod, shapes)) * batch_size * bytes_per_value


def _mlp_weights(config: ModelConfig) -> int:
    return (3 if config.gated_mlp else 2) * config.hidden_size * config.intermediate_size
