"""Exact rewritings of a decoder into shapes that Llama has: rotation by halves, and blocks that are used once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from slm.checkpoints.architecture import LLAMA_KEYS
from slm.model.config import ModelConfig

_LLAMA_FIELDS = {*LLAMA_KEYS, "rope_theta", "tie_embeddings"}
_REWRITTEN_FIELDS = {"layer_sharing", "num_repeats", "rope_style"}
"""Fields that Llama lacks and that a decoder can be rewritten without."""


def non_llama_fields(config: ModelConfig) -> tuple[str, ...]:
    """Fields that Llama in `transformers` lacks and that are not at their defaults."""
    return tuple(
        field.name
        for field in dataclasses.fields(config)
        if field.name not in _LLAMA_FIELDS and getattr(config, field.name) != field.default
    )


def as_llama(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same function with rotation by halves, where the rotation is interleaved and nothing depends on the order.

    Both rotations turn pairs of channels by the same angles and scores are sums over channels, so reordering the rows
    of the query and key projections is the whole conversion. A decoder that is not a Llama in any order is left as it
    is: learned gains of queries and keys, or an SSD's convolution over them, would have to be reordered too.
    """
    if config.rope_style == "half" or not _REWRITTEN_FIELDS.issuperset(non_llama_fields(config)):
        return config, dict(tensors)
    reordered = {
        name: _evens_then_odds(tensor, config.head_width) if ".q_proj." in name or ".k_proj." in name else tensor
        for name, tensor in tensors.items()
    }
    return dataclasses.replace(config, rope_style="half"), reordered


def _evens_then_odds(rows: Tensor, head_width: int) -> Tensor:
    """Within each head: channels 0, 2, 4, ... and then 1, 3, 5, ...; for weights (rows, D) and biases (rows,)."""
    pairs = rows.unflatten(0, (-1, head_width // 2, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def unrolled(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same function without sharing: one block for each use, with tensors of its own.

    Raises `ValueError` for whatever else Llama does not have; rotations are for `as_llama`.
    """
    foreign = [name for name in non_llama_fields(config) if name not in _REWRITTEN_FIELDS]
    if foreign:
        raise ValueError(
            f"unroll_sharing=true writes a plain Llama, which has no model.{foreign[0]}={getattr(config, foreign[0])}: "
            "export without it and load the folder with slm"
        )
    copies = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.")}
    for use, block in enumerate(config.block_uses):
        prefix = f"layers.{block}."
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                copies[f"layers.{use}.{name.removeprefix(prefix)}"] = tensor.clone()
    return dataclasses.replace(config, num_layers=len(config.block_uses), layer_sharing="none", num_repeats=1), copies
