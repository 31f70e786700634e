"""slm: train small language models from scratch, and measure honestly how architecture families scale.

>>> from slm import generate, load
>>> model = load("outputs/run")
>>> generate(model, "The function", max_new_tokens=20)

Names are imported at first use, so that importing `slm` or one of its rooms imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.checkpoints import load as load
    from slm.evaluation.generation import generate as generate
    from slm.evaluation.generation import stream as stream

__version__ = "0.1.0"
_MODULES = {"load": "checkpoints", "generate": "evaluation.generation", "stream": "evaluation.generation"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'slm' has no attribute {name!r}")
    return getattr(import_module(f"slm.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
