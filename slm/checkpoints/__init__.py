"""Weights as others write and read them: loading any checkpoint, tensor names, configs, export.

Importing this package is cheap: what needs torch is loaded at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.checkpoints.export import export, export_model, hf_config
    from slm.checkpoints.load import check, load
    from slm.checkpoints.provenance import Checkpoint, Provenance

_HOME = {
    "Checkpoint": "provenance",
    "Provenance": "provenance",
    "check": "load",
    "export": "export",
    "export_model": "export",
    "hf_config": "export",
    "load": "load",
}

__all__ = ["Checkpoint", "Provenance", "check", "export", "export_model", "hf_config", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
