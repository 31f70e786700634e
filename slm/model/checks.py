"""What the fields of a shape may be, and in one sentence each what is refused.

Notable: imports no torch; nothing is resolved here, a shape is read through its own properties.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.model.config import ModelConfig

MIXERS = {"F": "softmax", "S": "sliding", "P": "sparse", "L": "linear", "G": "ssd"}
"""Letter of `mixer_pattern` -> module of `slm.model.mixers`."""
SOFTMAX = frozenset("FSP")
"""Letters of the mixers that have scores, and so positions of their own."""
LAYER_POSITIONS = {"R": "rope", "A": "alibi", "N": "none"}
"""Letter of `position_pattern` -> how a layer is told positions."""
POSITION = ("rope", "learned", "alibi", "none")
MLP = ("swiglu", "geglu", "gelu", "relu2")
NORM = ("rmsnorm", "layernorm")
NORM_POSITION = ("pre", "post", "both")
LAYER_SHARING = ("none", "immediate", "repeat_all_over", "reverse")
QK_NORM = ("none", "weightless", "learned")
ROPE_STYLE = ("half", "interleaved")

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
    "sparse_block",
    "sparse_stride",
    "chunk_size",
    "state_size",
    "conv_kernel",
)
_LEFT_OPEN = ("num_kv_heads", "head_dim", "attention_multiplier")
"""Fields that may be None, since they then follow from others."""
_SWITCHES = ("tie_embeddings", "attention_bias", "mlp_bias", "norm_bias", "parallel_block")
_CHOICES = {
    "layer_sharing": LAYER_SHARING,
    "qk_norm": QK_NORM,
    "rope_style": ROPE_STYLE,
    "mlp": MLP,
    "norm": NORM,
    "norm_position": NORM_POSITION,
    "position": POSITION,
}
_POSITIVE = (
    "rope_theta",
    "norm_eps",
    "init_std",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_multiplier",
)


_LARGEST = (1 << 31) - 1
_MOST = 1 << 58
"""Numbers in a tensor, from where torch cannot count its bytes (2**63, at up to 8 each)."""


def check(c: ModelConfig) -> None:
    """Raise `ValueError` naming the field that is wrong."""
    _check_values(c)
    _check_size(c)
    _check_patterns(c)
    _check_windows(c)
    _check_heads(c)
    _check_sharing(c)
    _check_mixers(c)


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_values(c: ModelConfig) -> None:
    for name in _COUNTS:
        value = getattr(c, name)
        if not _is_count(value) and not (value is None and name in _LEFT_OPEN):
            raise ValueError(f"model.{name}={value!r} must be a whole number of at least 1")
        if value is not None and value > _LARGEST:
            raise ValueError(f"model.{name}={value} is more than any machine holds: give at most {_LARGEST}")
    for name, allowed in _CHOICES.items():
        if getattr(c, name) not in allowed:
            raise ValueError(f"model.{name}={getattr(c, name)!r} must be one of {', '.join(allowed)}")
    for name in _POSITIVE:
        value = getattr(c, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and 0 < value < 1 << 63) and not (value is None and name in _LEFT_OPEN):
            raise ValueError(f"model.{name}={value!r} must be a number above 0, and below 2**63")
    for name in _SWITCHES:
        if not isinstance(getattr(c, name), bool):
            raise ValueError(f"model.{name}={getattr(c, name)!r} must be true or false")


def _divisors(number: int) -> list[str]:
    small = [k for k in range(1, isqrt(number) + 1) if number % k == 0]
    return [str(k) for k in sorted({*small, *(number // k for k in small)})]


def _check_size(c: ModelConfig) -> None:
    widths = {
        "vocab_size": c.vocab_size,
        "intermediate_size": c.intermediate_size,
        "num_heads": c.num_heads * max(c.head_width, c.state_size),
        "max_position_embeddings": c.max_position_embeddings,
    }
    name, width = max(widths.items(), key=lambda item: item[1])
    if width * c.hidden_size > _MOST:
        raise ValueError(
            f"model.hidden_size={c.hidden_size} with model.{name}={getattr(c, name)} gives tensors that no machine "
            "holds: make them smaller"
        )


def _check_patterns(c: ModelConfig) -> None:
    for name, letters in (("mixer_pattern", MIXERS), ("position_pattern", LAYER_POSITIONS)):
        pattern = getattr(c, name)
        if pattern is None and name == "position_pattern":
            continue
        if not isinstance(pattern, str) or not pattern or set(pattern) - set(letters):
            known = ", ".join(f"{letter} {kind}" for letter, kind in letters.items())
            raise ValueError(f"model.{name}={pattern!r} must be a word of the letters {known}")
        _refuse_surplus(c, name, pattern, pattern)
    if c.position_pattern and c.position == "learned":
        raise ValueError(
            f"model.position_pattern={c.position_pattern} with model.position=learned: a learned table is added "
            "to the embedding and belongs to no layer, so choose one of the two"
        )
    kinds = set(c.mixer_pattern[: c.num_layers])  # not c.mixers: a config may claim layers by the billion
    if not SOFTMAX & kinds:
        for name, given in (("position", c.position == "alibi"), ("position_pattern", c.position_pattern is not None)):
            if given:
                raise ValueError(
                    f"model.{name}={getattr(c, name)} acts on scores of softmax attention, and no layer of "
                    f"model.mixer_pattern={c.mixer_pattern} has it: choose model.position=none or learned"
                )
    if c.qk_norm != "none" and kinds == {"G"}:
        raise ValueError(f"model.qk_norm={c.qk_norm} has no effect on SSD, and all layers are: set it to none")
    if c.norm_bias and c.norm == "rmsnorm":
        raise ValueError("model.norm_bias=True with model.norm=rmsnorm: only layernorm has biases")


def _check_windows(c: ModelConfig) -> None:
    several = isinstance(c.sliding_window, tuple)
    windows: Any = c.sliding_window if several else (c.sliding_window,)
    said = list(windows) if several else repr(c.sliding_window)
    if not windows or not all(_is_count(window, 2) for window in windows):
        raise ValueError(
            f"model.sliding_window={said} must be a whole number of at least 2 (with 1 a token sees itself only), or "
            "a list of such numbers that is tiled over the layers"
        )
    _refuse_surplus(c, "sliding_window", windows, said)


def _refuse_surplus(c: ModelConfig, name: str, tiled: Any, said: Any) -> None:
    if len(tiled) > c.num_layers:
        raise ValueError(
            f"model.{name}={said} is longer than model.num_layers={c.num_layers}: "
            "its end would never be used, so shorten it"
        )


def _check_mixers(c: ModelConfig) -> None:
    if c.sparse_block % c.sparse_stride:
        fits = _divisors(c.sparse_block)
        raise ValueError(
            f"model.sparse_block={c.sparse_block} is not divisible by model.sparse_stride={c.sparse_stride}: "
            f"sparse_stride can be {', '.join(fits)}"
        )


def _check_heads(c: ModelConfig) -> None:
    if c.head_dim is None and c.hidden_size % c.num_heads:
        raise ValueError(
            f"model.hidden_size={c.hidden_size} is not divisible by model.num_heads={c.num_heads}: "
            "change one of them or set model.head_dim"
        )
    if c.num_heads % c.kv_heads:
        fits = _divisors(c.num_heads)
        raise ValueError(
            f"model.num_heads={c.num_heads} is not divisible by model.num_kv_heads={c.kv_heads}: "
            f"num_kv_heads can be {', '.join(fits)}"
        )
    if c.head_width % 2 and "rope" in c.layer_positions:
        raise ValueError(f"model.head_dim={c.head_width} must be even: rotary positions turn pairs of channels")


def _check_sharing(c: ModelConfig) -> None:
    if (c.layer_sharing == "none") != (c.num_repeats == 1):
        raise ValueError(
            f"model.layer_sharing={c.layer_sharing} with model.num_repeats={c.num_repeats}: "
            "none goes with 1 repeat, every other sharing with at least 2"
        )
