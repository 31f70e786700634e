"""Text source -> documents -> tokenizer -> memory-mapped token shards -> batches.

`prepare` builds (once, then opens) a `Corpus`; `train_loader` and `val_batches` turn its streams into tensors. What a
step trains on is a pure function of (seed, step, data): `window_ids`. Importing this package is cheap: what needs
torch, tokenizers or pyarrow is loaded at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.data.corpus import Corpus, prepare
    from slm.data.loader import train_loader, val_batches
    from slm.data.order import window_ids
    from slm.data.stream import TokenStream
    from slm.data.tokenizer import Tokenizer, load_tokenizer

_HOME = {
    "Corpus": "corpus",
    "TokenStream": "stream",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "prepare": "corpus",
    "train_loader": "loader",
    "val_batches": "loader",
    "window_ids": "order",
}

__all__ = [
    "Corpus",
    "TokenStream",
    "Tokenizer",
    "load_tokenizer",
    "prepare",
    "train_loader",
    "val_batches",
    "window_ids",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
