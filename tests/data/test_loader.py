"""Which windows a step trains on, the batches made of them, and which document each token belongs to."""

import math
import os
import resource
import signal

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models

from slm.data import Tokenizer, train_loader, val_batches, window_ids
from slm.data.loader import MAX_SORTED_WINDOWS, _feistel_shuffle, document_numbers
from tests.seeds import seeded

FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
COMMON = {"sequence_length": 8, "batch_size": 12, "seed": 3, "start_step": 0, "end_step": 9, "micro_batch_size": 12}
SEEDS = st.integers(0, 2**32)
CHANGES = [{}, {"start_step": 5}, {"micro_batch_size": 2}, {"num_workers": 2}, {"world_size": 3}]
CONTENT = tokenizers.Tokenizer(models.WordLevel({str(i): i for i in range(10)}, unk_token="0")).to_str()


@given(seed=SEEDS, num_windows=st.integers(1, 60), batch_size=st.integers(1, 25))
def test_every_epoch_sees_each_window_once(seed, num_windows, batch_size):
    steps = -(-3 * num_windows // batch_size)
    ids = np.concatenate([window_ids(seed, step, batch_size, num_windows) for step in range(steps)])
    for epoch in range(3):
        seen = ids[epoch * num_windows : (epoch + 1) * num_windows]
        assert sorted(seen.tolist()) == list(range(num_windows))


@given(seed=SEEDS, step=st.integers(0, 1000), batch_size=st.integers(1, 16))
def test_order_is_that_of_philox_sorted_in_plain_python(seed, step, batch_size):
    num_windows = 37
    expected = []
    for sample in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(sample, num_windows)
        raw = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_windows).tolist()
        expected.append(sorted(range(num_windows), key=raw.__getitem__)[place])
    assert window_ids(seed, step, batch_size, num_windows).tolist() == expected


def test_order_does_not_change_between_versions():
    # Runs that are resumed or compared across releases rest on these numbers (first written with numpy 2.4).
    assert window_ids(1, 0, 8, 1000).tolist() == [411, 185, 2, 219, 664, 372, 976, 41]


def test_epochs_and_seeds_have_orders_of_their_own():
    epochs = [window_ids(1, epoch, 100, 100).tolist() for epoch in range(3)] + [window_ids(2, 0, 100, 100).tolist()]
    assert len({tuple(order) for order in epochs}) == 4


def test_a_step_is_the_same_whatever_was_asked_before():
    fresh = window_ids(5, 7, 10, 33).tolist()
    for step in (900, 3, 100):
        window_ids(5, step, 10, 33)
    assert window_ids(5, 7, 10, 33).tolist() == fresh


@given(seed=SEEDS, epoch=st.integers(0, 5), num_windows=st.integers(1, 3000))
@settings(deadline=None, max_examples=50)
def test_the_order_of_a_large_corpus_sees_each_window_once_without_being_sorted(seed, epoch, num_windows):
    ids = _feistel_shuffle(seed, epoch, num_windows, np.arange(num_windows))
    assert sorted(ids.tolist()) == list(range(num_windows))


def test_the_order_of_a_large_corpus_is_as_random_as_a_sorted_one():
    """Chi-square of (place, window) and of neighbours, each in 20 x 20 boxes, at p = 0.0001: below 531."""
    n = MAX_SORTED_WINDOWS + 12_345
    ids = window_ids(seeded(), 0, 400_000, n)
    assert len(set(ids.tolist())) == 400_000
    pairs = [(np.arange(400_000) * 20 // 400_000, ids * 20 // n), (ids[:-1] * 20 // n, ids[1:] * 20 // n)]
    for rows, columns in pairs:
        counts = np.bincount(rows * 20 + columns, minlength=400)
        expected = len(rows) / 400
        assert ((counts - expected) ** 2 / expected).sum() < 531


def test_a_step_of_a_trillion_tokens_takes_no_memory():
    num_windows = 10**12 // 2048
    last_step = num_windows // 512 - 1
    window_ids(0, 0, 512, num_windows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids = window_ids(0, last_step, 512, num_windows)
    assert ids.min() >= 0
    assert ids.max() < num_windows
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB; a permutation has 3.9 GB


@pytest.fixture
def stream(stream_of):
    return stream_of(torch.randint(0, 60_000, (1003,), generator=torch.Generator().manual_seed(seeded())).tolist(), 100)


def batches(stream, **changes):
    return list(train_loader(stream, **COMMON | changes))


def test_batches_are_the_windows_of_the_order(stream):
    tokens = stream.read(0, stream.num_tokens).tolist()
    for step, batch in enumerate(batches(stream)):
        ids = window_ids(3, step, 12, (1003 - 1) // 8)
        assert batch.dtype == torch.int64
        assert batch.tolist() == [tokens[i * 8 : i * 8 + 9] for i in ids]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7, 12])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 5])
