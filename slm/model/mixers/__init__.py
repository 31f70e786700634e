"""The mixer for each letter of `mixer_pattern`. A mixer is one class in one file; see `slm.model.mixers.base`.

Notable: this module imports no torch, so a wrong shape is refused before torch is imported. The class of a built-in
mixer is imported when a count or a decoder first needs it.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class RegisteredMixer:
    """A mixer's class, and which fields of a shape have an effect on the mixer."""

    mixer: str | type[Any]
    """The class, or "module.class" for a built-in mixer."""
    has_scores: bool = False
    """Whether the mixer has attention scores. Without them, `position` ("rope" or "alibi") has no effect on it."""
    has_qk_norm: bool = False
    """Whether `qk_norm` has an effect on the mixer."""

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.mixer.partition(".")[0] if isinstance(self.mixer, str) else self.mixer.__name__

    def load(self) -> type[Any]:
        """Return the class, a subclass of `slm.model.mixers.base.Mixer`."""
        if not isinstance(self.mixer, str):
            return self.mixer
        module, _, name = self.mixer.partition(".")
        return getattr(import_module(f"{__name__}.{module}"), name)


MIXERS = {
    "F": RegisteredMixer("softmax.SoftmaxAttention", has_scores=True, has_qk_norm=True),
    "S": RegisteredMixer("sliding.SlidingAttention", has_scores=True, has_qk_norm=True),
    "P": RegisteredMixer("sparse.SparseAttention", has_scores=True, has_qk_norm=True),
    "L": RegisteredMixer("linear.LinearAttention", has_qk_norm=True),
    "G": RegisteredMixer("ssd.SSD"),
}


REQUIRED = ("forward", "step", "num_params", "mixing_flops")
"""Methods that each mixer has, besides those of its memory."""


def register_mixer(letter: str, mixer: type[Any], *, has_scores: bool = False, has_qk_norm: bool = False) -> None:
    """Make `letter` stand for `mixer` in `model.mixer_pattern`.

    `has_scores` and `has_qk_norm` say whether the fields `position` and `qk_norm` have an effect on the mixer. Raises
    `ValueError` if another mixer has the letter, and for a class that is no mixer or lacks a method that all need.
    """
    other = MIXERS[letter].mixer if letter in MIXERS else None
    # The same class is registered twice if a cell of a notebook is run again.
    is_same = isinstance(other, type) and other.__qualname__ == mixer.__qualname__
    if len(letter) != 1 or not letter.isalpha() or (other and not is_same):
        raise ValueError(f"register_mixer({letter!r}, {mixer.__name__}): give one letter, none of {', '.join(MIXERS)}")
    ancestors = [f"{cls.__module__}.{cls.__name__}" for cls in mixer.__mro__]
    base = f"{__name__}.base.Mixer"  # by name, because that module imports this one
    if base not in ancestors:
        raise ValueError(f"register_mixer({letter!r}, {mixer.__name__}): a mixer is a subclass of {base}")
    own = {name for cls in mixer.__mro__[: ancestors.index(base)] for name in vars(cls)}
    missing = [name for name in REQUIRED if name not in own]
    if own.isdisjoint(("state_shapes", "make_memory")):
        missing.append("state_shapes or make_memory")
    if missing:
        raise ValueError(
            f"register_mixer({letter!r}, {mixer.__name__}): the class has no {', '.join(missing)} of its own; "
            "docs/extending.md says what they return"
        )
    MIXERS[letter] = RegisteredMixer(mixer, has_scores, has_qk_norm)
