"""The mixers by letter of `mixer_pattern`. A mixer is one class in one file; `slm.model.mixers.base` has its contract.

Notable: importing this imports no torch. A built-in mixer is imported when a count or a decoder first needs it.
"""

from __future__ import annotations

from typing import Any

MIXERS: dict[str, str | type[Any]] = {
    "F": "softmax.SoftmaxAttention",
    "S": "sliding.SlidingAttention",
    "P": "sparse.SparseAttention",
    "L": "linear.LinearAttention",
    "G": "ssd.SSD",
}
"""Letter -> class, or module and class of a built-in mixer."""


def register_mixer(letter: str, mixer: type[Any]) -> None:
    """Make `letter` stand for `mixer` in `model.mixer_pattern`. Raises `ValueError` if another mixer has the letter."""
    taken = MIXERS.get(letter)
    is_again = isinstance(taken, type) and taken.__qualname__ == mixer.__qualname__  # a notebook's cell, run again
    if len(letter) != 1 or not letter.isalpha() or (taken and not is_again):
        raise ValueError(f"register_mixer({letter!r}, {mixer.__name__}): give one letter, none of {', '.join(MIXERS)}")
    MIXERS[letter] = mixer


def known_mixers() -> dict[str, str]:
    """Letter -> name of each mixer, for messages."""
    return {k: mixer.partition(".")[0] if isinstance(mixer, str) else mixer.__name__ for k, mixer in MIXERS.items()}
