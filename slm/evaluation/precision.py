"""Device and precision in which a checkpoint is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from slm.checkpoints import Provenance
from slm.runtime.machine import native_bfloat16

TRAINED = {
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "32-true": (torch.float32, None),
    "64-true": (torch.float64, None),
}
"""Dtypes of weights and of matmuls (where it is another) for `precision` of a run."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Where and in what a checkpoint is measured."""

    device: str
    dtype: torch.dtype
    autocast: torch.dtype | None
    """Dtype of matmuls where it is not that of the weights."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know, whole sentences."""


def resolve_precision(settings: Mapping[str, Any], provenance: Provenance) -> Precision:
    """Fill in `auto`: a run of ours in the precision that it was validated in, everything else in float32.

    Raises `ValueError` for a device that is not here.
    """
    device = settings["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA device here; device=cpu runs anywhere")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings["dtype"] != "auto":
        return Precision(device=device, dtype=getattr(torch, settings["dtype"]), autocast=None)
    trained = str(provenance.result.get("precision"))
    dtype, autocast = TRAINED.get(trained, (torch.float32, None))
    if autocast is not None and not native_bfloat16(device):
        note = f"The run was validated in {trained}, which is emulated here and takes hours: this is float32."
        return Precision(device=device, dtype=dtype, autocast=None, notes=(note,))
    return Precision(device=device, dtype=dtype, autocast=autocast)
