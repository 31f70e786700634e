"""The shape of a decoder: its fields, the settings that follow for each block, and the checks of a shape.

Notable: this module imports no torch, so a wrong shape is refused quickly, before anything is built. `slm.model.counts`
computes the parameters, FLOPs and bytes of a shape.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import groupby
from math import isqrt
from typing import Any, Literal, get_args, get_origin, get_type_hints

from slm.model.mixers import MIXERS

LAYER_POSITIONS = {"R": "rope", "A": "alibi", "N": "none"}  # for each letter of `position_pattern`
QUANTISATIONS = {"int8": (8, False), "int8_dynamic": (8, True), "int4": (4, False), "int4_dynamic": (4, True)}
"""Kind of `slm.model.quantised` -> bits of a weight, and whether the inputs of linear maps are rounded too."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder, by default a Llama. Raises `ValueError` naming the field that is wrong.

    The rules of a mixer (`Mixer.check`) are applied later, when a count or a decoder first needs the mixer.
    """

    vocab_size: int
    """Rows of the embedding table; may exceed what the tokenizer uses."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Distinct blocks, that is, blocks with tensors of their own."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int | None = None
    """Key and value heads, each shared by num_heads / num_kv_heads query heads; None is num_heads (MHA)."""
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
    """Whether the head uses the weights of the embedding table."""
    qk_norm: Literal["none", "weightless", "learned"] = "none"
    """RMSNorm of each query and key head before the rotation, with or without a learned gain."""
    attention_bias: bool = False
    """Biases in the mixer's projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward."""
    layer_sharing: Literal["none", "immediate", "repeat_all_over", "reverse"] = "none"
    """Order in which blocks are repeated (MobileLLM, arXiv:2402.14905, section 3.3): 0011, 0101, 0110 for 2 blocks."""
    num_repeats: int = 1
    """How often each block is used; 2 with immediate sharing is MobileLLM-LS."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    mixer_pattern: str = "F"
    """Mixer of each layer, tiled over the layers: F full softmax attention, S sliding window, P sparse, L linear
    attention, G gated linear attention with scalar decay (SSD). "SSSF" is every fourth layer full."""
    sliding_window: int | tuple[int, ...] = 256
    """S: keys that a query sees, including its own. One number for every layer, or a list that is tiled over the layers
    like `mixer_pattern`; the number at a layer with another mixer has no effect."""
    sparse_block: int = 64
    """P: tokens of a local block, within which attention is full."""
    sparse_stride: int = 16
    """P: of each earlier block, a query sees every `sparse_stride`-th token."""
    chunk_size: int = 64
    """L, G: tokens per chunk in training. It changes speed and FLOPs, not the result."""
    state_size: int = 64
    """G: width of keys and queries, N in Mamba-2."""
    conv_kernel: int = 4
    """G: tokens that the causal convolution before the recurrence sees."""
    mlp: Literal["swiglu", "geglu", "gelu", "relu2"] = "swiglu"
    """Feed-forward: gated by SiLU or GELU (arXiv:2002.05202), or plain with GELU or squared ReLU (arXiv:2109.08668)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Norms over the hidden size: RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450)."""
    norm_bias: bool = False
    """Biases in the norms over the hidden size; LayerNorm only."""
    norm_position: Literal["pre", "post", "both"] = "pre"
    """What is normed in a branch (mixer or feed-forward): its input (pre), its output before the residual sum (post, as
    in OLMo 2, arXiv:2501.00656), or both (as in Gemma 2)."""
    parallel_block: bool = False
    """Mixer and feed-forward side by side, on the same normed input (GPT-J, PaLM)."""
    position: Literal["rope", "learned", "alibi", "none"] = "rope"
    """How positions enter: by rotating queries and keys (rope; F, S, P), by a table that is added to the embedding
    (learned), by linear biases of the scores (alibi, arXiv:2108.12409; F, S, P), or not at all."""
    position_pattern: str | None = None
    """Per layer, tiled over the layers: R rope, A alibi, N none, such as "RRRN"; None is `position` in every layer."""
    embedding_multiplier: float = 1.0
    """Factor on the embedding's output."""
    residual_multiplier: float = 1.0
    """Factor on each branch's output before it is added to the residual stream."""
    attention_multiplier: float | None = None
    """Factor on the attention scores q k^T; None is head_dim ** -0.5."""
    logits_multiplier: float = 1.0
    """Factor on the head's output."""

    def __post_init__(self) -> None:
        if isinstance(self.sliding_window, list):  # YAML and JSON have no tuples
            object.__setattr__(self, "sliding_window", tuple(self.sliding_window))
        check(self)
        object.__setattr__(self, "num_kv_heads", self.kv_heads)
        object.__setattr__(self, "head_dim", self.head_width)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Build from a plain mapping. Raises `ValueError` for a missing field and for a key that is not a field."""
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        for key in values:
            if key not in defaults:
                near = get_close_matches(key, defaults, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"model.{key} is not a field of the model{hint}")
        for name, default in defaults.items():
            if default is dataclasses.MISSING and values.get(name) is None:
                raise ValueError(f"model.{name} is not set: give a whole number")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, with defaults filled in, as values that JSON can hold."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def kv_heads(self) -> int:
        """`num_kv_heads`, or its default."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """`head_dim`, or its default."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def attention_scale(self) -> float:
        """`attention_multiplier`, or its default."""
        return self.head_width**-0.5 if self.attention_multiplier is None else self.attention_multiplier

    @property
    def mixer_letters(self) -> tuple[str, ...]:
        """The letter of each block's mixer."""
        return tuple(self.mixer_pattern[i % len(self.mixer_pattern)] for i in range(self.num_layers))

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of each block. It has no effect on mixers other than S."""
        pattern = (self.sliding_window,) if isinstance(self.sliding_window, int) else self.sliding_window
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

    @property
    def layer_positions(self) -> tuple[str, ...]:
        """The kind of positions in each block: "rope", "alibi" or "none". It has no effect on mixers L and G."""
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
        """Block indices in the order of the forward pass; a shared block occurs several times."""
        blocks = tuple(range(self.num_layers))
        if self.layer_sharing == "immediate":
            return tuple(block for block in blocks for _ in range(self.num_repeats))
        if self.layer_sharing == "reverse":
            there_and_back = blocks + blocks[::-1]
            return (there_and_back * self.num_repeats)[: len(blocks) * self.num_repeats]  # `num_repeats` passes
        return blocks * self.num_repeats

    @property
    def block_rows(self) -> tuple[tuple[int, int], ...]:
        """`block_uses` with the uses of one block in a row as one: (block, how many)."""
        return tuple((block, len(list(row))) for block, row in groupby(self.block_uses))


_NULLABLE = ("num_kv_heads", "head_dim", "attention_multiplier")
_MAX_COUNT = (1 << 31) - 1
_MAX_ELEMENTS = 1 << 58  # elements of a tensor; torch cannot count the bytes of more, at up to 8 bytes each


def check(c: ModelConfig) -> None:
    """Raise `ValueError` naming the field that is wrong."""
    for name, kind in _field_types(ModelConfig).items():
        if not (getattr(c, name) is None and name in _NULLABLE):
            _check_field(name, getattr(c, name), kind)
    _check_tensor_sizes(c)
    _check_patterns(c)
    _check_heads(c)
    _check_mixers(c)
    if (c.layer_sharing == "none") != (c.num_repeats == 1):
        given = f"model.layer_sharing={c.layer_sharing} with model.num_repeats={c.num_repeats}"
        raise ValueError(f"{given}: none needs 1 repeat, every other sharing at least 2")
    if c.norm_bias and c.norm == "rmsnorm":
        raise ValueError("model.norm_bias=True with model.norm=rmsnorm: only layernorm has biases")


_field_types = cache(get_type_hints)  # takes 25 times as long as checking a shape


def _is_count(value: Any, minimum: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _divisors(number: int) -> str:
    small = [k for k in range(1, isqrt(number) + 1) if number % k == 0]
    return ", ".join(str(k) for k in sorted({*small, *(number // k for k in small)}))


def _check_field(name: str, value: Any, field_type: Any) -> None:
    given = f"model.{name}={value!r}"
    if field_type in (int, int | None):
        if not _is_count(value):
            raise ValueError(f"{given} must be a whole number of at least 1")
        if value > _MAX_COUNT:
            raise ValueError(f"{given} is more than any machine holds: give at most {_MAX_COUNT}")
    elif field_type in (float, float | None):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and 0 < value < 2**63):
            raise ValueError(f"{given} must be a number above 0, and below 2**63")
    elif field_type is bool and not isinstance(value, bool):
        raise ValueError(f"{given} must be true or false")
    elif get_origin(field_type) is Literal and value not in get_args(field_type):
        raise ValueError(f"{given} must be one of {', '.join(get_args(field_type))}")


def _check_tensor_sizes(c: ModelConfig) -> None:
    widths = {name: getattr(c, name) for name in ("vocab_size", "intermediate_size", "max_position_embeddings")}
    widths["num_heads"] = c.num_heads * max(c.head_width, c.state_size)  # no projection of a mixer is wider
    name, width = max(widths.items(), key=lambda item: item[1])
    if width * c.hidden_size > _MAX_ELEMENTS:
        given = f"model.hidden_size={c.hidden_size} with model.{name}={getattr(c, name)}"
        raise ValueError(f"{given} gives tensors that no machine holds: make them smaller")


def _check_patterns(c: ModelConfig) -> None:
    mixer_names = {letter: registered.name for letter, registered in MIXERS.items()}
    for name, letters in (("mixer_pattern", mixer_names), ("position_pattern", LAYER_POSITIONS)):
        pattern = getattr(c, name)
        is_default = name == "position_pattern" and pattern is None
        is_word = isinstance(pattern, str) and pattern != "" and set(pattern) <= set(letters)
        if not (is_default or is_word):
            known = ", ".join(f"{letter} {kind}" for letter, kind in letters.items())
            extension_hint = ", or those of mixers in extensions=[FILE.py]" if name == "mixer_pattern" else ""
            raise ValueError(f"model.{name}={pattern!r} must be a word of the letters {known}{extension_hint}")
    windows = list(c.sliding_window) if isinstance(c.sliding_window, tuple) else [c.sliding_window]
    if not windows or not all(_is_count(window, minimum=2) for window in windows):
        shown = windows if isinstance(c.sliding_window, tuple) else repr(c.sliding_window)
        raise ValueError(
            f"model.sliding_window={shown} must be a whole number of at "
            "least 2 (with 1 a token sees only itself), or a list of such numbers that is tiled over the layers"
        )
    tiled = {"mixer_pattern": c.mixer_pattern, "position_pattern": c.position_pattern or "", "sliding_window": windows}
    for name, tile in tiled.items():
        if len(tile) > c.num_layers:
            raise ValueError(f"model.{name}={tile} is longer than model.num_layers={c.num_layers}: shorten it")
    if c.position_pattern and c.position == "learned":
        raise ValueError(
            f"model.position_pattern={c.position_pattern} with model.position=learned: a learned table is added "
            "to the embedding and belongs to no layer, so choose one of the two"
        )


def _check_heads(c: ModelConfig) -> None:
    if c.head_dim is None and c.hidden_size % c.num_heads:
        given = f"model.hidden_size={c.hidden_size} is not divisible by model.num_heads={c.num_heads}"
        raise ValueError(f"{given}: change one of them or set model.head_dim")
    if c.num_heads % c.kv_heads:
        given = f"model.num_heads={c.num_heads} is not divisible by model.num_kv_heads={c.kv_heads}"
        raise ValueError(f"{given}: num_kv_heads can be {_divisors(c.num_heads)}")
    if c.head_width % 2 and "rope" in c.layer_positions:
        raise ValueError(f"model.head_dim={c.head_width} must be even: rotary positions rotate pairs of channels")


def _check_mixers(c: ModelConfig) -> None:
    letters = c.mixer_pattern[: c.num_layers]
    if "P" in letters and c.sparse_block % c.sparse_stride:
        given = f"model.sparse_block={c.sparse_block} is not divisible by model.sparse_stride={c.sparse_stride}"
        raise ValueError(f"{given}: sparse_stride can be {_divisors(c.sparse_block)}")
    mixers = [MIXERS[letter] for letter in letters]
    has_scores = any(mixer.has_scores for mixer in mixers)
    has_qk_norm = any(mixer.has_qk_norm for mixer in mixers)
    for name, is_set, has_effect, remedy in (
        ("position", c.position == "alibi", has_scores, "none or learned"),  # not for rope, the default
        ("position_pattern", c.position_pattern is not None, has_scores, "null"),
        ("qk_norm", c.qk_norm != "none", has_qk_norm, "none"),
    ):
        if is_set and not has_effect:
            given = f"model.{name}={getattr(c, name)} has no effect on any layer of model.mixer_pattern"
            raise ValueError(f"{given}={c.mixer_pattern}: set it to {remedy}")