def test_ranks_and_micro_batches_add_up_to_the_same_global_batch(stream, world_size, micro_batch_size):
    split = {"micro_batch_size": micro_batch_size, "world_size": world_size}
    ranks = [batches(stream, **split, rank=rank) for rank in range(world_size)]
    per_step = math.ceil(math.ceil(12 / world_size) / micro_batch_size)
    for step, batch in enumerate(batches(stream)):
        shares = torch.stack([micro for rank in ranks for micro in rank[step * per_step : (step + 1) * per_step]])
        is_empty = (shares == -100).all(-1)
        assert torch.equal(shares[~is_empty], batch)
        assert is_empty.sum() == world_size * per_step * micro_batch_size - 12


def test_workers_do_not_change_the_batches(stream):
    alone, helped = (torch.stack(batches(stream, num_workers=number)) for number in (0, 2))
    assert len(alone) == 9
    assert torch.equal(alone, helped)


def test_a_worker_leaves_signals_to_the_main_process(stream, monkeypatch):
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR2, raising=False)  # of Windows
    loader = train_loader(stream, **COMMON, num_workers=1)
    batches = iter(loader)
    next(batches)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGBREAK):
        os.kill(batches._workers[0].pid, number)
    assert len(list(batches)) == len(loader) - 1


@pytest.mark.parametrize("start_step", [1, 4, 8, 9])
def test_starting_later_gives_exactly_the_tail(stream, start_step):
    whole, tail = (batches(stream, micro_batch_size=4, start_step=step) for step in (0, start_step))
    assert len(tail) == 3 * (9 - start_step)
    assert all(torch.equal(a, b) for a, b in zip(whole[3 * start_step :], tail, strict=True))


@pytest.mark.parametrize("changes", CHANGES)
def test_length_is_what_is_yielded(stream, changes):
    loader = train_loader(stream, **{**COMMON, "micro_batch_size": 4, **changes})
    assert len(loader) == len(list(loader))


def test_iterating_leaves_the_global_random_state_alone(stream):
    before = torch.get_rng_state()
    batches(stream)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_shorter_than_a_window_is_refused(stream_of):
    with pytest.raises(ValueError, match=r"8 tokens.*train\.sequence_length=8 needs 9"):
        batches(stream_of(range(8)))


@FIXTURE
@given(num_tokens=st.integers(2, 200), sequence_length=st.integers(1, 40), batch_size=st.integers(1, 9))
def test_validation_scores_every_token_but_the_first_once(stream_of, num_tokens, sequence_length, batch_size):
    stream = stream_of(range(num_tokens), shard_tokens=17)
    scored = []
    for inputs, targets, *_ in val_batches(stream, sequence_length=sequence_length, batch_size=batch_size):
        assert inputs.shape == targets.shape
        assert inputs.shape[1] == sequence_length
        real = targets != -100
        assert torch.equal(targets[real] - 1, inputs[real])  # the tokens count up, so the input is one less
        assert torch.equal(inputs[:, 1:][real[:, 1:]], inputs[:, :-1][real[:, 1:]] + 1)
        scored += targets[real].tolist()
    assert sorted(scored) == list(range(1, num_tokens))


@FIXTURE
@given(max_tokens=st.integers(1, 300))
def test_max_tokens_scores_whole_windows_spread_evenly_over_the_stream(stream_of, max_tokens):
    batches = val_batches(stream_of(range(1601)), sequence_length=16, batch_size=3, max_tokens=max_tokens)
    starts = [row[0].item() - 1 for _, targets, *_ in batches for row in targets if row[0] != -100]
    kept = max(1, max_tokens // 16)
    assert len(starts) == kept
    assert all(start % 16 == 0 for start in starts)
    gaps = [b - a for a, b in zip(starts, [*starts[1:], 1600 + starts[0]], strict=True)]
    assert max(gaps) - min(gaps) <= 16


def test_all_validation_batches_have_one_shape(stream_of):
    shapes = {inputs.shape for inputs, *_ in val_batches(stream_of(range(150)), sequence_length=16, batch_size=4)}
    assert shapes == {(4, 16)}


@pytest.mark.parametrize("bos", ["1", "2", None])
@given(texts=st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=6), min_size=1, max_size=6), at=st.integers(0))
def test_a_window_numbers_its_documents_in_order_with_the_mark_before_a_text_in_its_document(bos, texts, at):
    tokenizer = Tokenizer("digits", CONTENT, bos=bos, eos="2")
    stream, owner = list(tokenizer.ids_before_stream), [0] * len(tokenizer.ids_before_stream)
    for number, ids in enumerate(texts):
        frame = tokenizer.with_begin_and_end(ids)
        stream += frame
        owner += [number] * len(frame)
        if bos != "1":
            owner[-1] = number + 1  # its end is the beginning of the next
    begin = at % len(stream)
    numbers = document_numbers(torch.tensor([stream[begin:]]), tokenizer.separator_id)[0]
    inside = stream[begin] != tokenizer.separator_id  # then the document that the window begins in is number 0
    assert (numbers - numbers[0] + owner[begin]).tolist() == owner[begin:]
    assert numbers[0] == (0 if inside else 1)
