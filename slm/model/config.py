"""The shape of a decoder, and everything that follows from a shape alone: parameters, FLOPs, cache bytes.

Notable: counts are closed forms (tests hold them against the real module), blocks that are used more than once count
once as parameters and every time as FLOPs and cache slots, and a wrong shape is refused here, before anything is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

LAYER_SHARING = ("none", "immediate", "repeat_all_over", "reverse")
QK_NORM = ("none", "weightless", "learned")
ROPE_STYLE = ("half", "interleaved")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a pre-norm, grouped-query, SwiGLU decoder. Raises `ValueError` naming the field that is wrong."""

    vocab_size: int
    """Rows of the embedding table; may exceed what the tokenizer uses."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Distinct blocks, that is, blocks with tensors of their own."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int | None = None
    """Key and value heads, each shared by num_heads / num_kv_heads queries; None is one a query head (MHA)."""
    head_dim: int | None = None
    """Width of a head; None is hidden_size / num_heads."""
    intermediate_size: int
    """Inner width of the SwiGLU feed-forward."""
    max_position_embeddings: int = 2048
    """Longest context, in tokens."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies (Su et al. 2021, arXiv:2104.09864)."""
    rope_style: Literal["half", "interleaved"] = "half"
    """Which channels rotate together: i with i + head_dim/2 (Llama on the hub) or 2i with 2i + 1 (the paper)."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = True
    """Whether the head is the embedding table."""
    qk_norm: Literal["none", "weightless", "learned"] = "none"
    """RMSNorm of each query and key head before the rotation, with or without a learned gain."""
    attention_bias: bool = False
    """Biases in the four attention projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward."""
    layer_sharing: Literal["none", "immediate", "repeat_all_over", "reverse"] = "none"
    """Order in which blocks are used again (MobileLLM, arXiv:2402.14905, section 3.3): 0011, 0101 or 0110."""
    num_repeats: int = 1
    """How often each block is used; 2 with immediate sharing is MobileLLM-LS."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    embedding_multiplier: float = 1.0
    """The embedding's output times this."""
    residual_multiplier: float = 1.0
    """Each branch's output times this before it is added to the residual stream."""
    attention_multiplier: float | None = None
    """Attention scores are q k^T times this; None is head_dim ** -0.5."""
    logits_multiplier: float = 1.0
    """The head's output times this."""

    def __post_init__(self) -> None:
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"model.{name}={value!r} must be a whole number of at least 1")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is None and name == "attention_multiplier":
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise ValueError(f"model.{name}={value!r} must be a number above 0")
        for name in ("tie_embeddings", "attention_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"model.{name}={getattr(self, name)!r} must be true or false")
        self._check_heads()
        self._check_sharing()

    def _check_heads(self) -> None:
        if self.head_dim is None:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"model.hidden_size={self.hidden_size} is not divisible by model.num_heads={self.num_heads}: "
                    "change one of them or set model.head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.num_heads % self.kv_heads:
            fits = [str(k) for k in range(1, self.num_heads + 1) if self.num_heads % k == 0]
            raise ValueError(
                f"model.num_heads={self.num_heads} is not divisible by model.num_kv_heads={self.kv_heads}: "
                f"num_kv_heads can be {', '.join(fits)}"
            )
        if self.head_width % 2:
            raise ValueError(f"model.head_dim={self.head_dim} must be even: rotary positions turn pairs of channels")

    def _check_sharing(self) -> None:
        if (self.layer_sharing == "none") != (self.num_repeats == 1):
            raise ValueError(
                f"model.layer_sharing={self.layer_sharing} with model.num_repeats={self.num_repeats}: "
                "none goes with 1 repeat, every other sharing with at least 2"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from a plain mapping, refusing keys that are no fields (with the nearest one that is)."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                near = get_close_matches(key, names, n=1)
                raise ValueError(
                    f"model.{key} is not a field of the model" + (f"; did you mean {near[0]}?" if near else "")
                )
        missing = [
            f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and values.get(f.name) is None
        ]
        if missing:
            raise ValueError(f"model.{missing[0]} is not set; a model needs a whole number there")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields, resolved, as plain values."""
        return dataclasses.asdict(self)

    @property
    def kv_heads(self) -> int:
        """`num_kv_heads`, resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """`head_dim`, resolved."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def beyond_llama(self) -> tuple[str, ...]:
        """Fields that Llama (`transformers`) has no word for and that are not at their defaults."""
        return tuple(
            field.name
            for field in dataclasses.fields(self)
            if field.name not in _LLAMA_FIELDS and getattr(self, field.name) != field.default
        )

    @property
    def attention_scale(self) -> float:
        """`attention_multiplier`, resolved."""
        return self.head_width**-0.5 if self.attention_multiplier is None else self.attention_multiplier

    @property
    def block_uses(self) -> tuple[int, ...]:
        """Index of the block behind each use, in the order of the forward pass."""
        once = range(self.num_layers)
        if self.layer_sharing == "immediate":
            return tuple(block for block in once for _ in range(self.num_repeats))
        if self.layer_sharing == "reverse":
            return tuple(b for r in range(self.num_repeats) for b in (once if r % 2 == 0 else reversed(once)))
        return tuple(once) * self.num_repeats

    def _block_matmul_weights(self) -> int:
        attention = self.hidden_size * self.head_width * (2 * self.num_heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    def _block_vectors(self) -> int:
        """Norm gains and biases of one block."""
        count = 2 * self.hidden_size
        if self.qk_norm == "learned":
            count += 2 * self.head_width
        if self.attention_bias:
            count += self.head_width * (self.num_heads + 2 * self.kv_heads) + self.hidden_size
        if self.mlp_bias:
            count += 2 * self.intermediate_size + self.hidden_size
        return count

    def num_params(self, *, non_embedding: bool = False) -> int:
        """Unique parameters: tied embeddings once, shared blocks once. `non_embedding` leaves out table and head."""
        body = self.num_layers * (self._block_matmul_weights() + self._block_vectors()) + self.hidden_size
        tables = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return body if non_embedding else body + tables

    def flops_per_token(self, sequence_length: int, *, convention: Literal["exact", "6n"] = "exact") -> float:
        """Training FLOPs (forward and backward) a token, averaged over a causal sequence of `sequence_length` tokens.

        "6n" is 6 x `num_params()` (Kaplan et al. 2020, section 2.1, here with the total N). "exact" is 3 x forward:
        two FLOPs a matmul weight *per use* (shared blocks every time, the head too, the look-up not) and
        2 x 2 x heads x head_dim x (T + 1) / 2 a use for scores and values, (T + 1) / 2 being the mean number of keys.
        """
        if convention == "6n":
            return 6.0 * self.num_params()
        scores_and_values = 4 * self.num_heads * self.head_width * (sequence_length + 1) / 2
        block = 2 * self._block_matmul_weights() + scores_and_values
        return 3.0 * (len(self.block_uses) * block + 2 * self.vocab_size * self.hidden_size)

    def kv_cache_bytes(self, num_tokens: int, *, batch_size: int = 1, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values for `num_tokens` cached tokens: one slot per *use* of a block."""
        return 2 * len(self.block_uses) * self.kv_heads * self.head_width * num_tokens * batch_size * bytes_per_value


_COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "num_repeats",
)
_CHOICES = {"layer_sharing": LAYER_SHARING, "qk_norm": QK_NORM, "rope_style": ROPE_STYLE}
_POSITIVE = (
    "rope_theta",
    "norm_eps",
    "init_std",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_multiplier",
)
_LLAMA_FIELDS = {
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "rope_theta",
    "norm_eps",
    "tie_embeddings",
    "attention_bias",
    "mlp_bias",
    "init_std",
}
