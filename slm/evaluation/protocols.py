"""How a long text is cut into windows, and which tokens each window scores.

Notable: both protocols score every token but the first exactly once (the first has nothing before it); they differ in
how much context a token has. A window lists only the tokens that go *into* the model: the last target is not among
them.

With L = max_length and S = stride:

| protocol        | inputs of window i      | scored                            | tokens before a scored one   |
|-----------------|-------------------------|-----------------------------------|------------------------------|
| sliding         | tokens iS .. iS + L - 2 | those that no window before did   | L - S .. L - 1 (i = 0: from 1) |
| non_overlapping | tokens iL .. iL + L - 1 | tokens iL + 1 .. iL + L           | 1 .. L                       |

`sliding` is the loop of the transformers documentation ("Perplexity of fixed-length models"): a window holds L tokens,
of which the last is only a target. `non_overlapping` is how our runs are validated, and the disjoint rolling windows of
the lm-evaluation-harness. The popular loop over chunks of L tokens that shifts labels *inside* a chunk is neither: it
never scores the first token of a chunk.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from slm.model.config import ModelConfig

PROTOCOLS = ("sliding", "non_overlapping")
BOS_RULES = ("auto", "always", "never")


class Window(NamedTuple):
    """Inputs are tokens [start, stop); scored are the predictions of tokens [first, stop]."""

    start: int
    stop: int
    first: int


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to score a text. Raises ValueError naming the setting that is wrong."""

    name: Literal["sliding", "non_overlapping"]
    max_length: int
    """Tokens of a window."""
    stride: int
    """Tokens from the start of a window to the start of the next."""

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ValueError(f"protocol={self.name!r} must be one of {', '.join(PROTOCOLS)}")
        least = 2 if self.name == "sliding" else 1  # a sliding window's first token is context alone
        for key, value, low in (("max_length", self.max_length, least), ("stride", self.stride, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{key}={value!r} of protocol {self.name} must be a whole number of at least {low}")
        if self.name == "sliding" and self.stride >= self.max_length:
            raise ValueError(
                f"stride={self.stride} of protocol sliding must be smaller than max_length={self.max_length}: "
                "at that stride windows do not overlap, which is protocol non_overlapping"
            )
        if self.name == "non_overlapping" and self.stride != self.max_length:
            raise ValueError(
                f"stride={self.stride} of protocol non_overlapping must be max_length={self.max_length}: "
                "windows that overlap are protocol sliding"
            )

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError if a model of this shape has no room for the windows."""
        if self.max_length > config.max_position_embeddings:
            raise ValueError(
                f"max_length={self.max_length} of protocol {self.name} is longer than the "
                f"{config.max_position_embeddings} positions of the checkpoint (max_position_embeddings): "
                f"give max_length={config.max_position_embeddings} or less"
            )

    def windows(self, num_tokens: int) -> list[Window]:
        """The windows over `num_tokens` tokens, in order: each token but the first is scored in exactly one."""
        if self.name == "non_overlapping":
            starts = range(0, num_tokens - 1, self.max_length)
            return [Window(start, min(start + self.max_length, num_tokens - 1), start + 1) for start in starts]
        windows, first, start = list[Window](), 1, 0
        while first < num_tokens:
            end = min(start + self.max_length, num_tokens)
            windows.append(Window(start, end - 1, first))
            first, start = end, start + self.stride
        return windows
