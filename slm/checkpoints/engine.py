"""Models that another engine computes (ExecuTorch, llama.cpp), behind the interface of evaluation: `CausalLM`.

Notable: an engine has one memory, for one sequence, and gives only logits. So the cache of a caller is a list of
tokens: if the engine's memory holds other tokens, the engine reads the cache's tokens again. Decoding one sequence
never does so.

Legend: B batch, T tokens, N tokens of any shape flattened, V vocabulary.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from math import prod
from typing import Any

import torch
from torch import Tensor

from slm.model.config import ModelConfig
from slm.model.counts import mixers_of_blocks, num_params
from slm.model.interface import Counts
from slm.model.loss import losses_by_chunk


class TokenCache:
    """The tokens that were read, a list for each sequence of a batch."""

    def __init__(self, batch_size: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(batch_size)]

    @property
    def length(self) -> int:
        """Number of tokens of each sequence."""
        return len(self.rows[0])

    def select(self, source: "TokenCache", rows: Tensor) -> None:
        """Copy sequence `rows[r]` of `source` to sequence r."""
        self.rows = [list(source.rows[row]) for row in rows.tolist()]


class EngineModel:
    """A `CausalLM` from an engine; subclasses implement `read`. States are logits, so `head` returns them unchanged."""

    device = torch.device("cpu")

    def __init__(self, config: ModelConfig, dtype: torch.dtype, file_bytes: int) -> None:
        self.config = config  # `max_position_embeddings` is the length of the engine's memory
        self.dtype = dtype
        self.file_bytes = self.held_bytes = file_bytes  # of which the engine may hold more, once it is loaded
        self._read: list[int] = []  # tokens in the engine's memory

    def read(self, tokens: list[int], start: int) -> Tensor:
        """Return the logits (T, V), float32, of T tokens after the first `start` tokens in the engine's memory."""
        raise NotImplementedError

    def hidden(self, tokens_BT: Tensor, cache: TokenCache | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """Return the logits (B, T, V); see `CausalLM.hidden`.

        Raises `ValueError` if the tokens do not fit, and for documents, which only a run's own validation text has.
        """
        cache = cache or TokenCache(len(tokens_BT))
        length, max_length = cache.length + tokens_BT.shape[1], self.config.max_position_embeddings
        if length > max_length:
            raise ValueError(f"{length} tokens do not fit: the context or the cache ends at {max_length}")
        if documents_BT is not None:
            raise ValueError("an engine cannot hide documents of one row from each other: give them separately")
        rows = []
        for row, tokens in enumerate(tokens_BT.tolist()):
            rows.append(self._continue(cache.rows[row], tokens))
            cache.rows[row] = cache.rows[row] + tokens
        return torch.stack(rows)

    def _continue(self, past: list[int], tokens: list[int]) -> Tensor:
        if past and self._read[: len(past)] != past:
            self.read(past, 0)
        logits_TV = self.read(tokens, len(past))
        self._read = past + tokens
        return logits_TV

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits, which `hidden` has computed."""
        return hidden

    def losses(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Return the cross-entropy in nats of each target, (N,)."""
        return losses_by_chunk(hidden_ND, self.head, targets_N)

    def make_cache(self, batch_size: int, max_length: int, dtype: torch.dtype | None = None) -> TokenCache:
        """Return an empty cache."""
        return TokenCache(batch_size)

    def counts(self) -> Counts:
        """Count parameters, and the bytes of the file and of a memory of full length in the dtype of the model."""
        config, mixers = self.config, mixers_of_blocks(self.config)

        def memory_bytes(length: int) -> int:
            shapes = [shape for block in config.block_uses for shape in mixers[block].static_shapes(config, length)]
            return self.dtype.itemsize * sum(map(prod, shapes))

        full_length = config.max_position_embeddings
        per_token = memory_bytes(full_length) - memory_bytes(full_length - 1)
        return Counts(
            params_total=num_params(config),
            params_non_embedding=num_params(config, non_embedding=True),
            model_bytes=self.file_bytes,
            kv_bytes_per_token=per_token,
            kv_cache_bytes=per_token * full_length,
            state_bytes=memory_bytes(full_length) - per_token * full_length,
        )


def import_extra(module: str, extra: str, asked_by: str) -> Any:
    """Return a module of an extra. Raises `ValueError` that says how to install it if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        package = str(error.name or module).partition(".")[0]
        raise ValueError(f"{asked_by} needs the package {package}: pip install 'slm[{extra}]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep from the user what an engine's libraries print about their own parts, also without Python."""
    level, kept = logging.root.manager.disable, [os.dup(1), os.dup(2)]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), open(os.devnull, "w") as nowhere:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        logging.disable(level)
