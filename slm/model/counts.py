"""Counts that follow from a shape alone: parameters, FLOPs, and the bytes that decoding keeps.

Notable: these are closed forms, which tests compare with the real modules and torch's FLOP counter. The counts of a
mixer are in the mixer's file. Only matrix products count as FLOPs, two per multiply-add. Elementwise operations do not
count: norms, activations, softmax, rotations, the short convolution, sums of chunk states. Every function raises
`ValueError` for a shape that one of its mixers refuses. The first call imports the mixers, and with them torch.
"""

from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

from slm.model.config import ModelConfig
from slm.model.mixers import MIXERS

if TYPE_CHECKING:
    from slm.model.mixers.base import Mixer


class Counts(NamedTuple):
    """Parameters, and bytes in the dtype of the weights. Tied and shared parameters count once."""

    params_total: int
    params_non_embedding: int
    """Without the tables of tokens and positions, and without an untied head."""
    model_bytes: int
    kv_bytes_per_token: int
    """Keys and values of one token."""
    kv_cache_bytes: int
    """Keys and values of a full context."""
    state_bytes: int
    """Recurrent states, which do not grow with the context."""


def mixers_of_blocks(config: ModelConfig) -> "list[type[Mixer]]":
    """Return the mixer of each block. Raises `ValueError` if a mixer's own rules refuse the shape."""
    mixer_by_letter = {letter: MIXERS[letter].load() for letter in config.mixer_pattern[: config.num_layers]}
    for mixer in mixer_by_letter.values():
        mixer.check(config)
    return [mixer_by_letter[letter] for letter in config.mixer_letters]


def num_params(config: ModelConfig, *, non_embedding: bool = False) -> int:
    """Count the parameters; tied and shared ones count once. `non_embedding` leaves out embedding tables and head."""
    mixer_params = sum(sum(mixer.num_params(config)) for mixer in mixers_of_blocks(config))
    params_per_norm = config.hidden_size * (2 if config.norm_bias else 1)
    num_input_norms = 1 if config.parallel_block else 2
    num_norms = {"pre": num_input_norms, "post": 2, "both": num_input_norms + 2}[config.norm_position]
    params_per_mlp = _mlp_weights(config)
    if config.mlp_bias:
        params_per_mlp += (2 if config.gated_mlp else 1) * config.intermediate_size + config.hidden_size
    block_params = mixer_params + config.num_layers * (params_per_mlp + num_norms * params_per_norm)
    params = block_params + params_per_norm  # of the final norm
    if non_embedding:
        return params
    num_table_rows = config.vocab_size * (1 if config.tie_embeddings else 2)
    if config.position == "learned":
        num_table_rows += config.max_position_embeddings
    return params + num_table_rows * config.hidden_size


def flops_per_token(
    config: ModelConfig, sequence_length: int, *, convention: Literal["exact", "6n"] = "exact"
) -> float:
    """Return training FLOPs (forward and backward) per token, averaged over a sequence of T = `sequence_length` tokens.

    "6n" is 6 x `num_params` (Kaplan et al. 2020, section 2.1, here with the total N). "exact" is 3 x the forward pass,
    which is the sum of two terms:
    - 2 FLOPs per weight of a matrix product, for each use of a block. The head counts, the embedding lookup does not.
    - The products between tokens in each mixer. For full attention these are 2 x 2 x heads x head_dim x (T + 1) / 2,
      where (T + 1) / 2 is the mean number of keys.
    """
    if convention == "6n":
        return 6.0 * num_params(config)
    mixers = mixers_of_blocks(config)
    matmul_weights = config.vocab_size * config.hidden_size
    mixing_flops = 0.0
    for block in config.block_uses:
        mixer_weights, _ = mixers[block].num_params(config)
        matmul_weights += mixer_weights + _mlp_weights(config)
        mixing_flops += mixers[block].mixing_flops(config, block, sequence_length)
    return 3.0 * (2 * matmul_weights * sequence_length + mixing_flops) / sequence_length


def kv_cache_bytes(config: ModelConfig, num_tokens: int, *, bytes_per_value: int = 2) -> int:
    """Return the bytes of a sequence's keys and values, of `num_tokens` tokens, summed over all uses of blocks."""
    mixers = mixers_of_blocks(config)
    num_cached = sum(mixers[block].num_cached_tokens(config, block, num_tokens) for block in config.block_uses)
    return 2 * num_cached * config.kv_heads * config.head_width * bytes_per_value


def state_bytes(config: ModelConfig, *, bytes_per_value: int = 4) -> int:
    """Return the bytes of a sequence's recurrent states, for any number of tokens; by default in float32."""
    mixers = mixers_of_blocks(config)
    shapes = [shape for block in config.block_uses for shape in mixers[block].state_shapes(config)]
    return sum(map(prod, shapes)) * bytes_per_value


def count(config: ModelConfig, bytes_per_value: int) -> Counts:
    """Return all counts for weights of a dtype. Recurrent states are float32 or wider."""
    params = num_params(config)
    return Counts(
        params_total=params,
        params_non_embedding=num_params(config, non_embedding=True),
        model_bytes=params * bytes_per_value,
        kv_bytes_per_token=kv_cache_bytes(config, 1, bytes_per_value=bytes_per_value),
        kv_cache_bytes=kv_cache_bytes(config, config.max_position_embeddings, bytes_per_value=bytes_per_value),
        state_bytes=state_bytes(config, bytes_per_value=max(4, bytes_per_value)),
    )


def _mlp_weights(config: ModelConfig) -> int:
    return (3 if config.gated_mlp else 2) * config.hidden_size * config.intermediate_size
