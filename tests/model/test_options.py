"""Block options against transformers' models that have them, and against formulas where none does."""

import pytest
import torch
from torch import Tensor
from transformers import CohereForCausalLM, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, MistralForCausalLM

from slm.model import Decoder, ModelConfig
from slm.model.counts import num_params
from slm.model.layers import FeedForward, LayerNorm
from tests.model.shapes import randomized, shape_in_transformers, small, tokens_of


def loaded(model: torch.nn.Module, state: dict[str, Tensor]) -> torch.nn.Module:
    """The model with these tensors; its tied head is the embedding."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def equivalent(kind: type, config: ModelConfig, state: dict[str, Tensor], **options) -> torch.nn.Module:
    """A model of transformers of our shape, with these tensors, which computes attention as it is written."""
    reference = kind.config_class(**shape_in_transformers(config), **options)
    reference._attn_implementation = "eager"
    return loaded(kind(reference), state)


def farthest(decoder: Decoder, theirs: torch.nn.Module, length: int = 40) -> float:
    tokens = tokens_of(decoder.config, length)
    with torch.no_grad():
        return (decoder(tokens) - theirs(tokens).logits).abs().max().item()


def test_layernorm_gelu_learned_positions_and_biases_equal_transformers_gpt2() -> None:
    biases = {"norm_bias": True, "attention_bias": True, "mlp_bias": True}
    options = {"norm": "layernorm", "mlp": "gelu", "position": "learned", "max_position_embeddings": 64}
    config = small(num_kv_heads=6, init_std=0.1, **biases, **options)
    decoder = randomized(config)
    w, state = decoder.state_dict(), {}
    names = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "self_attn.o_proj": "attn.c_proj"}
    names |= {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
    for i in range(config.num_layers):
        for kind in ("weight", "bias"):
            for ours, theirs in names.items():
                tensor = w[f"layers.{i}.{ours}.{kind}"]
                state[f"transformer.h.{i}.{theirs}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
            qkv = torch.cat([w[f"layers.{i}.self_attn.{n}_proj.{kind}"] for n in "qkv"])
            state[f"transformer.h.{i}.attn.c_attn.{kind}"] = qkv.T if kind == "weight" else qkv
    state |= {f"transformer.ln_f.{kind}": w[f"norm.{kind}"] for kind in ("weight", "bias")}
    state |= {"transformer.wte.weight": w["embed_tokens.weight"], "transformer.wpe.weight": w["embed_positions.weight"]}
    reference = GPT2Config(vocab_size=101, n_embd=48, n_layer=3, n_head=6, n_inner=96, n_positions=64)
    theirs = loaded(GPT2LMHeadModel(reference), state)
    assert farthest(decoder, theirs) < 1e-5
    assert num_params(config) == sum(p.numel() for p in theirs.parameters())


def test_norms_on_both_sides_geglu_windows_and_multipliers_equal_transformers_gemma2() -> None:
    multipliers = {"embedding_multiplier": 48**0.5, "attention_multiplier": 23**-0.5}
    options = {"mixer_pattern": "SF", "sliding_window": 7, "norm_position": "both", "mlp": "geglu"}
    config = small(init_std=0.1, **options, **multipliers)
    decoder, state = randomized(config), {}
    norms = {
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }
    for name, tensor in decoder.state_dict().items():
        *head, module, kind = name.split(".")
        if module.endswith("norm"):
            tensor = tensor - 1  # Gemma's gains count from 1
        state[".".join(["model", *head, norms.get(module, module), kind])] = tensor
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    uncapped = {"final_logit_softcapping": None, "attn_logit_softcapping": None}
    options = {"query_pre_attn_scalar": 23, "sliding_window": 7, "layer_types": layers}
    theirs = equivalent(Gemma2ForCausalLM, config, state, rms_norm_eps=config.norm_eps, **options, **uncapped)
    assert farthest(decoder, theirs) < 1e-4


def test_parallel_blocks_without_norm_biases_equal_transformers_cohere() -> None:
    options = {"parallel_block": True, "norm": "layernorm", "rope_style": "interleaved", "logits_multiplier": 0.25}
    config = small(init_std=0.1, **options)
    decoder = randomized(config)
    state = {f"model.{name}": tensor for name, tensor in decoder.state_dict().items()}
    options = {"layer_norm_eps": config.norm_eps, "logit_scale": 0.25, "pad_token_id": 0}
    options |= {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    assert farthest(decoder, equivalent(CohereForCausalLM, config, state, **options)) < 1e-5


@pytest.mark.parametrize("window", [2, 9, 40, 100])
def test_a_sliding_window_equals_transformers_mistral(window: int) -> None:
    config = small(mixer_pattern="S", sliding_window=window, init_std=0.1)
    decoder = randomized(config)
    state = {f"model.{name}": tensor for name, tensor in decoder.state_dict().items()}
    options = {"rms_norm_eps": config.norm_eps, "sliding_window": window, "tie_word_embeddings": True}
    assert farthest(decoder, equivalent(MistralForCausalLM, config, state, **options), length=70) < 1e-5


def test_post_norm_normalizes_what_is_added_and_not_what_is_read() -> None:
    """x + norm(f(x)), OLMo 2's order: from a stream of any size, each branch adds vectors of RMS one."""
    decoder = randomized(small(norm_position="post"), torch.float64)
    block = decoder.layers[0]
    for norm in (block.attention_output_norm, block.mlp_output_norm):
        torch.nn.init.ones_(norm.weight)
    x = torch.randn(2, 9, 48, dtype=torch.float64)
    rotary = decoder.embed(tokens_of(decoder.config, 9), 0)[1]
    with torch.no_grad():
        attended = block.self_attn(x, rotary)
        middle = x + attended / (attended.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        moved = block.mlp(middle)
        expected = middle + moved / (moved.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(block(x, rotary), expected, rtol=0, atol=1e-12)


def test_squared_relu_is_the_square_of_relu() -> None:
    config = small(mlp="relu2")
    mlp = randomized(config, torch.float64).layers[0].mlp
    x = torch.randn(5, 48, dtype=torch.float64)
    expected = (x @ mlp.up_proj.weight.T).clamp(min=0) ** 2 @ mlp.down_proj.weight.T
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-12)
    assert {name for name, _ in FeedForward(config).named_parameters()} == {"up_proj.weight", "down_proj.weight"}


@pytest.mark.parametrize("bias", [True, False])
def test_layernorm_equals_torchs(bias: bool) -> None:
    ours, theirs = LayerNorm(13, 1e-3, bias=bias).double(), torch.nn.LayerNorm(13, eps=1e-3, bias=bias).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 13, dtype=torch.float64) * 3 + 5
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", ["learned", "alibi", "none"])
def test_positions_tell_orders_apart_where_there_are_any(position: str) -> None:
    """One layer without positions sees the past as a set; with them, or with a second layer, as a sequence."""
    config = ModelConfig(**small(num_layers=1, position=position).to_dict())
    decoder = randomized(config, torch.float64)
    tokens = tokens_of(config, 12)
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    with torch.no_grad():
        same = torch.allclose(decoder(tokens)[:, -1], decoder(swapped)[:, -1], rtol=0, atol=1e-12)
    assert same == (position == "none")
