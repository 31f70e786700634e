"""Which windows a step trains on: a pure function of (seed, step), whatever the workers, devices and restarts."""

from functools import lru_cache

import numpy as np


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
        ids[here] = _shuffle(seed, int(epoch), num_windows)[places[here]]
    return ids


@lru_cache(maxsize=2)  # a batch at the border of two epochs needs both
def _shuffle(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    """A permutation of range(num_windows).

    Sorted raw output of a bit generator: numpy promises that stream for ever, and not that of
    `Generator.permutation` (NEP 19).
    """
    raw = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_windows)
    return np.argsort(raw, kind="stable")
