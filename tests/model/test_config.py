import json
import subprocess
import sys
from itertools import pairwise
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from slm.model import Decoder, KVCache, ModelConfig
from slm.model.counts import flops_per_token, kv_cache_bytes, num_params
from slm.model.mixers.sliding import sliding_attention
from tests.model.shapes import counted_flops, visible_pairs

CHOICES = {name: get_args(kind) for name, kind in get_type_hints(ModelConfig).items()}
SHARINGS = CHOICES["layer_sharing"]
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
SMALL |= {"intermediate_size": 48}
ORDERS = {"none": (0, 1, 2), "immediate": (0, 0, 1, 1, 2, 2)}
ORDERS |= {"repeat_all_over": (0, 1, 2, 0, 1, 2), "reverse": (0, 1, 2, 2, 1, 0)}


def word(letters: str) -> st.SearchStrategy[str]:
    return st.text(letters, min_size=1, max_size=3)


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    kv_heads, group, sharing = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from(SHARINGS))
    pattern, stride = draw(word("FSPLG")), draw(st.integers(1, 4))
    softmax = bool(set(pattern) & set("FSP"))
    positions = draw(st.none() | word("RAN")) if softmax else None
    possible = ["rope"] if positions else [p for p in CHOICES["position"] if softmax or p != "alibi"]
    norm = draw(st.sampled_from(CHOICES["norm"]))
    num_layers = draw(st.integers(max(len(pattern), len(positions or "")), 4))
    windows = draw(st.integers(2, 40) | st.lists(st.integers(2, 40), min_size=1, max_size=num_layers))
    return ModelConfig(
        vocab_size=draw(st.integers(2, 100)),
        hidden_size=draw(st.integers(1, 40)),
        num_layers=num_layers,
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        intermediate_size=draw(st.integers(1, 60)),
        max_position_embeddings=draw(st.integers(33, 50)),
        tie_embeddings=draw(st.booleans()),
        qk_norm="none" if set(pattern) == {"G"} else draw(st.sampled_from(["none", "weightless", "learned"])),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        layer_sharing=sharing,
        num_repeats=1 if sharing == "none" else draw(st.integers(2, 3)),
        mixer_pattern=pattern,
        sliding_window=windows,
        sparse_block=stride * draw(st.integers(1, 4)),
        sparse_stride=stride,
        chunk_size=draw(st.integers(1, 40)),
        state_size=draw(st.integers(1, 9)),
        conv_kernel=draw(st.integers(1, 4)),
        mlp=draw(st.sampled_from(CHOICES["mlp"])),
        norm=norm,
        norm_bias=norm == "layernorm" and draw(st.booleans()),
        norm_position=draw(st.sampled_from(CHOICES["norm_position"])),
        parallel_block=draw(st.booleans()),
        position=draw(st.sampled_from(possible)),
        position_pattern=positions,
    )


def test_counting_parameters_does_not_import_the_compiler() -> None:
    """It takes as long to import as torch, and a plan of a sweep counts parameters."""
    code = "import sys, slm.model.decoder; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(config=shapes())
@settings(max_examples=60, deadline=None)
def test_analytic_parameter_counts_equal_those_of_the_module(config: ModelConfig) -> None:
    with torch.device("meta"):
        decoder = Decoder(config)
    tables = {"embed_tokens.weight", "embed_positions.weight", "lm_head.weight"}
    sizes = {name: p.numel() for name, p in decoder.named_parameters()}
    assert num_params(config) == sum(sizes.values())
    assert num_params(config, non_embedding=True) == sum(n for name, n in sizes.items() if name not in tables)


@given(config=shapes(), length=st.integers(2, 33))
@settings(max_examples=60, deadline=None)
def test_exact_flops_equal_torchs_counter_after_the_causal_correction(config: ModelConfig, length: int) -> None:
    assert 3 * counted_flops(config, length) == pytest.approx(flops_per_token(config, length) * length, rel=1e-12)


