"""Whole decoders of every mixer, pattern, position and block option: causality and decoding, in float64."""

from collections.abc import Iterator

import pytest
import torch

from slm.model import Decoder, KVCache, ModelConfig, generate
from slm.model.counts import kv_cache_bytes, state_bytes
from slm.model.decoding import compiled_logits
from tests.model.shapes import MIXED, SIZES, randomized, shape, small, tokens_of


@pytest.fixture
def few_compilations() -> Iterator[None]:
    """The compiler gives up as early as it would with many more kinds of blocks."""
    with torch._dynamo.config.patch(recompile_limit=1):
        yield


every_shape = pytest.mark.parametrize("config", MIXED.values(), ids=list(MIXED))


@every_shape
@pytest.mark.parametrize("at", [0, 12, 22])
def test_no_logit_sees_a_later_token(config: ModelConfig, at: int) -> None:
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 23)
    changed = tokens.clone()
    changed[:, at] = (changed[:, at] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = decoder(tokens), decoder(changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at], after[:, at])


@pytest.mark.parametrize("pattern", ["S", "P", "L", "G"])
def test_no_logit_sees_a_later_token_at_the_default_sizes(pattern: str) -> None:
    decoder = randomized(small(mixer_pattern=pattern), torch.float64)
    tokens = tokens_of(decoder.config, 520, batch=1)
    changed = tokens.clone()
    changed[:, 300] = (changed[:, 300] + 1) % decoder.config.vocab_size
    with torch.no_grad():
        before, after = decoder(tokens), decoder(changed)
    assert torch.equal(before[:, :300], after[:, :300])
    assert not torch.equal(before[:, 300:], after[:, 300:])


@every_shape
def test_decoding_in_pieces_equals_the_full_forward_pass(config: ModelConfig) -> None:
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 29)
    cache = KVCache(config, batch_size=2, max_length=29, dtype=torch.float64)
    with torch.no_grad():
        pieces = [decoder(piece, cache) for piece in tokens.split([7, 1, 1, 9, 1, 4, 2, 4], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(tokens), rtol=0, atol=1e-9)


@every_shape
@pytest.mark.parametrize("prompt", [1, 8])
def test_decoding_by_steps_equals_the_full_forward_pass(config: ModelConfig, prompt: int) -> None:
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 21, batch=1)
    cache = KVCache(config, batch_size=1, max_length=21, dtype=torch.float64)
    next_logits = compiled_logits(decoder)
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        pieces = [tokens[:, :prompt], *tokens[:, prompt:].split(1, dim=1)]
        found = torch.stack([next_logits(piece, cache) for piece in pieces])
        torch.testing.assert_close(found, decoder(tokens)[0, prompt - 1 :], rtol=0, atol=1e-9)


def test_the_compiled_step_of_a_mixed_decoder_is_the_same_function(few_compilations: None) -> None:
    config = small(**(SIZES | {"num_layers": 6, "mixer_pattern": "FSPLGS", "sliding_window": [9, 5]}))
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 21, batch=1)
    cache = KVCache(config, batch_size=1, max_length=21, dtype=torch.float64)
    next_logits = compiled_logits(decoder)
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        found = torch.stack([next_logits(piece, cache) for piece in tokens.split(1, dim=1)])
        torch.testing.assert_close(found, decoder(tokens)[0], rtol=0, atol=1e-9)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8  # not one a token


