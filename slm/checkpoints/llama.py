"""Rewrite a decoder exactly in the form that Llama has: rotation by halves, and every block used once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from slm.checkpoints.architecture import LLAMA_KEYS
from slm.model.config import ModelConfig

_LLAMA_FIELDS = {*LLAMA_KEYS, "rope_theta", "tie_embeddings"}
_REWRITTEN_FIELDS = {"layer_sharing", "num_repeats", "rope_style"}
"""Fields that Llama lacks, but that a decoder can be rewritten to do without."""


def non_llama_fields(config: ModelConfig) -> tuple[str, ...]:
    """Names of the fields that differ from their defaults and that Llama in `transformers` does not have."""
    return tuple(
        field.name
        for field in dataclasses.fields(config)
        if field.name not in _LLAMA_FIELDS and getattr(config, field.name) != field.default
    )


def as_llama(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and tensors of the decoder that computes the same with rotation by halves instead of interleaved rotation.

    Both rotations turn pairs of channels by the same angles, and scores are sums over channels, so only the rows of the
    query and key projections are reordered. A decoder that would not be a Llama even then is returned unchanged: it may
    have learned gains of queries and keys, or an SSD's convolution over them, which would have to be reordered too.
    """
    if config.rope_style == "half" or not _REWRITTEN_FIELDS.issuperset(non_llama_fields(config)):
        return config, dict(tensors)
    reordered = {
        name: _evens_then_odds(tensor, config.head_width) if ".q_proj." in name or ".k_proj." in name else tensor
        for name, tensor in tensors.items()
    }
    return dataclasses.replace(config, rope_style="half"), reordered


def _evens_then_odds(rows: Tensor, head_width: int) -> Tensor:
    """The rows of each head in the order 0, 2, 4, ..., 1, 3, 5, ...; for weights (rows, D) and biases (rows,)."""
    pairs = rows.unflatten(0, (-1, head_width // 2, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def unrolled(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and tensors of the decoder that computes the same without sharing: each use of a block becomes a block.

    Raises `ValueError` if the decoder has anything else that Llama does not have. Rotation is left to `as_llama`.
    """
    departures = [name for name in non_llama_fields(config) if name not in _REWRITTEN_FIELDS]
    if departures:
        name = departures[0]
        raise ValueError(
            f"unroll_sharing=true writes a plain Llama, which has no model.{name}={getattr(config, name)}: export "
            "without unroll_sharing and load the folder with slm"
        )
    unshared = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.")}
    for use, block in enumerate(config.block_uses):
        prefix = f"layers.{block}."
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                unshared[f"layers.{use}.{name.removeprefix(prefix)}"] = tensor.clone()
    return dataclasses.replace(config, num_layers=len(config.block_uses), layer_sharing="none", num_repeats=1), unshared
