"""What is known about a checkpoint besides its weights: where it came from, and a cheap name for its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from slm.data import Tokenizer
from slm.model import Decoder
from slm.model.config import ModelConfig

# 1 MB a file: any training step changes almost every weight, so almost every sample.
_SAMPLES, _SAMPLE_BYTES = 512, 2048


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the weights of a checkpoint came from."""

    checkpoint: str
    """As the user gave it."""
    kind: str
    """"run", "export" (a `model/` folder of ours) or "hf"."""
    folder: Path
    """Holds config.json and the weights; of a run that is not completed, its checkpoints."""
    revision: str | None
    """Commit of a hub repository; None for local files."""
    run: Path | None
    """The run directory, when it is one of ours: its config.yaml and result.json are there."""
    result: Mapping[str, Any]
    """result.json of that run, {} otherwise."""
    config: ModelConfig
    """Shape of the decoder."""
    stored_dtype: str
    """Of the files, such as "float16"; where they mix, that of most bytes."""
    fingerprint: str
    """Identifies weights, config and tokenizer: of big files it reads sizes, headers and samples, not every byte."""
    notes: tuple[str, ...]
    """What a reader of results must know, whole sentences."""


class Checkpoint(NamedTuple):
    """A loaded checkpoint: the decoder in eval mode and without gradients, its tokenizer, where they came from."""

    decoder: Decoder
    tokenizer: Tokenizer
    provenance: Provenance


def fingerprint(facts: Mapping[str, Any], files: Iterable[Path]) -> str:
    """SHA-256, shortened, of JSON-like `facts` and of the files' sizes and samples; paths and times do not matter."""
    total = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for digest in sorted(_sampled(file) for file in files):  # sorted: shards may be named and ordered in any way
        total.update(digest)
    return total.hexdigest()[:16]


def _sampled(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as handle:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(handle.read())
        else:
            for index in range(_SAMPLES):
                handle.seek(index * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(handle.read(_SAMPLE_BYTES))
    return digest.digest()
