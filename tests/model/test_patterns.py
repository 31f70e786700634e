"""Whole decoders of every mixer, pattern, position and block option: causality and decoding, in float64."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from unittest.mock import patch

import pytest
import torch

from slm.model import Decoder, KVCache, ModelConfig, generate
from slm.model.counts import kv_cache_bytes, state_bytes
from tests.model.shapes import (
    EXACT,
    MIXED,
    SIZES,
    assert_causal,
    assert_decodes_in_pieces,
    logits_by_steps,
    randomized,
    shape,
    shared,
    small,
    tokens_of,
    uncompiled,
)

How = Callable[[], AbstractContextManager[object]]


def compile_with(backend: str) -> Callable[..., object]:
    """`torch.compile` with another backend, which a stance does not give to versions made ahead."""
    return partial(torch.compile, backend=backend)


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def few_compilations(request: pytest.FixtureRequest) -> Iterator[None]:
    """The compiler gives up as early as it would with many more kinds of blocks."""
    with torch._dynamo.config.patch(recompile_limit=1), patch("torch.compile", compile_with(request.param)):
        yield


compiled_or_not = pytest.mark.parametrize(
    "how", [uncompiled, pytest.param(nullcontext, marks=pytest.mark.slow)], ids=["uncompiled", "compiled"]
)
every_shape = pytest.mark.parametrize("config", MIXED.values(), ids=list(MIXED))


@every_shape
@pytest.mark.parametrize("at", [0, 12, 22])
def test_no_logit_sees_a_later_token(config: ModelConfig, at: int) -> None:
    assert_causal(config, 23, at)


@pytest.mark.parametrize("pattern", ["S", "P", "L", "G"])
def test_no_logit_sees_a_later_token_at_the_default_sizes(pattern: str) -> None:
    assert_causal(small(mixer_pattern=pattern), 520, at=300)


@every_shape
def test_decoding_in_pieces_equals_the_full_forward_pass(config: ModelConfig) -> None:
    assert_decodes_in_pieces(config)


PLAIN = {
    "no sharing of keys": small(num_kv_heads=6),
    "interleaved": small(num_kv_heads=1, rope_style="interleaved"),
    "biases": small(qk_norm="learned", attention_bias=True, mlp_bias=True),
    "untied": small(qk_norm="weightless", head_dim=10, tie_embeddings=False),
    "immediate": shared("immediate"),
    "reverse": shared("reverse"),
}


@pytest.mark.parametrize("config", [*MIXED.values(), *PLAIN.values()], ids=[*MIXED, *PLAIN])
@pytest.mark.parametrize("prompt", [1, 8])
@compiled_or_not
def test_decoding_by_steps_equals_the_full_forward_pass(config: ModelConfig, prompt: int, how: How) -> None:
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 21, batch=1)
    with torch.inference_mode(), how():
        found = logits_by_steps(decoder, tokens, prompt)
        torch.testing.assert_close(found, decoder(tokens)[0, prompt - 1 :], **EXACT)


@pytest.mark.parametrize(
    ("config", "graphs"),
    [
        (small(**(SIZES | {"num_layers": 6, "mixer_pattern": "FSPLGS", "sliding_window": [9, 5]})), 8),
        (shared("repeat_all_over", attention_bias=True), 2),  # a block's step and the head
    ],
)
@pytest.mark.usefixtures("few_compilations")
def test_the_compiled_step_is_the_same_function_compiled_once_for_all_tokens(config: ModelConfig, graphs: int) -> None:
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 21, batch=1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        torch.testing.assert_close(logits_by_steps(decoder, tokens), decoder(tokens)[0], **EXACT)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs


def test_decoding_past_the_end_of_the_context_is_refused() -> None:
    decoder = randomized(small(max_position_embeddings=5), torch.float64)
    with pytest.raises(ValueError, match="6 tokens do not fit"), uncompiled():
        logits_by_steps(decoder, tokens_of(decoder.config, 7, batch=1), prompt=4)


@pytest.mark.parametrize("config", [shape("SPF"), shape("LG"), MIXED["two windows"]], ids=["SPF", "LG", "windows"])
def test_compiled_blocks_keep_values(config: ModelConfig, few_compilations: None) -> None:
    decoder = randomized(config)
    tokens = tokens_of(decoder.config, 24)
    expected = decoder.loss(tokens[:, :-1], tokens[:, 1:])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    decoder.compile_blocks("cuda")  # all of them
    torch.testing.assert_close(decoder.loss(tokens[:, :-1], tokens[:, 1:]), expected)
    kinds = set(zip(config.mixer_letters, config.windows, strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(kinds) + 1  # the loss of a chunk


@pytest.mark.parametrize("pattern", ["L", *(pytest.param(letter, marks=pytest.mark.slow) for letter in "FSPG")])
def test_compiled_gradients_in_bfloat16_on_a_cpu_are_near_the_exact_ones(pattern: str) -> None:
    """At sizes where torch 2.13's code for linear attention has NaN in the gradient of keys."""
    sizes = {"vocab_size": 300, "hidden_size": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    decoder = randomized(ModelConfig(**sizes, intermediate_size=256, init_std=0.05, mixer_pattern=pattern))
    tokens = tokens_of(decoder.config, 129)
    decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    exact = [parameter.grad for parameter in decoder.parameters()]
    decoder.zero_grad()
    torch._dynamo.reset()
    decoder.compile_blocks()
    with torch.autocast("cpu", torch.bfloat16):
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    for expected, parameter in zip(exact, decoder.parameters(), strict=True):
        assert (parameter.grad - expected).norm() < 0.25 * expected.norm()


@pytest.mark.parametrize("pattern", ["F", "S", "P", "L", "G"])
@pytest.mark.parametrize("packed", [False, True])
def test_training_in_bfloat16_stays_near_float32_and_reaches_every_parameter(pattern: str, packed: bool) -> None:
    decoder, tokens = randomized(shape(pattern, init_std=0.05)), tokens_of(small(), 24)
    documents_BT = (torch.arange(23) // 10).expand(2, 23) if packed else None
    exact = decoder.loss(tokens[:, :-1], tokens[:, 1:], documents_BT)
    with torch.autocast("cpu", torch.bfloat16):
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:], documents_BT)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in decoder.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["F", "S", "P", "L", "G"])
@compiled_or_not
def test_decoding_in_half_precision_stays_near_float32(pattern: str, dtype: torch.dtype, how: How) -> None:
    config = shape(pattern, init_std=0.1)
    decoder, tokens = randomized(config), tokens_of(config, 23, batch=1)
    with torch.inference_mode(), how():
        expected = decoder(tokens)[0, 8:].log_softmax(-1)
        found = logits_by_steps(decoder.to(dtype), tokens, prompt=9).float().log_softmax(-1)
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
    expected = 3 * (kv_cache_bytes(config, length, bytes_per_value=4) + state_bytes(config))
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
        torch.testing.assert_close(found, decoder(tokens[rows])[:, 13:], **EXACT)


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
