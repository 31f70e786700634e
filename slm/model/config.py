"""The shape of a decoder: its fields, and what they say of each block.

Notable: importing it imports no torch; a wrong shape is refused here, before anything is built (`slm.model.checks`);
blocks that are used more than once count once as parameters and every time as FLOPs and cache slots
(`slm.model.counts`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from slm.model import counts
from slm.model.checks import LAYER_POSITIONS, check


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder, by default a Llama. Raises `ValueError` naming the field that is wrong."""

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
    """Inner width of the feed-forward."""
    max_position_embeddings: int = 2048
    """Longest context, in tokens."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies (Su et al. 2021, arXiv:2104.09864)."""
    rope_style: Literal["half", "interleaved"] = "half"
    """Which channels rotate together: i with i + head_dim/2 (Llama on the hub) or 2i with 2i + 1 (the paper)."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm, to the variance in LayerNorm."""
    tie_embeddings: bool = True
    """Whether the head is the embedding table."""
    qk_norm: Literal["none", "weightless", "learned"] = "none"
    """RMSNorm of each query and key head before the rotation, with or without a learned gain."""
    attention_bias: bool = False
    """Biases in the mixer's projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward."""
    layer_sharing: Literal["none", "immediate", "repeat_all_over", "reverse"] = "none"
    """Order in which blocks are used again (MobileLLM, arXiv:2402.14905, section 3.3): 0011, 0101 or 0110."""
    num_repeats: int = 1
    """How often each block is used; 2 with immediate sharing is MobileLLM-LS."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    mixer_pattern: str = "F"
    """Mixer of each layer, tiled over the layers: F full softmax attention, S sliding window, P sparse, L linear
    attention, G gated linear attention with scalar decay (SSD). "SSSF" is every fourth layer full."""
    sliding_window: int | tuple[int, ...] = 256
    """S: keys that a query sees, its own among them. One number for every layer, or a list that is tiled over the
    layers as `mixer_pattern` is; a number at a layer that is not S has no effect."""
    sparse_block: int = 64
    """P: tokens of a local block, within which attention is full."""
    sparse_stride: int = 16
    """P: of the blocks before its own, a query sees the last of every `sparse_stride` tokens."""
    chunk_size: int = 64
    """L, G: tokens of a chunk of the training form. It changes speed and FLOPs and not the function."""
    state_size: int = 64
    """G: width of keys and queries, N in Mamba-2."""
    conv_kernel: int = 4
    """G: tokens that the causal convolution before the recurrence sees."""
    mlp: Literal["swiglu", "geglu", "gelu", "relu2"] = "swiglu"
    """Feed-forward: gated by SiLU or GELU (arXiv:2002.05202), or plain with GELU or squared ReLU (arXiv:2109.08668)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Norms over the hidden size: RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450)."""
    norm_bias: bool = False
    """Biases in those norms; LayerNorm only."""
    norm_position: Literal["pre", "post", "both"] = "pre"
    """Norm of a branch's input, of its output before it is added (OLMo 2, arXiv:2501.00656), or of both (Gemma 2)."""
    parallel_block: bool = False
    """Mixer and feed-forward side by side, on one and the same normed input (GPT-J, PaLM)."""
    position: Literal["rope", "learned", "alibi", "none"] = "rope"
    """How positions enter: rotation of queries and keys (F, S, P), a learned table added to the embedding, linear
    biases of the scores (ALiBi, arXiv:2108.12409; F, S, P), or not at all."""
    position_pattern: str | None = None
    """Per layer, tiled over the layers: R rope, A alibi, N none, such as "RRRN"; None is `position` in every layer."""
    embedding_multiplier: float = 1.0
    """The embedding's output times this."""
    residual_multiplier: float = 1.0
    """Each branch's output times this before it is added to the residual stream."""
    attention_multiplier: float | None = None
    """Attention scores are q k^T times this; None is head_dim ** -0.5."""
    logits_multiplier: float = 1.0
    """The head's output times this."""

    def __post_init__(self) -> None:
        if isinstance(self.sliding_window, list):  # as YAML and JSON have it
            object.__setattr__(self, "sliding_window", tuple(self.sliding_window))
        check(self)
        object.__setattr__(self, "num_kv_heads", self.kv_heads)
        object.__setattr__(self, "head_dim", self.head_width)

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
        """All fields, resolved, as plain values: those that JSON gives back."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

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
    def mixers(self) -> tuple[str, ...]:
        """Letter of each block's mixer."""
        return tuple(self.mixer_pattern[i % len(self.mixer_pattern)] for i in range(self.num_layers))

    @property
    def windows(self) -> tuple[int, ...]:
        """Window of each block. Of no effect on mixers other than S."""
        given = (self.sliding_window,) if isinstance(self.sliding_window, int) else self.sliding_window
        return tuple(given[i % len(given)] for i in range(self.num_layers))

    @property
    def layer_positions(self) -> tuple[str, ...]:
        """How each block is told positions: "rope", "alibi" or "none". Of no effect on mixers L and G."""
        if self.position_pattern is None:
            return ("none" if self.position == "learned" else self.position,) * self.num_layers
        letters = self.position_pattern
        return tuple(LAYER_POSITIONS[letters[i % len(letters)]] for i in range(self.num_layers))

    @property
    def gated_mlp(self) -> bool:
        """Whether the feed-forward has a gate, that is, three matrices."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def block_uses(self) -> tuple[int, ...]:
        """Index of the block behind each use, in the order of the forward pass."""
        once = range(self.num_layers)
        if self.layer_sharing == "immediate":
            return tuple(block for block in once for _ in range(self.num_repeats))
        if self.layer_sharing == "reverse":
            return tuple(b for r in range(self.num_repeats) for b in (once if r % 2 == 0 else reversed(once)))
        return tuple(once) * self.num_repeats

    def num_params(self, *, non_embedding: bool = False) -> int:
        """Unique parameters: tied embeddings once, shared blocks once. `non_embedding` leaves out tables and head."""
        return counts.num_params(self, non_embedding=non_embedding)

    def flops_per_token(self, sequence_length: int, *, convention: Literal["exact", "6n"] = "exact") -> float:
        """Training FLOPs (forward and backward) a token, averaged over a causal sequence of `sequence_length` tokens.

        "6n" is 6 x `num_params()` (Kaplan et al. 2020, section 2.1, here with the total N). "exact" is 3 x forward:
        two FLOPs a matmul weight *per use* (shared blocks every time, the head too, the look-up not) and what each
        use's mixer needs for the pairs of tokens that see each other (`slm.model.counts`), for full attention
        2 x 2 x heads x head_dim x (T + 1) / 2, (T + 1) / 2 being the mean number of keys.
        """
        if convention == "6n":
            return 6.0 * self.num_params()
        return 3.0 * counts.forward_flops(self, sequence_length) / sequence_length

    def kv_cache_bytes(self, num_tokens: int, *, batch_size: int = 1, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values kept for `num_tokens` tokens: one slot per *use* of a block, no recurrent state."""
        return counts.kv_cache_bytes(self, num_tokens, batch_size=batch_size, bytes_per_value=bytes_per_value)

    def state_bytes(self, *, batch_size: int = 1, bytes_per_value: int = 4) -> int:
        """Bytes of recurrent state, which do not grow with the tokens; kept in float32 at least."""
        return counts.state_bytes(self, batch_size=batch_size, bytes_per_value=bytes_per_value)


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
