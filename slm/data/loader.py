"""Token streams as batches of tensors, in an order that is a pure function of (seed, step).

Axes: B sequences, T tokens of a sequence. A window is a sequence with its targets: window i is tokens
[i*T, i*T + T + 1) of a stream, so neighbours share one token, and each token but the first is a target once.
"""

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slm.data.stream import TokenStream

IGNORED = -100  # the default ignore_index of torch's cross-entropy
MAX_SORTED_WINDOWS = 1 << 22  # a sorted shuffle of more takes over 64 MB and 0.5 s in each process
_FEISTEL_ROUNDS = 6


def window_ids(seed: int, step: int, batch_size: int, num_windows: int) -> np.ndarray:
    """Windows of the global batch of `step`: int64, shape (batch_size,), values in [0, num_windows).

    Samples are numbered through the run; sample i is entry i % num_windows of the shuffle of epoch i // num_windows,
    so every epoch sees each window once and has an order of its own, and a batch may span epochs.
    """
    samples = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, places = samples // num_windows, samples % num_windows
    ids = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        ids[here] = _shuffled(seed, int(epoch), num_windows, places[here])
    return ids


def _shuffled(seed: int, epoch: int, num_windows: int, places: np.ndarray) -> np.ndarray:
    """The entries at `places` of a permutation of range(num_windows), which seed and epoch decide."""
    if num_windows <= MAX_SORTED_WINDOWS:
        return _sorted_shuffle(seed, epoch, num_windows)[places]
    return _feistel_shuffle(seed, epoch, num_windows, places)


def _feistel_shuffle(seed: int, epoch: int, num_windows: int, places: np.ndarray) -> np.ndarray:
    """Entries of a permutation that is never held in memory: a Feistel network (Luby and Rackoff 1988) over 2k bits.

    2k bits are the fewest that hold num_windows. A result outside the range is put through the network again until it
    is inside (cycle walking, Black and Rogaway 2002), on average less than four times.
    """
    bits = np.uint64(((num_windows - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(bits)) - 1)
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(_FEISTEL_ROUNDS)
    ids = places.astype(np.uint64)
    outside = np.ones(len(ids), dtype=bool)
    while outside.any():
        left, right = ids[outside] >> bits, ids[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        ids[outside] = (left << bits) | right
        outside = ids >= num_windows
    return ids.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of x changes about half of the bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=2)  # a batch at the border of two epochs needs both
def _sorted_shuffle(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    """A permutation of range(num_windows).

    It sorts the raw output of a bit generator, a stream that numpy promises never to change; numpy makes no such
    promise for `Generator.permutation` (NEP 19).
    """
    raw = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_windows)
    return np.argsort(raw, kind="stable")


@dataclass(frozen=True)
class _MicroBatches(Dataset[Tensor]):
    """The micro-batches of one rank, numbered through `steps`; `rows` is the rank's part of a step's batch."""

    stream: TokenStream
    sequence_length: int
    batch_size: int
    seed: int
    steps: range
    rows: range
    micro_batch_size: int
    passes: int

    def __len__(self) -> int:
        return len(self.steps) * self.passes

    def __getitem__(self, index: int) -> Tensor:
        step, number = divmod(index, self.passes)
        rows = _part(self.rows, number, self.passes)
        ids = window_ids(self.seed, self.steps[step], self.batch_size, self.stream.num_windows(self.sequence_length))
        batch = np.full((self.micro_batch_size, self.sequence_length + 1), IGNORED, dtype=np.int64)
        for row, start in enumerate((ids[rows.start : rows.stop] * self.sequence_length).tolist()):
            batch[row] = self.stream.read(start, start + self.sequence_length + 1)
        return torch.from_numpy(batch)


def _part(rows: range, number: int, parts: int) -> range:
    """One of `parts` contiguous parts of `rows`, which differ in length by one at most."""
    return rows[len(rows) * number // parts : len(rows) * (number + 1) // parts]


def train_loader(
    stream: TokenStream,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> DataLoader[Tensor]:
    """Micro-batches of the steps [start_step, num_steps): int64, shape (micro_batch_size, sequence_length + 1).

    `batch_size` counts the sequences of a step over all ranks. Rank r takes the r-th contiguous part, in as many
    micro-batches as the largest part needs. Parts, and micro-batches of a part, differ in size by one at most; empty
    rows of -100 make all micro-batches equal in shape. `len` is the number of micro-batches.

    Raises ValueError if the stream is shorter than one window.
    """
    if stream.num_windows(sequence_length) == 0:
        raise ValueError(
            f"data: the training text has {stream.num_tokens} tokens, but one window of "
            f"train.sequence_length={sequence_length} needs {sequence_length + 1}; add text or shorten the sequence"
        )
    steps, rows = range(start_step, num_steps), _part(range(batch_size), rank, world_size)
    passes = passes_of_a_step(batch_size, world_size, micro_batch_size)
    return DataLoader(
        _MicroBatches(stream, sequence_length, batch_size, seed, steps, rows, micro_batch_size, passes),
        batch_size=None,  # an item of the data set is a micro-batch
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # else making an iterator draws from the global generator, and a resume does not
    )


def passes_of_a_step(batch_size: int, world_size: int, micro_batch_size: int) -> int:
    """Micro-batches that each rank needs for its part of `batch_size` sequences."""
    return math.ceil(math.ceil(batch_size / world_size) / micro_batch_size)


def _ignore_signals(worker: int) -> None:
    """Leave signals that may reach all processes of a run to the main one, which saves and ends its workers."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def val_batches(
    stream: TokenStream, *, sequence_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets), each int64 of shape (B, T): every token of the stream but the first is a target once.

    `max_tokens` keeps max_tokens // T windows (at least one), spread evenly, because neighbours are of one document and
    the first ones would speak for few. The last window and the last batch are padded, with targets -100, so all batches
    have one shape.
    """
    windows = -(-(stream.num_tokens - 1) // sequence_length)
    kept = windows if max_tokens is None else min(windows, max(1, max_tokens // sequence_length))
    chosen = (np.arange(kept) * windows // kept).tolist()
    rows = min(batch_size, kept)
    for first in range(0, kept, rows):
        inputs = np.zeros((rows, sequence_length), dtype=np.int64)
        targets = np.full((rows, sequence_length), IGNORED, dtype=np.int64)
        for row, window in enumerate(chosen[first : first + rows]):
            start = window * sequence_length
            tokens = stream.read(start, min(start + sequence_length + 1, stream.num_tokens))
            inputs[row, : len(tokens) - 1], targets[row, : len(tokens) - 1] = tokens[:-1], tokens[1:]
        yield torch.from_numpy(inputs), torch.from_numpy(targets)


def document_numbers(tokens_BT: Tensor, separator: int) -> Tensor:
    """Number (B, T) of the document of each token, where documents begin with `separator`; 0 is the first's rest."""
    return (tokens_BT == separator).cumsum(1)
