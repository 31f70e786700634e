"""`load` and `check`: any checkpoint that we can compute -> decoder, tokenizer, provenance.

Notable: the decoder is built without storage (meta device) and each tensor is read, converted and put in place on its
own, so that loading holds the weights once; names and shapes are compared before the first of them is read; and
whether the head is the embedding is settled by the tensors, not by what the config says alone.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor

from slm.checkpoints.architecture import untied
from slm.checkpoints.place import Parts, Place, find, parts
from slm.checkpoints.provenance import Checkpoint, Provenance, fingerprint
from slm.checkpoints.weights import Weights, dtype_name
from slm.model import Decoder
from slm.model.config import ModelConfig

_HEAD, _TABLE = "lm_head.weight", "embed_tokens.weight"
_MUCH_UNUSED = 0.05  # share of the embedding's rows that no token has, from where it is worth a note


def load(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Load a run directory of ours, an export of it, a folder of a release, or a hub id.

    The decoder is in eval mode on `device` with parameters of `dtype` that want no gradient. `revision` is a branch,
    tag or commit of a hub repository. No code that comes with a checkpoint is ever run. Raises `ValueError`, one
    sentence, for whatever cannot be loaded.
    """
    _refuse_device(device)
    place = find(path_or_repo, revision)
    found = _checked(place)
    config, notes = _settle_head(found.config, found.weights)
    decoder = _empty(config)
    tensors, odd = {}, []
    for name in decoder.state_dict():
        tensors[name] = found.weights.tensors[name].read().to(device=device, dtype=dtype)
        if not _all_finite(tensors[name]):
            odd.append(name)
    decoder.load_state_dict(tensors, assign=True)
    if odd:
        notes = (*notes, f"{_some(odd)} hold values that are not finite, so losses will not be either.")
    return Checkpoint(decoder.eval().requires_grad_(False), found.tokenizer, _provenance(place, found, config, notes))


def check(path_or_repo: str | Path, *, revision: str | None = None) -> Provenance:
    """Refuse whatever can be refused before the weights are read; a hub repository is fetched for it.

    Notes that need the weights (whether a stored head equals the embedding, values that are not finite) come with
    `load`. Raises `ValueError` as `load` does.
    """
    place = find(path_or_repo, revision)
    found = _checked(place)
    return _provenance(place, found, found.config, ())


def _refuse_device(device: torch.device | str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device={device} is none that torch knows: give cpu, cuda or cuda:0") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device}: torch {torch.__version__} finds no CUDA device here; give cpu")


def _checked(place: Place) -> Parts:
    """What lies at a place, whose tensors are those of its config."""
    found = parts(place, lambda config, weights: _fitted(place, config, weights))
    ids, rows = found.tokenizer.vocab_size, found.config.vocab_size
    if ids > rows:
        raise ValueError(
            f"checkpoint={place.checkpoint}: the tokenizer has {ids:,} ids and the embedding {rows:,} rows, so they do "
            "not belong together: give the folder the tokenizer that the model was trained with"
        )
    return found


def _fitted(place: Place, config: ModelConfig, weights: Weights) -> Weights:
    """The weights, if every tensor of the decoder is there in its shape, and no other, save a head beside a tied table.

    A tied table may be stored under the head's name alone. Raises `ValueError` for anything else.
    """
    stored = dict(weights.tensors)
    where = weights.files[0] if len(weights.files) == 1 else place.folder
    if config.num_layers > len(stored):  # before a decoder of so many is made
        raise ValueError(
            f"{where}: config.json says {config.num_layers:,} layers, and the weights have {len(stored):,} tensors"
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in _empty(config).state_dict().items()}
    if config.tie_embeddings and _HEAD in stored and _TABLE not in stored:
        stored[_TABLE] = stored.pop(_HEAD)
    if _HEAD in wanted and _HEAD not in stored:
        raise ValueError(
            f"{where}: the config says that the head is not tied (neither tie_word_embeddings nor "
            f"share_embedding is true), and the weights have no {_HEAD}"
        )
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted and name != _HEAD]
    expected = wanted | {_HEAD: wanted[_TABLE]}
    misshaped = [
        f"{name} is {list(stored[name].shape)} and not {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
    problems = [f"{len(names)} {what} ({_some(names)})" for what, names in found if names]
    if problems:
        raise ValueError(f"{where}: the tensors are not those of its config: {'; '.join(problems)}")
    return dataclasses.replace(weights, tensors=stored)


def _some(names: list[str]) -> str:
    shown = [shorten(name if name.isprintable() else repr(name), 80, placeholder="...") for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _empty(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


def _settle_head(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config with the head that the tensors have; notes where that is not what the config says."""
    if _HEAD not in weights.tensors:
        return config, ()
    equal = torch.equal(weights.tensors[_HEAD].read(), weights.tensors[_TABLE].read())
    if config.tie_embeddings and equal:
        return config, ("The config ties the head, and the head that is stored equals the embedding: tied.",)
    if config.tie_embeddings:
        return untied(config), (
            "The config ties the head, but the head that is stored differs from the embedding: it is used untied, and "
            "params_total counts both.",
        )
    if equal:
        return config, ("The untied head equals the embedding; params_total counts both, as the config says.",)
    return config, ()


def _all_finite(tensor: Tensor) -> bool:
    # A sum is one fast pass without a copy, and is not finite if a summand is not; it may also have overflowed.
    return math.isfinite(tensor.sum(dtype=torch.float32).item()) or bool(tensor.isfinite().all())


def _provenance(place: Place, found: Parts, config: ModelConfig, notes: tuple[str, ...]) -> Provenance:
    return Provenance(
        checkpoint=place.checkpoint,
        kind=place.kind,
        folder=place.folder,
        revision=place.revision,
        run=place.run,
        result=place.result,
        config=config,
        stored_dtype=dtype_name(found.weights.dtype),
        fingerprint=_fingerprint(found),
        notes=(*found.notes, *_header_notes(found), *notes),
    )


def _fingerprint(found: Parts) -> str:
    tokenizer = found.tokenizer
    facts = {
        "config": found.config.to_dict(),
        "tensors": {name: [tensor.shape, dtype_name(tensor.dtype)] for name, tensor in found.weights.tensors.items()},
        "tokenizer": [tokenizer.fingerprint, tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos],
    }
    return fingerprint(facts, found.weights.files)


def _header_notes(found: Parts) -> list[str]:
    notes = []
    if len(found.weights.dtypes) > 1:
        notes.append(f"The tensors are stored in different precisions: {', '.join(found.weights.dtypes)}.")
    ids, rows = found.tokenizer.vocab_size, found.config.vocab_size
    if rows - ids > _MUCH_UNUSED * rows:
        notes.append(f"The tokenizer uses {ids:,} of the embedding's {rows:,} rows.")
    return notes
