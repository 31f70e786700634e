"""Load or check any supported checkpoint: its decoder, its tokenizer and its provenance.

The decoder is built without storage (meta device). Names and shapes of the stored tensors are compared with the
decoder's. Only then is one tensor at a time copied from its memory-mapped file and converted.
"""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm.checkpoints.engine_folder import check_engine, load_engine
from slm.checkpoints.foreign import ForeignShape, empty_model
from slm.checkpoints.location import AnyProvenance, Location, Parts, Provenance, find_location, open_parts
from slm.checkpoints.transformers_model import load_transformers_model
from slm.checkpoints.weights import EMBEDDING, HEAD, Weights, dtype_name
from slm.data.tokenizer import Tokenizer
from slm.model import Decoder
from slm.model.config import ModelConfig
from slm.model.empty import empty_decoder
from slm.model.interface import CausalLM
from slm.model.quantised import check_shape, linears_to_round, quantise
from slm.runtime.address import is_engine_file, named, split_revision
from slm.runtime.words import shortlist

_MAX_UNUSED_SHARE = 0.05  # if a larger share of the embedding's rows has no token, a note says so
# 1 MB per file is enough to tell checkpoints apart: a training step changes almost all weights, so almost all samples.
_NUM_SAMPLES, _SAMPLE_BYTES = 512, 2048


class Checkpoint(NamedTuple):
    """A loaded checkpoint: the decoder in eval mode without gradients, its tokenizer, and where they came from."""

    decoder: Decoder
    tokenizer: Tokenizer
    provenance: Provenance


class AnyCheckpoint(NamedTuple):
    """A loaded checkpoint of any model: ours, or one that transformers computes."""

    decoder: CausalLM
    tokenizer: Tokenizer
    provenance: AnyProvenance


