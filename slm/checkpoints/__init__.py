"""Weights as others write and read them: tensor names, configs, export."""

from slm.checkpoints.export import export_model, hf_config

__all__ = ["export_model", "hf_config"]
