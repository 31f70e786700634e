"""Turn token streams into batches of tensors, in an order that is a pure function of (seed, step).

Axes: B sequences, T tokens per sequence. A window is a sequence together with its targets: window i holds the tokens
[i*T, i*T + T + 1) of a stream. Neighbouring windows share one token, so each token but the first is a target once.
The windows of conversations are those of `slm.data.packing`.
"""

import hashlib
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slm.data.mixture import Mixture, windows_in_order
from slm.data.packing import ConversationStream
from slm.data.stream import TokenStream

IGNORED = -100  # the default ignore_index of torch's cross-entropy
MAX_SORTED_WINDOWS = 1 << 22  # with more, `_sorted_shuffle` takes over 64 MB and 0.5 s in each process
_FEISTEL_ROUNDS = 6


class Batch(NamedTuple):
    """Sequences with their targets."""

    inputs: Tensor
    """(B, T) token ids; 0 where there is none."""
    targets: Tensor
    """(B, T) token ids; `IGNORED` where none is scored."""
    documents: Tensor | None = None
    """(B, T): the number of a token's conversation in its sequence; None for text that is not conversations."""
    num_scored: Tensor | None = None
    """(): scored tokens of the whole optimizer step, over all its micro-batches and devices; None in validation."""


def window_ids(seed: int, step: int, batch_size: int, num_windows: int) -> np.ndarray:
    """Return the windows in the global batch of `step`: int64, shape (batch_size,), values in [0, num_windows).

    The samples of a run are numbered. Sample i is entry i % num_windows of the permutation for epoch i // num_windows.
    So each epoch has every window once, in an order of its own, and a batch may span epochs.
    """
    return _windows_of_samples(seed, np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64), num_windows)


def _windows_of_samples(seed: int, samples: np.ndarray, num_windows: int) -> np.ndarray:
    epochs, positions = samples // num_windows, samples % num_windows
    ids = np.empty(len(samples), dtype=np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        if num_windows <= MAX_SORTED_WINDOWS:
            ids[in_epoch] = _sorted_shuffles(seed, num_windows)(int(epoch))[positions[in_epoch]]
        else:
            ids[in_epoch] = _feistel_shuffle(seed, int(epoch), num_windows, positions[in_epoch])
    return ids


def _feistel_shuffle(seed: int, epoch: int, num_windows: int, positions: np.ndarray) -> np.ndarray:
    """Return entries of a permutation that is never held in memory, with a Feistel network (Luby and Rackoff 1988).

    The network permutes numbers of 2k bits, for the smallest k with 4^k >= num_windows. Results of num_windows
    or more pass through it again (cycle walking, Black and Rogaway 2002): under four passes per number on average.
    """
    half_bits = np.uint64(((num_windows - 1).bit_length() + 1) // 2)
    half_mask = np.uint64((1 << int(half_bits)) - 1)
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(_FEISTEL_ROUNDS)
    ids = positions.astype(np.uint64)
    is_outside = np.ones(len(ids), dtype=bool)
    while is_outside.any():
        left, right = ids[is_outside] >> half_bits, ids[is_outside] & half_mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & half_mask)
        ids[is_outside] = (left << half_bits) | right
        is_outside = ids >= num_windows
    return ids.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply the finaliser of SplitMix64 (Steele et al. 2014): a changed bit of x changes about half of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache
def _sorted_shuffles(seed: int, num_windows: int) -> Callable[[int], np.ndarray]:
    """Return `_sorted_shuffle` by epoch, keeping the last two orders, because a batch may span two epochs."""
    return lru_cache(maxsize=2)(partial(_sorted_shuffle, seed, num_windows))


def _sorted_shuffle(seed: int, num_windows: int, epoch: int) -> np.ndarray:
    # NEP 19 guarantees the same raw bits in all versions of numpy, but not the same `Generator.permutation`.
    raw = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_windows)
    return np.argsort(raw, kind="stable")


