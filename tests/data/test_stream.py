import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.data.stream import ShardWriter, TokenStream, split_facts


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(data=st.data())
def test_reads_across_shard_borders_as_one_array(stream_of, data):
    tokens = data.draw(st.lists(st.integers(0, 65535), min_size=1, max_size=60))
    stream = stream_of(tokens, shard_tokens=data.draw(st.integers(1, 20)))
    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    assert stream.read(start, stop).tolist() == tokens[start:stop]


def test_shards_hold_no_more_tokens_than_asked_for(stream_of, tmp_path):
    stream_of(range(25), shard_tokens=10)
    sizes = sorted(path.stat().st_size for path in tmp_path.glob("*/train-*.bin"))
    assert sizes == [5 * 2, 10 * 2, 10 * 2]  # uint16


def test_a_vocabulary_beyond_65536_is_stored_in_32_bits(stream_of):
    tokens = [0, 65535, 65536, 131071]
    assert stream_of(tokens, vocab_size=131072).read(0, 4).tolist() == tokens


def test_writing_in_parts_gives_the_same_stream(tmp_path, stream_of):
    writer = ShardWriter(tmp_path, "val", vocab_size=300, shard_tokens=7)
    for part in ([1, 2, 3], [], range(4, 20), [20]):
        writer.write(part)
    stream = TokenStream(tmp_path, split_facts(writer.shards, 300, {"documents": 3, "bytes": 99}))
    assert stream.read(0, stream.num_tokens).tolist() == list(range(1, 21))
    assert (stream.num_documents, stream.num_bytes) == (3, 99)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 11), (5, 4)])
def test_reading_outside_the_stream_is_an_error(stream_of, start, stop):
    with pytest.raises(IndexError, match="10 tokens"):
        stream_of(range(10)).read(start, stop)


def test_windows_share_one_token_with_the_next(stream_of):
    stream = stream_of(range(101))
    for length in (1, 7, 10, 100, 101):
        fitting = [i for i in range(101) if i * length + length + 1 <= 101]
        assert stream.num_windows(length) == len(fitting)


def test_a_pickled_stream_carries_no_tokens(stream_of):
    stream = stream_of(range(50_000), shard_tokens=50_000)
    stream.read(0, 10)
    pickled = pickle.dumps(stream)
    assert len(pickled) < 5_000
    assert np.array_equal(pickle.loads(pickled).read(7, 40_000), np.arange(7, 40_000))
