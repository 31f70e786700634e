"""Conversations packed into windows of training: whole ones, side by side.

A window holds consecutive conversations, as many as fit. The first T + 1 tokens of a conversation that is longer than a
window fill one, and its other tokens are left out. So no answer is scored without its conversation before it.
"""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm.data.conversations import BEGINS, SCORED
from slm.data.stream import TokenStream

NUM_MARKS = (BEGINS | SCORED) + 1  # marks are stored like token ids


class Packing(NamedTuple):
    """The windows of a stream of conversations, each int64 of shape (W,)."""

    starts: np.ndarray
    stops: np.ndarray
    num_scored: np.ndarray
    """Scored tokens of each window; at least 1."""
    num_cut: int
    """Number of conversations that are longer than a window."""


class ConversationStream(TokenStream):
    """A stream of conversations, with a mark for each token; `num_bytes` counts what is scored."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, facts)
        self._marks = TokenStream(folder, facts["marks"])

    @cached_property
    def starts(self) -> np.ndarray:
        """Return the positions at which conversations begin, and the end of the stream."""
        return np.append(np.flatnonzero(self.marks(0, self.num_tokens) & BEGINS), self.num_tokens)

    @cached_property
    def scored(self) -> np.ndarray:
        """Return the positions of the scored tokens."""
        return np.flatnonzero(self.marks(0, self.num_tokens) & SCORED)

    def marks(self, start: int, stop: int) -> np.ndarray:
        """Return the marks of tokens [start, stop)."""
        return self._marks.read(start, stop)

    def num_windows(self, sequence_length: int) -> int:
        """Return the number of windows of `packing`."""
        return len(self.packing(sequence_length).starts)

    def packing(self, sequence_length: int) -> Packing:
        """Return the windows of at most `sequence_length` + 1 tokens that have something to score."""
        return _packing(self, sequence_length)

    def window(self, index: int, sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs, targets (-100 if not scored) and documents of a window, each int64 of shape (T,).

        Documents number the conversations of the window; a padded end has the number of the last one.
        """
        packing = self.packing(sequence_length)
        start, stop = int(packing.starts[index]), int(packing.stops[index])
        length = stop - start - 1
        inputs, documents = np.zeros((2, sequence_length), dtype=np.int64)
        targets = np.full(sequence_length, -100, dtype=np.int64)
        tokens, marks = self.read(start, stop).astype(np.int64), self.marks(start, stop)
        inputs[:length] = tokens[:-1]
        targets[:length] = np.where(marks[1:] & SCORED, tokens[1:], -100)
        documents[:length] = np.cumsum((marks[:-1] & BEGINS) > 0)
        documents[length:] = documents[max(0, length - 1)]
        return inputs, targets, documents

    def note(self, sequence_length: int) -> str:
        """Return a sentence on what is scored and what is cut."""
        packing = self.packing(sequence_length)
        num_scored = int(packing.num_scored.sum())
        cut = ""
        if packing.num_cut:
            lost = len(self.scored) - num_scored
            cut = (
                f"; {packing.num_cut:,} are longer than train.sequence_length={sequence_length} and lose their ends "
                f"({lost / len(self.scored):.1%} of what is scored)"
            )
        return (
            f"{self.num_documents:,} conversations in {len(packing.starts):,} windows; {num_scored:,} tokens of the "
            f"assistant are scored{cut}"
        )


@lru_cache(maxsize=8)
def _packing(stream: ConversationStream, sequence_length: int) -> Packing:
    return pack(stream.starts, stream.scored, sequence_length)


def pack(bounds: np.ndarray, scored: np.ndarray, sequence_length: int, *, alone: bool = False) -> Packing:
    """Return the windows of conversations that begin at `bounds` (the last is the end) with `scored` positions.

    With `alone`, each conversation has a window of its own; it loses the same tokens.
    """
    size = sequence_length + 1
    first, starts, stops = 0, [], []
    while first < len(bounds) - 1:
        start = int(bounds[first])
        end = int(np.searchsorted(bounds, start + size, side="right")) - 1  # the last bound in reach
        end = min(end, first + 1) if alone else end
        stops.append(int(bounds[end]) if end > first else start + size)
        starts.append(start)
        first = max(end, first + 1)
    starts_W, stops_W = np.asarray(starts, dtype=np.int64), np.asarray(stops, dtype=np.int64)
    num_scored = np.searchsorted(scored, stops_W) - np.searchsorted(scored, starts_W)
    kept = num_scored > 0
    num_cut = int((np.diff(bounds) > size).sum())
    return Packing(starts_W[kept], stops_W[kept], num_scored[kept], num_cut)
