"""The decoder against transformers, which computes the same functions independently."""

from itertools import groupby
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM, Qwen3ForCausalLM

from slm.model import Decoder, KVCache, ModelConfig
from slm.model.decoding import _Precompiled, compiled_logits
from slm.model.layers import linear
from slm.model.positions import rotary_table, rotate
from tests.model.shapes import (
    EXACT,
    SHARINGS,
    assert_causal,
    assert_decodes_in_pieces,
    randomized,
    shape_in_transformers,
    shared,
    small,
    tokens_of,
)
from tests.seeds import seeded


def reference(decoder: Decoder, kind: type = LlamaForCausalLM) -> torch.nn.Module:
    """The same function in transformers, shared blocks unrolled into copies."""
    config = decoder.config
    options = shape_in_transformers(config) | {"max_position_embeddings": config.max_position_embeddings}
    options |= {"rms_norm_eps": config.norm_eps, "attention_bias": config.attention_bias}
    options |= {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    options |= {"mlp_bias": config.mlp_bias} if kind is LlamaForCausalLM else {}
    model = kind(kind.config_class(**options, tie_word_embeddings=config.tie_embeddings))
    state = {}
    for name, tensor in decoder.state_dict().items():
        head, _, rest = name.partition(".")
        if head == "layers":
            block, _, rest = rest.partition(".")
            for use in (use for use, b in enumerate(config.block_uses) if b == int(block)):
                state[f"model.layers.{use}.{rest}"] = tensor
        else:
            state[name if head == "lm_head" else f"model.{name}"] = tensor
    if config.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def assert_logits_equal(config: ModelConfig, kind: type = LlamaForCausalLM, length: int = 40, batch: int = 2) -> None:
    decoder, tokens = randomized(config), tokens_of(config, length, batch)
    with torch.no_grad():
        assert (decoder(tokens) - reference(decoder, kind)(tokens).logits).abs().max() < 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_logits_equal_transformers_llama(tied: bool, kv_heads: int) -> None:
    assert_logits_equal(small(tie_embeddings=tied, num_kv_heads=kv_heads))


@pytest.mark.parametrize("num_layers", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_logits_of_the_125m_shape_equal_transformers_llama(num_layers: int) -> None:
    """At a length past that at which the attention kernel changes on a CPU."""
    shape = {"hidden_size": 576, "num_heads": 9, "num_kv_heads": 3, "intermediate_size": 1536, "rope_theta": 1e5}
    assert_logits_equal(ModelConfig(vocab_size=32000, num_layers=num_layers, **shape), length=600, batch=1)


def test_biases_equal_transformers_llama() -> None:
    assert_logits_equal(small(attention_bias=True, mlp_bias=True))


def test_learned_qk_norm_equals_transformers_qwen3() -> None:
    assert_logits_equal(small(qk_norm="learned", tie_embeddings=False), Qwen3ForCausalLM)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_shared_blocks_compute_what_unrolled_copies_compute(sharing: str) -> None:
    assert_logits_equal(shared(sharing))


def test_weightless_qk_norm_is_learned_qk_norm_with_gains_of_one() -> None:
    weightless = randomized(small(qk_norm="weightless"))
    learned = Decoder(small(qk_norm="learned"))
    missing = learned.load_state_dict(weightless.state_dict(), strict=False).missing_keys
    assert all(name.endswith(("q_norm.weight", "k_norm.weight")) for name in missing)
    tokens = tokens_of(weightless.config, 20)
    with torch.no_grad():
        torch.testing.assert_close(weightless(tokens), learned(tokens))


def test_interleaved_rotation_is_multiplication_of_complex_numbers() -> None:
    config = small(rope_style="interleaved")
    x = torch.randn(2, 3, 10, config.head_width, dtype=torch.float64)
    cos, sin = rotary_table(config, 5, 10, x)
    turned = rotate(x, cos, sin, "interleaved")
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width)
    phases = torch.polar(torch.ones(()).double(), torch.arange(5, 15).double()[:, None] * frequencies)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * phases).flatten(-2)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_the_gradient_of_a_rotation_is_that_of_finite_differences(style: str) -> None:
    x = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    cos, sin = rotary_table(small(head_dim=6), 3, 5, x)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin, style), x)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_attention_scores_depend_on_relative_positions_only(style: str) -> None:
    config = small()
    q, k = torch.randn(2, 1, 1, 1, config.head_width, dtype=torch.float64).unbind()

    def score(query_at: int, key_at: int) -> Tensor:
        turned = (rotate(x, *rotary_table(config, at, 1, x), style) for x, at in ((q, query_at), (k, key_at)))
        return torch.mul(*turned).sum()

    torch.testing.assert_close(score(9, 4), score(1009, 1004), rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [30, 520])  # on both sides of the length at which the attention kernel changes
