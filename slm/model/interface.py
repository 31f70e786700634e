"""What evaluation and sampling need from a language model. `Decoder` has it, and so can models that others compute.

Whatever `hidden` returns is only passed on to `head` and `losses`. A model that gives nothing but logits may return
them from `hidden`, and return them unchanged from `head`.

Legend: B batch, T tokens, N tokens of any shape flattened, S width of the states, V vocabulary.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from slm.model.counts import Counts


class Shape(Protocol):
    """The numbers of a model's shape that every measurement needs. `ModelConfig` has them."""

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding. Ids of tokens are smaller."""

    @property
    def max_position_embeddings(self) -> int:
        """Maximum number of tokens in the context."""

    def to_dict(self) -> dict[str, Any]:
        """Return all that is known of the shape, under the names of `ModelConfig` where it has such a field."""


class Cache(Protocol):
    """What a model keeps of the tokens that it has read, for each sequence of a batch."""

    length: int
    """Number of tokens read."""

    def select(self, source: Any, rows: Tensor) -> None:
        """Become a copy of another cache of the model; sequence r is sequence `rows[r]` of `source`."""


class CausalLM(Protocol):
    """A model that predicts the next token from the tokens before it."""

    @property
    def config(self) -> Shape:
        """The shape."""

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""

    def hidden(self, tokens_BT: Tensor, cache: Any = None, documents_BT: Tensor | None = None) -> Tensor:
        """Return the states (B, T, S) from which `head` computes logits. With a cache, the tokens come after its own.

        `documents_BT` has the number of each token's document, and a token sees only its own document. Raises
        `ValueError` if the tokens do not fit, or if the model cannot separate documents.
        """

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of states (..., S)."""

    def losses(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Return the cross-entropy (N,) of each target in nats, float32 or better, without holding (N, V) logits."""

    def make_cache(self, batch_size: int, max_length: int, dtype: torch.dtype | None = None) -> Any:
        """Return an empty `Cache` for `max_length` tokens; `dtype` None stands for the dtype of the weights."""

    def counts(self) -> Counts:
        """Count parameters and bytes."""
