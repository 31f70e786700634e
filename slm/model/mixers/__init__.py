"""The mixers by letter of `mixer_pattern`. A mixer is one class in one file; `slm.model.mixers.base` has its contract.

Notable: importing this imports no torch. A built-in mixer is imported when a count or a decoder first needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slm.model.config import ModelConfig
    from slm.model.mixers.base import Mixer

_MIXERS: dict[str, str | type[Mixer]] = {
    "F": "softmax.SoftmaxAttention",
    "S": "sliding.SlidingAttention",
    "P": "sparse.SparseAttention",
    "L": "linear.LinearAttention",
    "G": "ssd.SSD",
}
"""Letter -> class, or module and class of a built-in mixer."""


def register_mixer(letter: str, mixer: type[Mixer]) -> None:
    """Make `letter` stand for `mixer` in `model.mixer_pattern`. Raises `ValueError` if another mixer has the letter."""
    taken = _MIXERS.get(letter)
    is_again = isinstance(taken, type) and taken.__qualname__ == mixer.__qualname__  # a notebook's cell, run again
    if len(letter) != 1 or not letter.isalpha() or (taken and not is_again):
        raise ValueError(f"register_mixer({letter!r}, {mixer.__name__}): give one letter, none of {', '.join(_MIXERS)}")
    _MIXERS[letter] = mixer


def known_mixers() -> dict[str, str]:
    """Letter -> name of each mixer, for messages."""
    return {k: mixer.partition(".")[0] if isinstance(mixer, str) else mixer.__name__ for k, mixer in _MIXERS.items()}


def mixers_of(config: ModelConfig) -> dict[str, type[Mixer]]:
    """The mixers of a shape by letter. Raises `ValueError` if a mixer's own rules refuse the shape."""
    pattern = config.mixer_pattern[: config.num_layers]  # not config.mixers: a shape may claim billions of layers
    mixers = {letter: _load(letter) for letter in pattern}
    for mixer in mixers.values():
        mixer.check(config)
    _refuse_unused_fields(config, mixers)
    return mixers


def _load(letter: str) -> type[Mixer]:
    mixer = _MIXERS[letter]
    if not isinstance(mixer, str):
        return mixer
    module, _, name = mixer.partition(".")
    built_in: type[Mixer] = getattr(import_module(f"slm.model.mixers.{module}"), name)
    return built_in


def _refuse_unused_fields(config: ModelConfig, mixers: dict[str, type[Mixer]]) -> None:
    pattern = f"of model.mixer_pattern={config.mixer_pattern}"
    given = {"position": config.position == "alibi", "position_pattern": config.position_pattern is not None}
    for name in (name for name, is_set in given.items() if is_set):
        if not any(mixer.has_scores for mixer in mixers.values()):
            raise ValueError(
                f"model.{name}={getattr(config, name)} acts on scores of softmax attention, and no layer {pattern} "
                "has them: choose model.position=none or learned"
            )
    if config.qk_norm != "none" and not any(mixer.has_qk_norm for mixer in mixers.values()):
        raise ValueError(f"model.qk_norm={config.qk_norm} has no effect on any layer {pattern}: set it to none")
