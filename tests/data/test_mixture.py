"""A mix: which source each window comes from, what it consists of, and what is refused."""

import functools
import hashlib
import itertools
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data import prepare, train_loader
from slm.data.corpus import check_sources
from slm.data.loader import MixedOrder
from slm.data.mixture import count_common_steps, count_windows, read_mixture, windows_in_order
from slm.data.sources import SOURCES, Source
from slm.data.stream import TokenStream
from tests.seeds import seeded

WEIGHTS = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)
T, BATCH = 8, 12
EXPECTED_STARTS = [256, 1108, 64, 496, 1204, 88, 1188, 832, 120, 1060, 536, 472]
EXPECTED_DIGEST = "a10654602f89277c"
SCHEDULE = [{"at": 0.5, "weights": {"a": 1, "b": 1, "c": 2}}]


def mix(sources, weights, schedule=None, **changes):
    return {"name": "mix", "source": "mix", "sources": sources, "weights": weights, "schedule": schedule} | changes


def mixture_of(weights, schedule=None):
    return read_mixture(mix({name: {"source": "local"} for name in weights}, weights, schedule))


@given(weights=WEIGHTS, first=st.integers(0, 60), length=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_windows_are_divided_as_the_method_of_webster_divides_seats(weights, first, length):
    seats, order = [0] * len(weights), []
    for _ in range(first + length):  # the next seat goes to the highest quotient votes / (2 seats + 1)
        quotients = [Fraction(votes, 2 * seat + 1) for votes, seat in zip(weights, seats, strict=True)]
        winner = quotients.index(max(quotients))
        order.append((winner, seats[winner]))
        seats[winner] += 1
    assert count_windows(weights, first + length) == seats
    sources, numbers = windows_in_order(weights, first, first + length)
    assert list(zip(sources.tolist(), numbers.tolist(), strict=True)) == order[first:]


@given(weights=WEIGHTS, ends=st.tuples(st.integers(0, 10**13), st.integers(0, 10**13)).map(sorted))
def test_any_stretch_of_a_run_has_the_stated_shares(weights, ends):
    first, end = (count_windows(weights, n) for n in ends)
    for weight, before, after in zip(weights, first, end, strict=True):
        share = Fraction(weight, sum(weights))
        active = sum(other > 0 for other in weights)
        assert abs(after - ends[1] * share) <= (1 + active * share) / 2
        assert abs(after - before - (ends[1] - ends[0]) * share) <= 1 + active * share


def test_realised_shares_are_closer_than_those_of_independent_draws():
    shares = np.array([0.7, 0.2, 0.1])
    sources, _ = windows_in_order([7, 2, 1], 5000, 6000)
    error = np.abs(np.bincount(sources) / 1000 - shares).max()
    drawn = np.random.default_rng(seeded()).multinomial(1000, shares, size=200) / 1000
    assert error <= 0.001 < np.median(np.abs(drawn - shares).max(axis=1))


@pytest.fixture
def streams(stream_of):
    """Three sources whose tokens tell where they are: 20,000 times the number of the source, and the place."""
    sizes = {"a": 900, "b": 500, "c": 300}
    return {name: stream_of(range(i * 20_000, i * 20_000 + n)) for i, (name, n) in enumerate(sizes.items())}


def order_of(streams, weights=None, schedule=None, steps=40, seed=3):
    mixture = mixture_of(weights or {"a": 5, "b": 3, "c": 0}, SCHEDULE if schedule is None else schedule)
    return MixedOrder(mixture, streams, seed=seed, steps=steps, batch_size=BATCH, sequence_length=T)


def batches(streams, order, **changes):
    common = {"sequence_length": T, "batch_size": BATCH, "seed": 3, "start_step": 0, "end_step": 40}
    joined = TokenStream.joined(list(streams.values()))
    return list(train_loader(joined, **common | {"micro_batch_size": BATCH} | changes, order=order))


def windows_of(batch):
    """(source, number of the window) of each sequence, which must be whole and of one source."""
    assert torch.equal(batch, batch[:, :1] + torch.arange(T + 1))
    places = [divmod(first, 20_000) for first in batch[:, 0].tolist()]
    assert all(place % T == 0 for _, place in places)
    return [(source, place // T) for source, place in places]


def test_weights_change_at_their_step_and_each_source_keeps_its_own_epochs(streams):
    order = order_of(streams)
    by_step = [windows_of(batch) for batch in batches(streams, order)]
    assert len(by_step) == 40
    for steps, shares in ((range(20), (5 / 8, 3 / 8, 0)), (range(20, 40), (1 / 4, 1 / 4, 1 / 2))):
        for first, last in itertools.combinations([*steps, steps.stop], 2):
            counts = Counter(source for step in range(first, last) for source, _ in by_step[step])
            for source, share in enumerate(shares):
                assert abs(counts[source] - (last - first) * BATCH * share) < 2
    for source, (name, stream) in enumerate(streams.items()):
        seen = [window for step in by_step for other, window in step if other == source]
        num_windows = (stream.num_tokens - 1) // T
        epochs = [seen[start : start + num_windows] for start in range(0, len(seen), num_windows)]
        assert all(sorted(epoch) == list(range(num_windows)) for epoch in epochs[:-1])
        assert len({*epochs[-1]}) == len(epochs[-1])
        assert order.epochs(40)[name] == pytest.approx(len(seen) / num_windows)
        assert len(seen) > num_windows  # some of it is repeated, in another order
        assert epochs[0][: len(epochs[1])] != epochs[1]


def test_the_order_within_a_source_depends_on_the_seed_and_its_name_alone(streams):
    def windows(streams, order, name):
        source = streams[name].read(0, 1)[0] // 20_000
        return [window for batch in batches(streams, order) for other, window in windows_of(batch) if other == source]

    alone = {"b": streams["b"]}
    expected = windows(alone, order_of(alone, {"b": 1}, ()), "b")
    found = windows(streams, order_of(streams), "b")
    assert found == expected[: len(found)]
    other_seed = windows(alone, order_of(alone, {"b": 1}, (), seed=4), "b")
    assert other_seed != expected


@pytest.mark.parametrize("start_step", [0, 19, 20, 33])
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 5), (2, 2), (3, 4)])
def test_ranks_passes_and_restarts_do_not_change_the_windows_of_a_step(
    streams, start_step, world_size, micro_batch_size
):
    order = order_of(streams)
    changes = {"start_step": start_step, "micro_batch_size": micro_batch_size, "world_size": world_size}
    ranks = [batches(streams, order_of(streams), rank=rank, **changes) for rank in range(world_size)]
    per_step = len(ranks[0]) // (40 - start_step)
    for step, batch in enumerate(batches(streams, order)[start_step:]):
        shares = torch.cat([micro for rank in ranks for micro in rank[step * per_step : (step + 1) * per_step]])
        assert torch.equal(shares[shares[:, 0] >= 0], batch)


