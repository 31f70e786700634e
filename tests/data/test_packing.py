"""Windows of conversations."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slm.data.loader import train_loader, val_batches
from slm.data.packing import BEGINS, NUM_MARKS, SCORED, ConversationStream, pack
from slm.data.stream import ShardWriter, split_facts
from tests.seeds import seeded

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def scored_positions(lengths: list[int]) -> np.ndarray:
    rng = np.random.default_rng(seeded(sum(lengths)))
    scored = rng.random(sum(lengths)) < 0.4
    scored[np.cumsum([0, *lengths[:-1]])] = False  # a first token is never scored
    return np.flatnonzero(scored)


@given(lengths=LENGTHS, sequence_length=st.integers(1, 40))
def test_windows_have_whole_conversations_in_order_and_as_many_as_fit(lengths: list[int], sequence_length: int) -> None:
    bounds = np.cumsum([0, *lengths])
    scored = scored_positions(lengths)
    packing = pack(bounds, scored, sequence_length)
    size = sequence_length + 1
    windows, current = [], []  # by hand: conversation after conversation
    for start, stop in pairwise(bounds.tolist()):
        if current and stop - current[0] > size:
            windows.append((current[0], current[-1]))
            current = []
        if stop - start > size:
            windows.append((start, start + size))
        else:
            current = [current[0] if current else start, stop]
    windows += [(current[0], current[-1])] if current else []
    counts = {window: int(((scored >= window[0]) & (scored < window[1])).sum()) for window in windows}
    expected = [(*window, count) for window, count in counts.items() if count]
    assert list(zip(packing.starts, packing.stops, packing.num_scored, strict=True)) == expected
    assert packing.num_cut == sum(length > size for length in lengths)


def make_stream(folder: Path, lengths: list[int]) -> tuple[ConversationStream, np.ndarray]:
    """Token p of the stream is p."""
    bounds, scored = np.cumsum([0, *lengths]), scored_positions(lengths)
    marks = np.zeros(bounds[-1], dtype=np.int64)
    marks[bounds[:-1]] |= BEGINS
    marks[scored] |= SCORED
    counts = {"documents": len(lengths), "bytes": 1}
    writers = [ShardWriter(folder, "tokens", 1 << 16, 50), ShardWriter(folder, "marks", NUM_MARKS, 70)]
    for writer, values in zip(writers, (np.arange(bounds[-1]), marks), strict=True):
        writer.write(values)
    facts = split_facts(writers[0].shards, 1 << 16, counts)
    return ConversationStream(folder, facts | {"marks": split_facts(writers[1].shards, NUM_MARKS, counts)}), scored


def test_each_scored_token_is_a_target_once_an_epoch_and_documents_are_conversations(tmp_path: Path) -> None:
    rng = np.random.default_rng(seeded())
    lengths = rng.integers(2, 25, 60).tolist()
    stream, scored = make_stream(tmp_path, lengths)
    number_of = np.repeat(np.arange(len(lengths)), lengths)
    num_windows = stream.num_windows(24)
    options = {"sequence_length": 24, "batch_size": 3, "seed": 1, "start_step": 0, "end_step": num_windows // 3}
    training = [*train_loader(stream, micro_batch_size=2, **options)]
    validation = [*val_batches(stream, sequence_length=24, batch_size=4)]
    for batches in (training, validation):
        targets = np.concatenate([batch.targets[batch.targets != -100].numpy() for batch in batches])
        if batches is validation:
            assert sorted(targets) == scored.tolist()
        assert len({*targets}) == len(targets)
        for batch in batches:
            rows, places = (batch.targets != -100).nonzero(as_tuple=True)
            found = batch.targets[rows, places]
            assert (batch.inputs[rows, places] == found - 1).all()
            same = batch.documents[:, :-1] == batch.documents[:, 1:]
            inside = (batch.inputs[:, :-1] > 0) & (batch.inputs[:, 1:] > 0)
            expected = number_of[batch.inputs[:, :-1]] == number_of[batch.inputs[:, 1:]]
            assert (same.numpy() == expected)[inside.numpy()].all()
    # All micro-batches of a step know how many tokens the step scores.
    for first, second in zip(training[::2], training[1::2], strict=True):
        assert first.num_scored == second.num_scored == sum(int((b.targets != -100).sum()) for b in (first, second))