def load(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> Checkpoint:
    """Load a run directory of ours, its export, the folder of a released model, or a hub repository.

    The decoder is in eval mode on `device` with parameters of `dtype` that require no gradient. `revision` is a branch,
    tag or commit of a hub repository. `quantize` rounds the weights (`slm.model.quantised`). Code in a checkpoint is
    never run. Raises `ValueError`, with a message of one sentence, if the checkpoint cannot be loaded.
    """
    location = find_location(path_or_repo, revision)
    return _load_decoder(location, _checked_parts(location), dtype, device, quantize)


def load_any(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> AnyCheckpoint:
    """Load like `load`, but let transformers compute what our decoder cannot hold, and engines their exports."""
    if is_engine_file(str(path_or_repo)):
        _refuse_for_engine(str(path_or_repo), quantize)
        return AnyCheckpoint(*load_engine(str(path_or_repo)))
    location = find_location(path_or_repo, revision)
    parts = _checked_parts(location, may_be_foreign=True)
    if not isinstance(parts.config, ForeignShape):
        return AnyCheckpoint(*_load_decoder(location, parts, dtype, device, quantize))
    tensors = parts.weights.tensors
    model = load_transformers_model(location.folder, parts.config, tensors, dtype=dtype, device=device)
    non_finite_names = [name for name, parameter in model.model.named_parameters() if not _all_finite(parameter)]
    provenance = AnyProvenance(**_origin(location, parts), config=parts.config)
    notes = (*provenance.notes, *_non_finite_notes(non_finite_names))
    if quantize is not None:
        notes = (*notes, quantise(model.model, quantize, keep=[model.model.get_output_embeddings()]))
    return AnyCheckpoint(model, parts.tokenizer, dataclasses.replace(provenance, notes=notes))


def _load_decoder(
    location: Location, parts: Parts, dtype: torch.dtype, device: torch.device | str, quantize: str | None
) -> Checkpoint:
    config, notes = _settle_head(_our_config(parts), parts.weights)
    decoder = empty_decoder(config)
    tensors: dict[str, Tensor] = {}
    non_finite_names: list[str] = []
    for name in decoder.state_dict():
        stored = parts.weights.tensors[name]
        # Copied even if device and dtype stay the same, because the file may change or be deleted.
        tensors[name] = stored.to(device, dtype, copy=True, memory_format=torch.contiguous_format)
        if not _all_finite(tensors[name]):
            non_finite_names.append(name)
    decoder.load_state_dict(tensors, assign=True)
    notes = (*notes, *_non_finite_notes(non_finite_names))
    decoder.eval().requires_grad_(False)
    if quantize is not None:
        notes = (*notes, quantise(decoder, quantize))
    return Checkpoint(decoder, parts.tokenizer, _provenance(location, parts, config, notes))


def _non_finite_notes(names: list[str]) -> list[str]:
    return [f"{shortlist(names, max_items=3)} hold NaN or infinite values, so no loss is finite."] if names else []


def check_quantize(provenance: AnyProvenance, kind: str | None) -> None:
    """Raise `ValueError` if `load_any` cannot round the weights of a checkpoint that was checked. Reads no weights."""
    if is_engine_file(provenance.checkpoint):
        _refuse_for_engine(provenance.checkpoint, kind)
    elif kind is not None and isinstance(provenance.config, ModelConfig):
        check_shape(provenance.config, kind)
    elif kind is not None:
        model = empty_model(provenance.folder)
        linears_to_round(model, kind, keep=[model.get_output_embeddings()])


def _refuse_for_engine(checkpoint: str, quantize: str | None) -> None:
    if quantize is not None:
        raise ValueError(
            f"quantize={quantize}: {checkpoint} runs in the precision of its file, so quantise the checkpoint from "
            "which it was exported (a list with null, as in quantize=[null,int4], measures the export as it is)"
        )


def check(path_or_repo: str | Path, *, revision: str | None = None) -> Provenance:
    """Check a checkpoint without reading its weights; a hub repository is downloaded first.

    Notes that need the weights (a stored head that equals the embedding, values that are not finite) come with `load`.
    Raises `ValueError` as `load` does.
    """
    location = find_location(path_or_repo, revision)
    parts = _checked_parts(location)
    return _provenance(location, parts, _our_config(parts), ())


def inspect(key: str, given: str) -> tuple[Provenance, Tokenizer]:
    """Check the checkpoint that a setting of train.py names, a path or ID@REVISION, without loading it.

    Of the weights, only a stored head is read, so that the returned config has the head that `load` will give it.
    Raises `ValueError` as `load` does, with the name of the setting, `key`.
    """
    with named(key):
        location = find_location(*split_revision(given))
        parts = _checked_parts(location)
        config, notes = _settle_head(_our_config(parts), parts.weights)
        return _provenance(location, parts, config, notes), parts.tokenizer


def check_any(path_or_repo: str | Path, *, revision: str | None = None) -> AnyProvenance:
    """Check a checkpoint that `load_any` would load. Whether transformers has all weights is known when it loads."""
    if is_engine_file(str(path_or_repo)):
        return check_engine(str(path_or_repo))
    location = find_location(path_or_repo, revision)
    parts = _checked_parts(location, may_be_foreign=True)
    return AnyProvenance(**_origin(location, parts), config=parts.config)


def _our_config(parts: Parts) -> ModelConfig:
    assert isinstance(parts.config, ModelConfig)  # `open_parts` gives another shape only if the model may be foreign
    return parts.config


def _checked_parts(location: Location, *, may_be_foreign: bool = False) -> Parts:
    parts = open_parts(location, may_be_foreign=may_be_foreign)
    tokenizer, num_rows = parts.tokenizer, parts.config.vocab_size
    num_ids = tokenizer.vocab_size
    # Text never becomes a special token, so only ids of text, begin and end must have a row.
    if tokenizer.token_bytes[num_rows:].any() or max(tokenizer.eos_id, tokenizer.separator_id) >= num_rows:
        raise ValueError(
            f"checkpoint={location.checkpoint}: the tokenizer has {num_ids:,} ids and the embedding {num_rows:,} rows, "
            "so they do not belong together: give the folder the tokenizer that the model was trained with"
        )
    return parts


def _settle_head(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return the config, corrected to the head that is stored, and a note if config and stored head disagree."""
    if HEAD not in weights.tensors:
        return config, ()
    is_equal = torch.equal(weights.tensors[HEAD], weights.tensors[EMBEDDING])
    if config.tie_embeddings and is_equal:
        return config, ("The config ties the head, and the stored head equals the embedding: the head is tied.",)
    if config.tie_embeddings:
        note = (
            "The config ties the head, but the stored head differs from the embedding: the head is untied, and "
            "params_total counts both."
        )
        return dataclasses.replace(config, tie_embeddings=False), (note,)
    if is_equal:
        return config, ("The config unties the head, but both tensors are equal: params_total counts both.",)
    return config, ()


def _all_finite(tensor: Tensor) -> bool:
    # The sum is fast and needs no copy. A finite sum has only finite elements; an infinite sum may be an overflow.
    return math.isfinite(tensor.sum(dtype=torch.float32).item()) or bool(tensor.isfinite().all())


def _provenance(location: Location, parts: Parts, config: ModelConfig, notes: tuple[str, ...]) -> Provenance:
    fields = _origin(location, parts)
    return Provenance(**fields | {"notes": (*fields["notes"], *notes)}, config=config)


def _origin(location: Location, parts: Parts) -> dict[str, Any]:
    """Return the fields of `AnyProvenance` without the shape."""
    dtype_bytes = Counter[str]()
    for tensor in parts.weights.tensors.values():
        dtype_bytes[dtype_name(tensor.dtype)] += tensor.nbytes
    notes = list(parts.notes)
    if len(dtype_bytes) > 1:
        notes.append(f"The tensors are stored in different precisions: {', '.join(sorted(dtype_bytes))}.")
    num_ids, num_rows = parts.tokenizer.vocab_size, parts.config.vocab_size
    if num_rows - num_ids > _MAX_UNUSED_SHARE * num_rows:
        notes.append(f"The tokenizer uses {num_ids:,} of the embedding's {num_rows:,} rows.")
    return {
        **vars(location),
        "kind": "transformers" if isinstance(parts.config, ForeignShape) else location.kind,
        "stored_dtype": dtype_bytes.most_common(1)[0][0],
        "fingerprint": _fingerprint(parts),
        "notes": tuple(notes),
    }


def _fingerprint(parts: Parts) -> str:
    """Return a shortened SHA-256 of the parts and of the files' sizes and samples, but not of paths and times."""
    tokenizer, tensors = parts.tokenizer, parts.weights.tensors
    contents = {
        "config": parts.config.to_dict(),
        "tensors": {name: [tuple(tensor.shape), dtype_name(tensor.dtype)] for name, tensor in tensors.items()},
        "tokenizer": [tokenizer.fingerprint, tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos],
    }
    total = hashlib.sha256(json.dumps(contents, sort_keys=True, default=str).encode())
    for digest in sorted(map(_hash_samples, parts.weights.files)):  # sorted: shards may be named and ordered in any way
        total.update(digest)
    return total.hexdigest()[:16]


def _hash_samples(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as handle:
        if size <= _NUM_SAMPLES * _SAMPLE_BYTES:
            digest.update(handle.read())
        else:
            for index in range(_NUM_SAMPLES):  # evenly spaced; the last one ends where the file ends
                handle.seek(index * (size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
                digest.update(handle.read(_SAMPLE_BYTES))
    return digest.digest()
