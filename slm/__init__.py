"""slm: train small language models from scratch, and measure honestly how architecture families scale.

>>> from slm import generate, load
>>> model = load("outputs/run")
>>> generate(model, "The function", max_new_tokens=20)

Names are imported at first use, so that importing `slm` or one of its rooms imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.checkpoints import load_any
    from slm.evaluation.generation import generate as generate
    from slm.evaluation.generation import stream as stream

    load = load_any

__version__ = "0.1.0"
_ORIGINS = {
    "load": ("checkpoints", "load_any"),
    "generate": ("evaluation.generation", "generate"),
    "stream": ("evaluation.generation", "stream"),
}


def __getattr__(name: str) -> Any:
    if name not in _ORIGINS:
        raise AttributeError(f"module 'slm' has no attribute {name!r}")
    module, original = _ORIGINS[name]
    return getattr(import_module(f"slm.{module}"), original)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ORIGINS})
