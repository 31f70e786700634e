"""Weights as others write and read them: loading any checkpoint, tensor names, configs, export."""

from slm.checkpoints.export import export, export_model, hf_config
from slm.checkpoints.load import Checkpoint, check, load
from slm.checkpoints.location import Provenance

__all__ = ["Checkpoint", "Provenance", "check", "export", "export_model", "hf_config", "load"]
