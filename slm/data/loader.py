"""Token streams as batches of tensors. Axes: B sequences, T tokens of a sequence."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from slm.data.order import window_ids
from slm.data.stream import TokenStream

IGNORED = -100  # the default ignore_index of torch's cross-entropy


class _Windows(Dataset[Tensor]):
    """Window i is tokens [i*T, i*T + T + 1): neighbours share one token, so each token but the first is a target."""

    def __init__(self, stream: TokenStream, sequence_length: int) -> None:
        self.stream, self.sequence_length = stream, sequence_length

    def __getitem__(self, ids: np.ndarray) -> Tensor:
        length = self.sequence_length
        rows = [self.stream.read(i * length, i * length + length + 1) for i in ids.tolist()]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


class _StepOrder(Sampler[np.ndarray]):
    """Window ids of one micro-batch after the other, from `start_step` up to `num_steps`."""

    def __init__(
        self,
        *,
        seed: int,
        steps: range,
        batch_size: int,
        num_windows: int,
        micro_batch_size: int,
        share: slice,
    ) -> None:
        self.seed, self.steps, self.batch_size, self.num_windows = seed, steps, batch_size, num_windows
        self.micro_batch_size, self.share = micro_batch_size, share
        self.micro_batches = (share.stop - share.start) // micro_batch_size

    def __len__(self) -> int:
        return len(self.steps) * self.micro_batches

    def __iter__(self) -> Iterator[np.ndarray]:
        for step in self.steps:
            ids = window_ids(self.seed, step, self.batch_size, self.num_windows)[self.share]
            yield from ids.reshape(self.micro_batches, self.micro_batch_size)


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

    `batch_size` counts the sequences of a step over all ranks; rank r takes its r-th contiguous slice, as
    batch_size / (world_size * micro_batch_size) micro-batches. `len` is what is left to yield.

    Raises ValueError when the batch does not divide so, or the stream is shorter than one window.
    """
    if batch_size % (world_size * micro_batch_size):
        raise ValueError(
            f"train.batch_tokens: a step of {batch_size} sequences wants to be a multiple of "
            f"world_size * micro_batch_size = {world_size} * {micro_batch_size}"
        )
    num_windows = stream.num_windows(sequence_length)
    if num_windows == 0:
        raise ValueError(
            f"data: the training text has {stream.num_tokens} tokens, and one window of "
            f"train.sequence_length={sequence_length} wants {sequence_length + 1}; add text or shorten the sequence"
        )
    share = batch_size // world_size
    order = _StepOrder(
        seed=seed,
        steps=range(start_step, num_steps),
        batch_size=batch_size,
        num_windows=num_windows,
        micro_batch_size=micro_batch_size,
        share=slice(rank * share, (rank + 1) * share),
    )
    return DataLoader(
        _Windows(stream, sequence_length),
        sampler=order,
        batch_size=None,  # the sampler hands over whole micro-batches
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else making an iterator draws from the global generator, and a resume does not
    )


def val_batches(
    stream: TokenStream, *, sequence_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets), each int64 of shape (B, T): every token of the stream but the first is a target once.

    Windows lie at stride T = sequence_length. `max_tokens` keeps max_tokens // T of them (at least one), spread evenly:
    neighbours are of one document, and the first ones would speak for few. What is missing in the last window or batch
    is padded, and its targets are -100, so all batches have one shape.
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