@pytest.mark.parametrize("sharing", SHARINGS)
def test_no_logit_sees_a_later_token(sharing: str, length: int) -> None:
    assert_causal(shared(sharing), length, at=length // 2)


@pytest.mark.parametrize("qk_norm", ["none", "learned"])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_cached_decoding_equals_the_full_forward_pass(sharing: str, qk_norm: str) -> None:
    assert_decodes_in_pieces(shared(sharing, qk_norm=qk_norm))


def test_compiled_steps_of_two_caches_in_turns_equal_the_forward_pass() -> None:
    config = small(mixer_pattern="FS", num_layers=2, sliding_window=4, layer_sharing="immediate", num_repeats=2)
    decoder, tokens_1T = randomized(config, torch.float64), tokens_of(config, 12, batch=1)
    long_cache, short_cache = (KVCache(config, batch_size=1, max_length=n, dtype=torch.float64) for n in (12, 7))
    next_logits = compiled_logits(decoder)
    with torch.inference_mode():
        expected = decoder(tokens_1T)[0]
        for cache, length in ((long_cache, 6), (short_cache, 2)):
            next_logits(tokens_1T[:, :length], cache)
        for _ in range(5):
            for cache in (long_cache, short_cache):
                token_11 = tokens_1T[:, cache.length : cache.length + 1]
                found = next_logits(token_11, cache)
                torch.testing.assert_close(found, expected[cache.length - 1], **EXACT)


def test_a_version_that_stops_fitting_is_replaced() -> None:
    doubled = _Precompiled(lambda x: x * 2)
    single, double = torch.ones(3), torch.ones(3, dtype=torch.float64)
    version = doubled.version_for(single)
    other = doubled.version_for(double, first=version)
    assert torch.equal(version(single), single * 2)
    assert torch.equal(other(double), double * 2)
    assert other is not version
    assert doubled.version_for(single, first=other) is version


def test_without_ahead_of_time_compilation_the_compiled_function_serves_all_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    doubled = _Precompiled(lambda x: x * 2)
    assert doubled.version_for(torch.ones(3)) is doubled.version_for(torch.ones(2)) is doubled.compiled


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 33), (3, 5, 33), (7, 33)])
def test_float32_products_without_gradients_run_in_onednn_and_are_as_exact(shape: tuple[int, ...], bias: bool) -> None:
    x, weight = torch.randn(*shape), torch.randn(20, 33)
    b = torch.randn(20) if bias else None
    exact = F.linear(x.double(), weight.double(), b.double() if bias else None)
    with torch.inference_mode(), Calls() as calls:
        torch.testing.assert_close(linear(x, weight, b), exact.float(), rtol=1e-5, atol=1e-5)
        assert "mkldnn::_linear_pointwise" in calls.names
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert linear(x, weight, b).dtype == torch.bfloat16
    assert linear(x.requires_grad_(), weight, b).requires_grad


class Calls(TorchDispatchMode):
    """The names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_tokens_beyond_the_context_are_refused() -> None:
    decoder = Decoder(small(max_position_embeddings=8))
    with pytest.raises(ValueError, match="9 tokens do not fit"):
        decoder(torch.zeros(1, 9, dtype=torch.long))


def test_initial_weights_have_the_std_of_the_config_and_ones_and_zeros_elsewhere() -> None:
    torch.manual_seed(seeded())
    decoder = Decoder(small(hidden_size=240, init_std=0.05, attention_bias=True))
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.05), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


@pytest.mark.parametrize("sharing", ["immediate", "reverse"])
def test_uses_in_a_row_are_one_call_unless_each_has_a_memory(sharing: str) -> None:
    decoder = randomized(shared(sharing))
    calls: list[int] = []
    for number, block in enumerate(decoder.layers):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    tokens, uses = tokens_of(decoder.config, 4), list(decoder.config.block_uses)
    decoder(tokens)
    assert calls == [number for number, _ in groupby(uses)] != uses
    calls.clear()
    decoder(tokens, decoder.make_cache(len(tokens), 4))
    assert calls == uses


def test_compiled_blocks_keep_names_and_values() -> None:
    decoder = randomized(shared("immediate"))
    names, tokens = list(decoder.state_dict()), tokens_of(decoder.config, 16)
    expected = decoder.loss(tokens[:, :-1], tokens[:, 1:])
    decoder.compile_blocks()
    assert list(decoder.state_dict()) == names
    torch.testing.assert_close(decoder.loss(tokens[:, :-1], tokens[:, 1:]), expected)