@pytest.mark.parametrize(("length", "window"), [(33, 7), (40, 8), (300, 130), (64, 2)])
def test_a_window_in_blocks_computes_less_than_a_block_more_than_what_is_seen(length: int, window: int) -> None:
    q, k, v = (torch.zeros(1, 1, length, 4) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        sliding_attention(q, k, v, window, 1.0, [])
    c = min(window, 128)
    spans = 1 + -(-(window - 1) // c)
    assert counter.get_total_flops() == 4 * 4 * -(-length // c) * c * spans * c
    seen = ModelConfig(**SMALL, mixer_pattern="S", sliding_window=window)
    assert visible_pairs(seen, 0, length) <= counter.get_total_flops() / 16 <= (length + c) * (window + 2 * c)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_full_attention_costs_what_kaplan_counts(mlp: str) -> None:
    """arXiv:2001.08361, table 1, with the mean causal context in place of all of it."""
    config = ModelConfig(**SMALL | {"num_kv_heads": 4}, mlp=mlp)
    layers, width, inner = 3, 32, 48 * (3 if mlp == "swiglu" else 2)
    forward = 2 * layers * (4 * width * width + width * inner) + 2 * layers * 2 * width * (100 + 1) / 2 + 2 * 64 * width
    assert flops_per_token(config, 100) == pytest.approx(3 * forward, rel=1e-12)


def test_6n_flops_are_six_times_all_parameters() -> None:
    config = ModelConfig(**SMALL)
    assert flops_per_token(config, 128, convention="6n") == 6 * num_params(config)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_cache_bytes_equal_those_of_a_real_cache(sharing: str) -> None:
    config = ModelConfig(**SMALL, layer_sharing=sharing, num_repeats=1 if sharing == "none" else 2)
    cache = KVCache(config, batch_size=3, max_length=10, dtype=torch.bfloat16)
    assert 3 * kv_cache_bytes(config, 10) == cache.nbytes


@pytest.mark.parametrize(("sharing", "uses"), ORDERS.items())
def test_blocks_are_used_in_the_order_of_the_paper(sharing: str, uses: tuple[int, ...]) -> None:
    config = ModelConfig(**SMALL, layer_sharing=sharing, num_repeats=1 if sharing == "none" else 2)
    assert config.block_uses == uses
    assert [block for block, times in config.block_rows for _ in range(times)] == list(uses)
    assert all(block != following for (block, _), (following, _) in pairwise(config.block_rows))


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
        ({"mixer_pattern": "FX"}, ["mixer_pattern='FX'", "G ssd"]),
        ({"mixer_pattern": ""}, ["mixer_pattern=''", "F softmax"]),
        ({"mixer_pattern": "SSSF"}, ["mixer_pattern=SSSF", "num_layers=3"]),
        ({"position_pattern": "RL"}, ["position_pattern='RL'", "A alibi"]),
        ({"position_pattern": "RN", "position": "learned"}, ["position_pattern=RN", "position=learned"]),
        ({"position": "sinusoidal"}, ["position='sinusoidal'", "alibi"]),
        ({"mixer_pattern": "FP", "sparse_block": 10, "sparse_stride": 4}, ["sparse_block=10", "1, 2, 5, 10"]),
        ({"sliding_window": 1}, ["sliding_window=1 ", "at least 2"]),
        ({"sliding_window": "64"}, ["sliding_window='64' ", "at least 2"]),
        ({"sliding_window": []}, ["sliding_window=[] ", "at least 2"]),
        ({"sliding_window": [64, 1]}, ["sliding_window=[64, 1] ", "at least 2"]),
        ({"sliding_window": (64, True)}, ["sliding_window=[64, True] ", "at least 2"]),
        ({"sliding_window": [8, 8, 8, 8]}, ["sliding_window=[8, 8, 8, 8]", "num_layers=3", "shorten"]),
        ({"chunk_size": 0}, ["chunk_size=0", "at least 1"]),
        ({"mixer_pattern": "LG", "position": "alibi"}, ["position=alibi", "mixer_pattern=LG", "none or learned"]),
        ({"mixer_pattern": "G", "position_pattern": "RN"}, ["position_pattern=RN", "mixer_pattern=G"]),
        ({"mixer_pattern": "G", "qk_norm": "learned"}, ["qk_norm=learned", "none"]),
        ({"norm_bias": True}, ["norm_bias=True", "layernorm"]),
        ({"mlp": "relu"}, ["mlp='relu'", "relu2"]),
        ({"parallel_block": 1}, ["parallel_block=1", "true or false"]),
        ({"hiden_size": 3}, ["hiden_size", "did you mean hidden_size"]),
        ({"vocab_size": None}, ["vocab_size is not set"]),
    ],
)
def test_a_wrong_shape_is_refused_with_what_is_wrong(change: dict, named: list[str]) -> None:
    with pytest.raises(ValueError, match=r"model\.") as error:
        ModelConfig.from_dict(SMALL | change)
    assert all(text in str(error.value) for text in named), str(error.value)


def test_shapes_are_checked_without_torch() -> None:
    """Torch takes longer to import than all else that a refusal needs."""
    code = (
        "import sys; from slm.model.config import ModelConfig\n"
        "sparse, no_norm = {'mixer_pattern': 'P', 'sparse_block': 60}, {'mixer_pattern': 'G', 'qk_norm': 'learned'}\n"
        "for change in {}, {'hidden_size': 33}, {'mixer_pattern': 'SSSF'}, {'mixer_pattern': 'LG'}, sparse, no_norm:\n"
        f"    try: ModelConfig.from_dict({SMALL} | change)\n"
        "    except ValueError: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(config=shapes())
@settings(max_examples=30, deadline=None)
def test_a_shape_survives_json_and_stays_hashable(config: ModelConfig) -> None:
    values = config.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert {ModelConfig.from_dict(json.loads(json.dumps(values)))} == {config}


def test_an_odd_head_is_refused_only_where_positions_are_rotations() -> None:
    odd = SMALL | {"head_dim": 5}
    with pytest.raises(ValueError, match="head_dim=5 must be even"):
        ModelConfig(**odd, position_pattern="NR")
    assert ModelConfig(**odd, position="alibi").head_width == 5
