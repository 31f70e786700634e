import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from slm.model import Decoder, KVCache, ModelConfig
from slm.model.loss import IGNORE  # noqa: F401  (imported so that the whole room loads under the meta device)

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 48,
}


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    kv_heads, group, sharing = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from(SHARINGS))
    return ModelConfig(
        vocab_size=draw(st.integers(2, 100)),
        hidden_size=draw(st.integers(1, 40)),
        num_layers=draw(st.integers(1, 4)),
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        intermediate_size=draw(st.integers(1, 60)),
        tie_embeddings=draw(st.booleans()),
        qk_norm=draw(st.sampled_from(["none", "weightless", "learned"])),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        layer_sharing=sharing,
        num_repeats=1 if sharing == "none" else draw(st.integers(2, 3)),
    )


SHARINGS = ["none", "immediate", "repeat_all_over", "reverse"]


@given(config=shapes())
@settings(max_examples=60, deadline=None)
def test_analytic_parameter_counts_equal_those_of_the_module(config: ModelConfig) -> None:
    with torch.device("meta"):
        decoder = Decoder(config)
    tables = {"embed_tokens.weight", "lm_head.weight"}
    sizes = {name: p.numel() for name, p in decoder.named_parameters()}
    assert config.num_params() == sum(sizes.values())
    assert config.num_params(non_embedding=True) == sum(n for name, n in sizes.items() if name not in tables)


@given(config=shapes(), length=st.integers(2, 33))
@settings(max_examples=30, deadline=None)
def test_exact_flops_equal_torchs_counter_after_the_causal_correction(config: ModelConfig, length: int) -> None:
    """The counter sees all T x T scores; the formula counts the (T + 1) / 2 keys that a token sees on average."""
    decoder = Decoder(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(torch.zeros(1, length, dtype=torch.long))
    unseen = (length - 1) / 2
    uncounted = 4 * config.num_heads * config.head_width * unseen * length * len(config.block_uses)
    assert 3 * (counter.get_total_flops() - uncounted) == pytest.approx(
        config.flops_per_token(length) * length, rel=1e-12
    )


def test_6n_flops_are_six_times_all_parameters() -> None:
    config = ModelConfig(**SMALL)
    assert config.flops_per_token(128, convention="6n") == 6 * config.num_params()


@pytest.mark.parametrize("sharing", SHARINGS)
def test_cache_bytes_equal_those_of_a_real_cache(sharing: str) -> None:
    config = ModelConfig(**SMALL, layer_sharing=sharing, num_repeats=1 if sharing == "none" else 2)
    cache = KVCache(config, batch_size=3, max_length=10, dtype=torch.bfloat16)
    assert config.kv_cache_bytes(10, batch_size=3) == cache.nbytes


@pytest.mark.parametrize(
    ("sharing", "uses"),
    [
        ("none", (0, 1, 2)),
        ("immediate", (0, 0, 1, 1, 2, 2)),
        ("repeat_all_over", (0, 1, 2, 0, 1, 2)),
        ("reverse", (0, 1, 2, 2, 1, 0)),
    ],
)
def test_blocks_are_used_in_the_order_of_the_paper(sharing: str, uses: tuple[int, ...]) -> None:
    config = ModelConfig(**SMALL, layer_sharing=sharing, num_repeats=1 if sharing == "none" else 2)
    assert config.block_uses == uses


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_heads": 7, "num_kv_heads": 3, "head_dim": 8}, ["num_heads=7", "num_kv_heads=3", "1, 7"]),
        ({"num_heads": 5}, ["hidden_size=32", "num_heads=5"]),
        ({"hidden_size": 36}, ["head_dim=9", "even"]),
        ({"num_layers": 0}, ["num_layers=0", "at least 1"]),
        ({"vocab_size": 2.5}, ["vocab_size=2.5"]),
        ({"layer_sharing": "immediate"}, ["layer_sharing=immediate", "num_repeats=1"]),
        ({"num_repeats": 2}, ["layer_sharing=none", "num_repeats=2"]),
        ({"qk_norm": "rms"}, ["qk_norm='rms'", "weightless"]),
        ({"norm_eps": -1.0}, ["norm_eps=-1.0"]),
        ({"hiden_size": 3}, ["hiden_size", "did you mean hidden_size"]),
        ({"vocab_size": None}, ["vocab_size is not set"]),
    ],
)
def test_a_wrong_shape_is_refused_with_what_is_wrong(change: dict, named: list[str]) -> None:
    with pytest.raises(ValueError, match=r"model\.") as error:
        ModelConfig.from_dict(SMALL | change)
    assert all(text in str(error.value) for text in named), str(error.value)


def test_every_sharing_and_norm_is_reachable_from_a_dict() -> None:
    for sharing, norm in itertools.product(SHARINGS, ["none", "weightless", "learned"]):
        values = SMALL | {"layer_sharing": sharing, "num_repeats": 1 if sharing == "none" else 2, "qk_norm": norm}
        config = ModelConfig.from_dict(values)
        assert ModelConfig.from_dict(config.to_dict()) == config
