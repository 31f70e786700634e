"""`load` and `check`: any checkpoint that we can compute -> decoder, tokenizer, provenance.

The decoder is built without storage (meta device), and each tensor is copied out of its mapped file, converted and put
in place on its own. Names and shapes are compared before the first tensor is read. Whether the head is the embedding is
settled by the tensors, not by what the config says alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from slm.checkpoints.place import Parts, Place, Provenance, find_place, open_parts
from slm.checkpoints.weights import HEAD, TABLE, Weights, dtype_name, empty_decoder, first_names
from slm.data import Tokenizer
from slm.model import Decoder
from slm.model.config import ModelConfig

_MAX_UNUSED_SHARE = 0.05  # of the embedding's rows; with more that no token has, a note says so
# 1 MB a file: any training step changes almost every weight, so almost every sample.
_NUM_SAMPLES, _SAMPLE_BYTES = 512, 2048


class Checkpoint(NamedTuple):
    """A loaded checkpoint: the decoder in eval mode and without gradients, its tokenizer, where they came from."""

    decoder: Decoder
    tokenizer: Tokenizer
    provenance: Provenance


def load(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Load a run directory of ours, an export of it, a folder of a release, or a hub id.

    The decoder is in eval mode on `device` with parameters of `dtype` that require no gradient. `revision` is a branch,
    tag or commit of a hub repository. No code that comes with a checkpoint is ever run. Raises `ValueError`, one
    sentence, for whatever cannot be loaded.
    """
    place = find_place(path_or_repo, revision)
    parts = _checked_parts(place)
    config, notes = _settle_head(parts.config, parts.weights)
    decoder = empty_decoder(config)
    tensors, not_finite = {}, []
    for name in decoder.state_dict():
        stored = parts.weights.tensors[name]
        # A copy even on the same device and of the same dtype: the file may change or be deleted.
        tensors[name] = stored.to(device, dtype, copy=True, memory_format=torch.contiguous_format)
        if not _all_finite(tensors[name]):
            not_finite.append(name)
    decoder.load_state_dict(tensors, assign=True)
    if not_finite:
        notes = (*notes, f"{first_names(not_finite)} hold values that are not finite, so losses will not be either.")
    return Checkpoint(decoder.eval().requires_grad_(False), parts.tokenizer, _provenance(place, parts, config, notes))


def check(path_or_repo: str | Path, *, revision: str | None = None) -> Provenance:
    """Refuse whatever can be refused before the weights are read; a hub repository is fetched for it.

    Notes that need the weights (whether a stored head equals the embedding, values that are not finite) come with
    `load`. Raises `ValueError` as `load` does.
    """
    place = find_place(path_or_repo, revision)
    parts = _checked_parts(place)
    return _provenance(place, parts, parts.config, ())


def _checked_parts(place: Place) -> Parts:
    parts = open_parts(place)
    ids, rows = parts.tokenizer.vocab_size, parts.config.vocab_size
    if ids > rows:
        raise ValueError(
            f"checkpoint={place.checkpoint}: the tokenizer has {ids:,} ids and the embedding {rows:,} rows, so they do "
            "not belong together: give the folder the tokenizer that the model was trained with"
        )
    return parts


def _settle_head(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config with the head that the tensors have; notes where that is not what the config says."""
    if HEAD not in weights.tensors:
        return config, ()
    equal = torch.equal(weights.tensors[HEAD], weights.tensors[TABLE])
    if config.tie_embeddings and equal:
        return config, ("The config ties the head, and the stored head equals the embedding: tied.",)
    if config.tie_embeddings:
        return dataclasses.replace(config, tie_embeddings=False), (
            "The config ties the head, but the stored head differs from the embedding: it is used untied, and "
            "params_total counts both.",
        )
    if equal:
        return config, ("The untied head equals the embedding; params_total counts both, as the config says.",)
    return config, ()


def _all_finite(tensor: Tensor) -> bool:
    # A sum is one fast pass without a copy, and is not finite if a summand is not; it may also have overflowed.
    return math.isfinite(tensor.sum(dtype=torch.float32).item()) or bool(tensor.isfinite().all())


def _provenance(place: Place, parts: Parts, config: ModelConfig, notes: tuple[str, ...]) -> Provenance:
    dtype_bytes = Counter[str]()
    for tensor in parts.weights.tensors.values():
        dtype_bytes[dtype_name(tensor.dtype)] += tensor.nbytes
    is_mixed = len(dtype_bytes) > 1
    mixed = (f"The tensors are stored in different precisions: {', '.join(sorted(dtype_bytes))}.",) if is_mixed else ()
    ids, rows = parts.tokenizer.vocab_size, parts.config.vocab_size
    is_sparse = rows - ids > _MAX_UNUSED_SHARE * rows
    unused = (f"The tokenizer uses {ids:,} of the embedding's {rows:,} rows.",) if is_sparse else ()
    return Provenance(
        **vars(place),
        config=config,
        stored_dtype=dtype_bytes.most_common(1)[0][0],
        fingerprint=_fingerprint(parts),
        notes=(*parts.notes, *mixed, *unused, *notes),
    )


def _fingerprint(parts: Parts) -> str:
    """SHA-256, shortened, of the parts and of the files' sizes and samples; paths and times do not matter."""
    tokenizer = parts.tokenizer
    facts = {
        "config": parts.config.to_dict(),
        "tensors": {
            name: [tuple(tensor.shape), dtype_name(tensor.dtype)] for name, tensor in parts.weights.tensors.items()
        },
        "tokenizer": [tokenizer.fingerprint, tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos],
    }
    total = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for digest in sorted(map(_sampled, parts.weights.files)):  # sorted: shards may be named and ordered in any way
        total.update(digest)
    return total.hexdigest()[:16]


def _sampled(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as handle:
        if size <= _NUM_SAMPLES * _SAMPLE_BYTES:
            digest.update(handle.read())
        else:
            for index in range(_NUM_SAMPLES):
                handle.seek(index * (size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
                digest.update(handle.read(_SAMPLE_BYTES))
    return digest.digest()
