"""The decoder and nothing else: no data, no Lightning, no Hydra, no W&B.

>>> from slm.model import Decoder, ModelConfig
>>> decoder = Decoder(ModelConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=192))

Names are imported at first use, so that `slm.model.config` can be used without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.model.config import ModelConfig as ModelConfig
    from slm.model.decoder import Decoder as Decoder
    from slm.model.decoder import KVCache as KVCache
    from slm.model.decoding import generate as generate

_MODULES = {"Decoder": "decoder", "KVCache": "decoder", "ModelConfig": "config", "generate": "decoding"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'slm.model' has no attribute {name!r}")
    return getattr(import_module(f"slm.model.{_MODULES[name]}"), name)
