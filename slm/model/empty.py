"""A decoder without storage, from which the names and shapes of its weights can be read."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from slm.model.config import ModelConfig
from slm.model.decoder import Decoder


def empty_decoder(config: ModelConfig) -> Decoder:
    """Build a decoder without storage."""
    with torch.device("meta"), _NoInit():
        return Decoder(config)


class _NoInit(TorchFunctionMode):
    """Skips `torch.nn.init`: for a tensor without storage it changes nothing, but imports torch's compiler (1 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.nn.init.normal_, torch.nn.init.constant_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
