"""Text source -> documents -> tokenizer -> memory-mapped token shards -> batches.

`prepare` builds a `Corpus` the first time and then opens it; `train_loader` and `val_batches` turn its streams into
tensors. The batch of a step is a pure function of (seed, step, data): `window_ids`. Importing this package is cheap,
because torch, tokenizers and pyarrow are imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.data.corpus import Corpus as Corpus
    from slm.data.corpus import prepare as prepare
    from slm.data.loader import train_loader as train_loader
    from slm.data.loader import val_batches as val_batches
    from slm.data.loader import window_ids as window_ids
    from slm.data.tokenizer import Tokenizer as Tokenizer
    from slm.data.vocabulary import load_tokenizer as load_tokenizer

_MODULES = {
    "corpus": ("Corpus", "prepare"), "loader": ("train_loader", "val_batches", "window_ids"),
    "tokenizer": ("Tokenizer",), "vocabulary": ("load_tokenizer",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
