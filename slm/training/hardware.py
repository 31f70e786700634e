"""What a run trains on: device, number of processes, precision, compilation. Decided once, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from slm.runtime.machine import can_compile, device_name, native_bfloat16

MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Resolved `trainer` config."""

    accelerator: Literal["cpu", "cuda"]
    devices: int
    """Processes on this node, one a device."""
    num_nodes: int
    strategy: Literal["single", "ddp", "fsdp"]
    precision: str
    compile: bool
    micro_batch_tokens: int
    num_workers: int

    @property
    def world_size(self) -> int:
        """Processes over all nodes."""
        return self.devices * self.num_nodes

    @property
    def matmul_dtype(self) -> torch.dtype:
        """Dtype of the matmuls."""
        return {"32-true": torch.float32, "64-true": torch.float64}.get(self.precision, torch.bfloat16)

    @property
    def device_name(self) -> str:
        """Name of the processor."""
        return device_name(self.accelerator)


def resolve_hardware(trainer: Mapping[str, Any]) -> Hardware:
    """Fill in every `auto` of a group whose values are of their kinds; `ValueError` for what this machine lacks."""
    accelerator = _accelerator(trainer["accelerator"])
    devices = _devices(trainer["devices"], accelerator)
    several = devices * trainer["num_nodes"] > 1
    precision = trainer["precision"]
    if precision == "auto":
        precision = "bf16-mixed" if native_bfloat16(accelerator) else "32-true"
    return Hardware(
        accelerator=accelerator,
        devices=devices,
        num_nodes=int(trainer["num_nodes"]),
        strategy="single" if not several else "fsdp" if trainer["strategy"] == "fsdp" else "ddp",
        precision=precision,
        compile=can_compile(accelerator) if trainer["compile"] == "auto" else bool(trainer["compile"]),
        micro_batch_tokens=int(trainer["micro_batch_tokens"] or MICRO_BATCH_TOKENS[accelerator]),
        num_workers=int(trainer["num_workers"]),
    )


def _accelerator(wanted: str) -> Literal["cpu", "cuda"]:
    if wanted in ("cuda", "gpu") and not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={wanted}, but torch sees no CUDA device here; trainer=cpu runs anywhere")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _devices(wanted: Any, accelerator: str) -> int:
    """Number of processes; on a CPU `auto` is one, which uses all cores."""
    present = torch.cuda.device_count() if accelerator == "cuda" else None
    if wanted == "auto":
        return present or 1
    if present is not None and wanted > present:
        raise ValueError(f"trainer.devices={wanted} must be auto or between 1 and {present}, the GPUs here")
    return int(wanted)