class MixedOrder:
    """The windows of each step of a run on a mix, whose streams are joined in the order of the mixture's names.

    Every source has windows of its own, and an order of its own that depends on the seed and the source's name alone.
    """

    def __init__(
        self,
        mixture: Mixture,
        streams: Mapping[str, TokenStream],
        *,
        seed: int,
        steps: int,
        batch_size: int,
        sequence_length: int,
    ) -> None:
        """Prepare the order of a run of `steps` steps; `streams` has the training text of each source."""
        self.mixture, self.batch_size, self.sequence_length = mixture, batch_size, sequence_length
        self.first_windows = [step * batch_size for step in mixture.first_steps(steps)]
        self.num_windows = [streams[name].num_windows(sequence_length) for name in mixture.names]
        self._offsets = np.cumsum([0, *(streams[name].num_tokens for name in mixture.names)])
        digests = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in mixture.names]
        self._seeds = [int.from_bytes(digest[:8], "big") for digest in digests]

    def starts(self, step: int) -> np.ndarray:
        """Return the tokens of the joined stream with which the windows of a step begin: int64, (batch_size,)."""
        first = step * self.batch_size
        phase = sum(start <= first for start in self.first_windows) - 1
        phase_first = self.first_windows[phase]
        drawn_before = self.mixture.drawn(phase_first, self.first_windows)
        in_phase = first - phase_first
        weights = self.mixture.phases[phase].weights
        sources, numbers = windows_in_order(weights, in_phase, in_phase + self.batch_size)
        starts = np.empty(self.batch_size, dtype=np.int64)
        for source in np.unique(sources).tolist():
            is_own = sources == source
            samples = numbers[is_own] + drawn_before[source]
            ids = _windows_of_samples(self._seeds[source], samples, self.num_windows[source])
            starts[is_own] = self._offsets[source] + ids * self.sequence_length
        return starts

    def epochs(self, step: int) -> dict[str, float]:
        """Return how often the training text of each source was seen in the first `step` steps."""
        drawn = self.mixture.drawn(step * self.batch_size, self.first_windows)
        return {name: n / size for name, n, size in zip(self.mixture.names, drawn, self.num_windows, strict=True)}


@dataclass(frozen=True)
class _MicroBatches(Dataset[Tensor | Batch]):
    """The micro-batches that one rank processes, from step 0 on; `rank_rows` is its part of each global batch."""

    stream: TokenStream
    sequence_length: int
    batch_size: int
    seed: int
    rank_rows: range
    micro_batch_size: int
    micro_batches_per_step: int
    order: MixedOrder | None

    def __getitem__(self, index: int) -> Tensor | Batch:
        step, part_index = divmod(index, self.micro_batches_per_step)
        rows = _part(self.rank_rows, part_index, self.micro_batches_per_step)
        if self.order:
            starts = self.order.starts(step)
        else:
            num_windows = self.stream.num_windows(self.sequence_length)
            batch_ids = window_ids(self.seed, step, self.batch_size, num_windows)
            if isinstance(self.stream, ConversationStream):
                num_scored = self.stream.packing(self.sequence_length).num_scored[batch_ids].sum()
                own_ids = batch_ids[rows.start : rows.stop]
                windows = _windows(self.stream, own_ids, self.sequence_length, self.micro_batch_size)
                return windows._replace(num_scored=torch.tensor(num_scored))
            starts = batch_ids * self.sequence_length
        batch = np.full((self.micro_batch_size, self.sequence_length + 1), IGNORED, dtype=np.int64)
        for row, start in enumerate(starts[rows.start : rows.stop].tolist()):
            batch[row] = self.stream.read(start, start + self.sequence_length + 1)
        return torch.from_numpy(batch)


def _windows(stream: ConversationStream, ids: np.ndarray, sequence_length: int, num_rows: int) -> Batch:
    """Return windows of conversations as `num_rows` sequences, of which the last may be empty."""
    inputs, targets, documents = np.zeros((3, num_rows, sequence_length), dtype=np.int64)
    targets[:] = IGNORED
    for row, window in enumerate(ids.tolist()):
        inputs[row], targets[row], documents[row] = stream.window(window, sequence_length)
    return Batch(*map(torch.from_numpy, (inputs, targets, documents)))


