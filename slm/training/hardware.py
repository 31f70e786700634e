"""The devices and the precision of a run: what the config group `trainer` means on this machine."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from slm.runtime.machine import device_name, fast_float16, has_mps, native_bfloat16, why_no_gpu, why_not_compiled
from slm.runtime.system import num_cores

MATMUL_DTYPES = {
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "32-true": torch.float32,
    "64-true": torch.float64,
}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The `trainer` group, in which every `auto` is replaced by a choice for this machine."""

    accelerator: Literal["cpu", "cuda", "mps"]
    devices: int
    """Processes on this node, one for each device."""
    num_nodes: int
    strategy: Literal["single", "ddp", "fsdp"]
    precision: str
    compile: bool
    micro_batch_tokens: int | None
    """Maximum number of tokens in one forward pass of a device; None for as many as fit."""
    activation_checkpointing: bool | Literal["auto"]
    deterministic: bool
    """Whether only operations that give the same bits each time are allowed."""
    num_workers: int
    """Processes that load data for one device; 0 if the training process loads them itself."""

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.devices * self.num_nodes

    @property
    def matmul_dtype(self) -> torch.dtype:
        """The dtype of matmuls."""
        return MATMUL_DTYPES[self.precision]

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of matmuls if it differs from the dtype of the weights, else None."""
        return self.matmul_dtype if self.precision.endswith("-mixed") else None

    @property
    def device_name(self) -> str:
        """Name of the processor."""
        return device_name(self.accelerator)


def autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return the context of a pass with matmuls in `dtype`; None stands for the dtype of the weights.

    It is Lightning's, without autocast's cache: in another context, compiled blocks would be compiled again.
    """
    return torch.autocast(device, dtype, cache_enabled=False) if dtype else nullcontext()


def resolve_hardware(trainer: Mapping[str, Any]) -> Hardware:
    """Replace every `auto` of the `trainer` group. Raises `ValueError` for devices that this machine lacks."""
    accelerator = _accelerator(trainer["accelerator"])
    devices = _devices(trainer["devices"], accelerator)
    parallel_strategy: Literal["single", "ddp", "fsdp"] = "fsdp" if trainer["strategy"] == "fsdp" else "ddp"
    precision = trainer["precision"]
    if precision == "auto":
        without_bfloat16 = "16-mixed" if fast_float16(accelerator) else "32-true"
        precision = "bf16-mixed" if native_bfloat16(accelerator) else without_bfloat16
    if accelerator == "mps" and precision not in ("32-true", "bf16-mixed"):
        raise ValueError(f"trainer.precision={precision} does not work on mps: give 32-true or bf16-mixed")
    return Hardware(
        accelerator=accelerator,
        devices=devices,
        num_nodes=int(trainer["num_nodes"]),
        strategy=parallel_strategy if devices * trainer["num_nodes"] > 1 else "single",
        precision=precision,
        compile=_compiles(trainer["compile"], accelerator),
        micro_batch_tokens=None if trainer["micro_batch_tokens"] is None else int(trainer["micro_batch_tokens"]),
        activation_checkpointing=trainer.get("activation_checkpointing", False),  # older runs lack the key
        deterministic=trainer.get("deterministic", False),
        num_workers=_num_workers(trainer["num_workers"], accelerator, devices),
    )


def _accelerator(requested: str) -> Literal["cpu", "cuda", "mps"]:
    if requested == "mps":
        if not has_mps():
            raise ValueError("trainer.accelerator=mps, but torch sees no Apple GPU here; trainer=cpu runs anywhere")
        return "mps"
    if requested in ("cuda", "gpu") and not torch.cuda.is_available():
        why = why_no_gpu()
        hint = f" ({why})" if why else ""
        raise ValueError(f"trainer.accelerator={requested}, but torch has no CUDA GPU; trainer=cpu runs anywhere{hint}")
    return "cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu"


def _compiles(requested: Any, accelerator: str) -> bool:
    obstacle = why_not_compiled(accelerator)
    if requested is True and obstacle:
        raise ValueError(f"trainer.compile=true, but {obstacle}; with trainer.compile=auto the run is not compiled")
    return bool(requested) and obstacle is None  # requested: True or "auto"


def _num_workers(requested: Any, accelerator: str, devices: int) -> int:
    if requested != "auto":
        return int(requested)
    return min(4, max(2, num_cores() // devices - 1)) if accelerator == "cuda" else 0


def _devices(requested: Any, accelerator: str) -> int:
    if accelerator == "cpu":
        return 1 if requested == "auto" else int(requested)  # one process uses all cores
    num_gpus = torch.cuda.device_count() if accelerator == "cuda" else 1
    if requested == "auto":
        return num_gpus
    if requested > num_gpus:
        raise ValueError(f"trainer.devices={requested} must be auto or between 1 and {num_gpus}, the number of GPUs")
    return int(requested)