def test_workers_do_not_change_the_windows(streams):
    alone, helped = (torch.stack(batches(streams, order_of(streams), num_workers=number)) for number in (0, 2))
    assert torch.equal(alone, helped)


@given(steps=st.integers(6, 60), other=st.integers(6, 60))
@settings(deadline=None, max_examples=40)
def test_runs_of_two_lengths_see_the_same_text_until_the_weights_of_one_change(steps, other):
    data = mix(
        {"a": {"source": "local"}, "b": {"source": "local"}},
        {"a": 1, "b": 3},
        [{"at": 0.7, "weights": {"a": 1, "b": 0}}],
    )
    mixture = read_mixture(data)
    first_steps = [mixture.first_steps(n) for n in (steps, other)]

    def weights(which, step):
        return mixture.phases[sum(first <= step for first in first_steps[which]) - 1].weights

    common = next((s for s in range(min(steps, other)) if weights(0, s) != weights(1, s)), min(steps, other))
    assert count_common_steps(data, steps, other) == common
    assert first_steps[0][1] == -(-7 * steps // 10)  # the first step at or after 0.7 of the run


def test_shares_of_a_run_are_those_of_its_phases_by_their_lengths():
    schedule = [{"at": 0.5, "weights": {"a": 1, "b": 3}}, {"at": 0.9, "weights": {"a": 0, "b": 1}}]
    shares = mixture_of({"a": 0.6, "b": 0.4}, schedule).shares
    assert shares == pytest.approx({"a": 0.5 * 0.6 + 0.4 * 0.25, "b": 0.5 * 0.4 + 0.4 * 0.75 + 0.1})


@pytest.fixture
def sources(config, tmp_path):
    """Two sources with words of their own."""
    rng = random.Random(seeded())
    found = {}
    for name, words in {"a": ["gorgonzola", "mozzarella"], "b": ["quadruple", "triangular"]}.items():
        path = tmp_path / f"{name}.txt"
        path.write_text("\n\n".join(" ".join(rng.choices(words, k=50)) for _ in range(60)))
        found[name] = config("data", "local", paths=str(path), max_document_bytes=1000, val_fraction=0.2)
    return found


def test_a_mix_has_one_tokenizer_trained_on_all_sources_and_the_text_of_each(sources, config, tmp_path):
    cache = tmp_path / "cache"
    make = functools.partial(prepare, tokenizer=config("tokenizer", "bpe", vocab_size=320), cache_dir=cache)
    corpus = make(mix(sources, {"a": 1, "b": 1}))
    for word in (" gorgonzola", " mozzarella", " quadruple", " triangular"):
        assert len(corpus.tokenizer.encode(word)) == 1
    fingerprints = {one.tokenizer.fingerprint for one in corpus.sources.values()}
    assert fingerprints == {corpus.tokenizer.fingerprint}
    byte = config("tokenizer", "bytes")
    whole = prepare(mix(sources, {"a": 1, "b": 1}), byte, cache_dir=cache)
    alone = [prepare(source, byte, cache_dir=cache) for source in sources.values()]
    for split in ("train", "val"):
        stream, parts = getattr(whole, split), [getattr(one, split) for one in alone]
        assert stream.read(0, stream.num_tokens).tolist() == [
            t for p in parts for t in p.read(0, p.num_tokens).tolist()
        ]
        assert stream.num_bytes == sum(part.num_bytes for part in parts)
    assert [one.fingerprint for one in whole.sources.values()] == [one.fingerprint for one in alone]


def test_a_tokenizer_is_trained_on_the_sources_in_proportion_to_their_weights(sources, config, tmp_path):
    tokenizer = config("tokenizer", "bpe", vocab_size=272, train_bytes=8000)

    def lengths(weights):
        encode = prepare(mix(sources, weights), tokenizer, cache_dir=tmp_path / "cache").tokenizer.encode
        return len(encode(" gorgonzola mozzarella")), len(encode(" quadruple triangular"))

    (a_much, b_little), (a_little, b_much) = lengths({"a": 20, "b": 1}), lengths({"a": 1, "b": 20})
    assert a_much < a_little
    assert b_much < b_little


def test_weights_schedule_and_texts_enter_the_fingerprint_but_not_the_unit_of_the_weights(sources, config, tmp_path):
    def fingerprint(*given, **changes):
        return prepare(mix(*given, **changes), config("tokenizer", "bytes"), cache_dir=tmp_path / "cache").fingerprint

    usual = fingerprint(sources, {"a": 0.7, "b": 0.3})
    assert fingerprint(sources, {"a": 7, "b": 3}, [], name="other") == usual
    later = [{"at": 0.8, "weights": {"a": 1, "b": 1}}]
    swapped = {"a": sources["b"], "b": sources["a"]}
    others = [fingerprint(sources, {"a": 0.6, "b": 0.4}), fingerprint(sources, {"a": 7, "b": 3}, later)]
    others.append(fingerprint(sources, {"a": 7, "b": 3}, [{**later[0], "at": 0.9}]))
    others.append(fingerprint(swapped, {"a": 0.7, "b": 0.3}))
    assert len({usual, *others}) == 5


LATER = {"at": 0.5, "weights": {"a": 1, "b": 1}}
REFUSED = [
    ({"weights": {"a": 0, "b": 1}}, r"^data\.sources\.a has the weight 0 throughout"),
    ({"weights": {"a": -1, "b": 1}}, r"^data\.weights\.a=-1 must be a number of at least 0"),
    ({"weights": {"a": float("nan"), "b": 1}}, r"^data\.weights\.a=nan must be a number"),
    ({"weights": {"a": 1e-12, "b": 1e300}}, r"^data\.weights has weights that differ by more than a factor of 1e\+09"),
    ({"weights": {"a": 0, "b": 0}}, r"^data\.weights must have at least one weight above 0"),
    ({"weights": {"a": 1, "b": 1, "c": 1}}, r"^data\.weights has c, but the sources are a, b"),
    ({"weights": {"a": 1}}, r"^data\.weights has no weight for b"),
    ({"weights": 2}, r"^data\.weights=2 must have a weight for each source"),
    ({"schedule": [LATER, {**LATER, "at": 0.4}]}, r"^data\.schedule\[1\]\.at=0\.4 must be above the entry before it"),
    ({"schedule": [{**LATER, "at": 1}]}, r"^data\.schedule\[0\]\.at=1 must be a fraction"),
    ({"schedule": [{"at": 0.5}]}, r"^data\.schedule\[0\]=.* must have `at` and `weights`"),
    ({"schedule": [{**LATER, "weights": {"a": 1}}]}, r"^data\.schedule\[0\]\.weights has no weight for b"),
    ({"sources": {}}, r"^data\.sources is not set"),
    ({"sources": {"a b": {}}}, r"^data\.sources has the name 'a b'"),
    ({"sources": {"a": {"source": "mix"}}}, r"^data\.sources\.a is itself a mix"),
    ({"sources": {"a": {"source": "chat"}}}, r"^data\.sources\.a holds conversations"),
    ({"sources": {"a": {"source": "talks"}}}, r"^data\.sources\.a holds conversations"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_a_mix_that_cannot_be_is_refused_in_a_sentence(changes, said, monkeypatch):
    monkeypatch.setitem(SOURCES, "talks", Source(key=dict, documents=iter, holds_conversations=True))  # an extension's
    usual = {"sources": {"a": {"source": "local"}, "b": {"source": "local"}}, "weights": {"a": 1, "b": 1}}
    with pytest.raises(ValueError, match=said) as caught:
        read_mixture(mix(**usual | changes))
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_source_names_the_source(sources, config, tmp_path):
    byte = config("tokenizer", "bytes")
    missing = {**sources, "b": sources["b"] | {"paths": "no/such.txt"}}
    with pytest.raises(ValueError, match=r"^data\.sources\.b: data\.paths='no/such\.txt' matches no file"):
        check_sources(mix(missing, {"a": 1, "b": 1}), byte)
    (tmp_path / "rows.jsonl").write_text('{"content": "x"}\n')
    without_column = {**sources, "b": sources["b"] | {"paths": str(tmp_path / "rows.jsonl")}}
    with pytest.raises(ValueError, match=r"^data\.sources\.b: data\.paths: .* has no column 'text', only content"):
        prepare(mix(without_column, {"a": 1, "b": 1}), byte, cache_dir=tmp_path / "cache")


def test_a_phase_without_a_step_is_refused():
    mixture = mixture_of(
        {"a": 1, "b": 1}, [{"at": 0.5, "weights": {"a": 1, "b": 0}}, {"at": 0.51, "weights": {"a": 0, "b": 1}}]
    )
    assert mixture.first_steps(100) == [0, 50, 51]
    with pytest.raises(ValueError, match=r"^data\.schedule leaves the weights of data\.schedule\[0\] without a step"):
        mixture.first_steps(3)


def test_the_order_of_a_mix_does_not_change_between_versions(streams):
    # Runs that are resumed or compared across releases rest on these numbers.
    order = order_of(streams)
    digest = hashlib.sha256(b"".join(order.starts(step).astype("<i8").tobytes() for step in range(40))).hexdigest()
    assert order.starts(0).tolist() == EXPECTED_STARTS
    assert digest[:16] == EXPECTED_DIGEST