def _part(rows: range, part_index: int, num_parts: int) -> range:
    """Return one of `num_parts` contiguous parts of `rows`. The lengths of the parts differ by at most one."""
    return rows[len(rows) * part_index // num_parts : len(rows) * (part_index + 1) // num_parts]


def train_loader(
    stream: TokenStream,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    start_step: int,
    end_step: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    order: MixedOrder | None = None,
) -> DataLoader[Tensor | Batch]:
    """Return a loader of the micro-batches of one rank: int64, shape (micro_batch_size, sequence_length + 1).

    The loader yields the micro-batches of the steps `start_step` to `end_step` - 1. The `batch_size` sequences of a
    step are divided evenly among the ranks, and the sequences of a rank among its micro-batches. All ranks have the
    same number of micro-batches; a micro-batch with fewer sequences is padded with rows of -100. Micro-batches of
    conversations are `Batch`es, padded with targets of -100. With `pin_memory`, they are in memory from which a GPU
    copies without the host. The `stream` of a mix has an `order`, in place of that of `window_ids`. Raises ValueError
    if the stream has no window.
    """
    if stream.num_windows(sequence_length) == 0:
        raise ValueError(
            f"data: the training text has {stream.num_tokens} tokens, but one window of "
            f"train.sequence_length={sequence_length} needs {sequence_length + 1}; add text or shorten the sequence"
        )
    rows = _part(range(batch_size), rank, world_size)
    micro_batches_per_step = num_micro_batches_per_step(batch_size, world_size, micro_batch_size)
    return DataLoader(
        _MicroBatches(stream, sequence_length, batch_size, seed, rows, micro_batch_size, micro_batches_per_step, order),
        sampler=range(start_step * micro_batches_per_step, end_step * micro_batches_per_step),
        batch_size=None,  # an item of the data set is a micro-batch
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
        # Without this generator, each new iterator would draw from torch's global one, and a resumed run would differ.
        generator=torch.Generator(),
    )


def num_micro_batches_per_step(batch_size: int, world_size: int, micro_batch_size: int) -> int:
    """Return how many micro-batches each rank needs for its part of `batch_size` sequences."""
    return math.ceil(math.ceil(batch_size / world_size) / micro_batch_size)


def _ignore_signals(worker: int) -> None:
    """Ignore signals in a worker. They also reach the main process, which saves and then ends its workers."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK"):  # SIGBREAK: of Windows
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def val_batches(
    stream: TokenStream, *, sequence_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[Batch]:
    """Yield inputs and targets, each int64 of shape (B, T): every token of the stream but the first is a target once.

    Of conversations, the targets are the scored tokens of `ConversationStream.packing`. With `max_tokens`, only
    max_tokens // T windows are kept, but at least one. They are spread evenly over the stream, because its first
    windows come from few documents. The last window and the last batch are padded with targets -100, so that all
    batches have the same shape.
    """
    is_packed = isinstance(stream, ConversationStream)
    num_windows = (
        stream.num_windows(sequence_length) if is_packed else math.ceil((stream.num_tokens - 1) / sequence_length)
    )
    num_kept = num_windows if max_tokens is None else min(num_windows, max(1, max_tokens // sequence_length))
    kept_windows = (np.arange(num_kept) * num_windows // num_kept).tolist()
    num_rows = min(batch_size, num_kept)
    for first in range(0, num_kept, num_rows):
        if isinstance(stream, ConversationStream):
            yield _windows(stream, np.asarray(kept_windows[first : first + num_rows]), sequence_length, num_rows)
            continue
        inputs = np.zeros((num_rows, sequence_length), dtype=np.int64)
        targets = np.full((num_rows, sequence_length), IGNORED, dtype=np.int64)
        for row, window in enumerate(kept_windows[first : first + num_rows]):
            start = window * sequence_length
            tokens = stream.read(start, min(start + sequence_length + 1, stream.num_tokens))
            inputs[row, : len(tokens) - 1] = tokens[:-1]
            targets[row, : len(tokens) - 1] = tokens[1:]
        yield Batch(torch.from_numpy(inputs), torch.from_numpy(targets))


def document_numbers(tokens_BT: Tensor, separator: int) -> Tensor:
    """Return each token's document index within its row, (B, T): the number of separators at or before the token."""
    return (tokens_BT == separator).cumsum(1)