@pytest.mark.parametrize("config", [shape("SPF"), shape("LG"), MIXED["two windows"]], ids=["SPF", "LG", "windows"])
def test_compiled_blocks_keep_values(config: ModelConfig, few_compilations: None) -> None:
    decoder = randomized(config)
    tokens = tokens_of(decoder.config, 24)
    expected = decoder.loss(tokens[:, :-1], tokens[:, 1:])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    decoder.compile_blocks()
    torch.testing.assert_close(decoder.loss(tokens[:, :-1], tokens[:, 1:]), expected)
    kinds = set(zip(config.mixers, config.windows, strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(kinds)


@pytest.mark.parametrize("pattern", ["F", "S", "P", "L", "G"])
def test_training_in_bfloat16_stays_near_float32_and_reaches_every_parameter(pattern: str) -> None:
    decoder, tokens = randomized(shape(pattern, init_std=0.05)), tokens_of(small(), 24)
    exact = decoder.loss(tokens[:, :-1], tokens[:, 1:])
    with torch.autocast("cpu", torch.bfloat16):
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in decoder.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["F", "S", "P", "L", "G"])
def test_decoding_in_half_precision_stays_near_float32(pattern: str, dtype: torch.dtype) -> None:
    config = shape(pattern, init_std=0.1)
    decoder, tokens = randomized(config), tokens_of(config, 23, batch=1)
    cache = KVCache(config, batch_size=1, max_length=23, dtype=dtype)
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        expected = decoder(tokens)[0, 8:].log_softmax(-1)
        next_logits = compiled_logits(decoder.to(dtype))
        pieces = [tokens[:, :9], *tokens[:, 9:].split(1, dim=1)]
        found = torch.stack([next_logits(piece, cache) for piece in pieces]).float().log_softmax(-1)
    assert (found - expected).abs().max() < (0.2 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("pattern", ["L", "G", "LG"])
def test_the_memory_of_a_recurrent_decoder_does_not_grow(pattern: str) -> None:
    sizes = {KVCache(shape(pattern), batch_size=1, max_length=n).nbytes for n in (10, 100, 1000)}
    assert len(sizes) == 1
    assert sizes == {state_bytes(shape(pattern))}
    assert kv_cache_bytes(shape(pattern), 1000) == 0


def test_the_memory_of_a_sliding_decoder_ends_with_its_window() -> None:
    config = shape("S")
    assert KVCache(config, batch_size=1, max_length=900).nbytes == KVCache(config, batch_size=1, max_length=4).nbytes
    assert kv_cache_bytes(config, 900) == kv_cache_bytes(config, 4) > kv_cache_bytes(config, 3)


@every_shape
@pytest.mark.parametrize("length", [1, 6, 17, 18, 40])
def test_bytes_of_cache_and_state_equal_those_of_a_real_cache(config: ModelConfig, length: int) -> None:
    cache = KVCache(config, batch_size=3, max_length=length)
    expected = kv_cache_bytes(config, length, batch_size=3, bytes_per_value=4) + state_bytes(config, batch_size=3)
    assert expected == cache.nbytes


def test_states_stay_in_float32_where_keys_are_kept_in_bfloat16() -> None:
    cache = KVCache(shape("FLG"), batch_size=1, max_length=9, dtype=torch.bfloat16)
    dtypes = [{tensor.dtype for tensor in memory.tensors} for memory in cache.memories]
    assert dtypes == [{torch.bfloat16}, {torch.float32}, {torch.float32}]


@every_shape
def test_a_cache_goes_on_from_rows_of_another(config: ModelConfig) -> None:
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 20, batch=3)
    rows = torch.tensor([2, 0, 0, 1])
    narrow = KVCache(config, batch_size=3, max_length=13, dtype=torch.float64)
    wide = KVCache(config, batch_size=4, max_length=20, dtype=torch.float64)
    with torch.no_grad():
        decoder(tokens[:, :13], narrow)
        wide.select(narrow, rows)
        found = decoder(tokens[rows, 13:], wide)
        torch.testing.assert_close(found, decoder(tokens[rows])[:, 13:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("pattern", ["S", "P", "L", "G"])
def test_generation_takes_the_likeliest_tokens_of_the_full_forward_pass(pattern: str) -> None:
    decoder = Decoder(shape(pattern)).double().eval()
    ids = [3, 1, 4, 1, 5]
    found = list(generate(decoder, ids, max_new_tokens=20, temperature=0))
    for token in found:
        with torch.no_grad():
            assert token == int(decoder(torch.tensor([ids]))[0, -1].argmax())
        ids = [*ids, token]


def test_a_layer_has_the_mixer_and_the_position_of_the_tiled_pattern() -> None:
    config = small(num_layers=6, mixer_pattern="SSF", position_pattern="RN")
    names = [(type(b.self_attn).__name__[:2], b.self_attn.rope) for b in Decoder(config).layers]
    assert names == [("Sl", True), ("Sl", False), ("So", True), ("Sl", False), ("Sl", True), ("So", False)]
