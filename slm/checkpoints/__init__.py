"""Weights as others write and read them: loading any checkpoint, tensor names, configs, export."""

from slm.checkpoints.export import export, export_model, hf_config
from slm.checkpoints.load import AnyCheckpoint, Checkpoint, check, check_any, load, load_any
from slm.checkpoints.location import AnyProvenance, Provenance

__all__ = [
    "AnyCheckpoint", "AnyProvenance", "Checkpoint", "Provenance", "check", "check_any", "export", "export_model",
    "hf_config", "load", "load_any",
]  # fmt: skip
