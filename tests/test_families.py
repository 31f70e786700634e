"""Each family of conf/family: its rule from width and depth, and that its models are causal, decodable and counted."""

import sys
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.composition.budget import model_config
from slm.model import KVCache, ModelConfig
from slm.model.counts import flops_per_token, num_params
from slm.model.families import ffn, kv_heads
from slm.runtime.command_line import MISTAKES, one_sentence
from slm.training.plan import make_plan
from tests.composing import PUBLISHED, choices, composed
from tests.model.shapes import counted_flops, randomized, tokens_of
from tests.running import ROOT, run_script
from tests.training.small import CPU

FAMILIES = choices("family")
RECURRENT = ["linear", "ssd"]
every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def family_config(family: str, *overrides: str) -> ModelConfig:
    return model_config(composed(f"family={family}", *overrides)["model"])


def small(family: str) -> ModelConfig:
    return family_config(family, "width=64", "depth=4", "model.vocab_size=101", "model.init_std=0.2")


def test_the_families_are_the_nine_that_were_asked_for() -> None:
    named = {"mobilellm", "mobilellm_ls", "llama_wide", "gpt2", "sliding", "sparse", "linear", "ssd", "hybrid"}
    assert set(FAMILIES) == named


def test_mobilellm_at_its_tiny_size_is_the_default_model() -> None:
    assert family_config("mobilellm") == model_config(composed()["model"])
    assert family_config("mobilellm_ls") == model_config(composed("model=tiny_ls")["model"])


@every_family
def test_tiny_sizes_have_about_the_parameters_of_tiny(family: str) -> None:
    assert num_params(family_config(family)) == pytest.approx(num_params(family_config("mobilellm")), rel=0.11)


@pytest.mark.parametrize("name", ["mobilellm_125m", "mobilellm_350m", "mobilellm_600m", "mobilellm_ls_350m"])
def test_mobilellm_at_published_sizes_is_the_published_model(name: str) -> None:
    layers, width, *_ = PUBLISHED[name]
    family = name.rpartition("_")[0]
    found = family_config(family, f"width={width}", f"depth={layers}", "model.head_dim=64", f"model={name}")
    assert found == model_config(composed(f"model={name}")["model"])


def test_gpt2_at_its_published_size_has_the_published_parameters() -> None:
    overrides = ("width=768", "depth=12", "model.head_dim=64", "model.vocab_size=50257")
    assert num_params(family_config("gpt2", *overrides)) == 124_439_808  # openai-community/gpt2 on the hub


def test_a_family_replaces_every_option_of_the_model_it_is_given_with() -> None:
    assert family_config("gpt2", "model=tiny_ls") == family_config("gpt2")
    large = family_config("sparse", "model=smollm2_135m")
    assert (large.vocab_size, large.max_position_embeddings) == (49152, 8192)
    assert (large.hidden_size, large.rope_theta) == (128, 10_000.0)


@every_family
@pytest.mark.parametrize(("width", "depth"), [(32, 4), (96, 12), (352, 28), (1280, 8)])
def test_rules_keep_their_proportions(family: str, width: int, depth: int) -> None:
    shape = family_config(family, f"width={width}", f"depth={depth}")
    base = family_config(family)
    assert (shape.hidden_size, shape.num_layers, shape.head_dim) == (width, depth, 32)
    assert shape.num_heads / width == base.num_heads / base.hidden_size
    assert 0 <= shape.intermediate_size / width - {"gpt2": 4, "ssd": 2}.get(family, 8 / 3) < 64 / width
    ours, theirs = (
        [each.mixer_letters.count(letter) / each.num_layers for letter in "FSPLG"] for each in (shape, base)
    )
    assert ours == theirs


@given(heads=st.integers(1, 200), group=st.integers(1, 8))
def test_key_heads_divide_the_query_heads(heads: int, group: int) -> None:
    found = kv_heads(heads, group)
    assert heads % found == 0
    assert found <= max(2, heads / group)


def test_rules_give_the_published_key_heads_and_feed_forwards() -> None:
    for name in ("mobilellm_125m", "mobilellm_350m", "mobilellm_600m", "mobilellm_1b", "mobilellm_1.5b"):
        _, width, inner, heads, keys, *_ = PUBLISHED[name]
        assert kv_heads(heads, 3) == keys
        assert ffn(width, "8/3", 256) == inner


@every_family
def test_no_logit_of_a_family_sees_a_later_token(family: str) -> None:
    decoder, tokens = randomized(small(family), torch.float64), tokens_of(small(family), 150)
    changed = tokens.clone()
    changed[:, 100] = (changed[:, 100] + 1) % 101
    with torch.no_grad():
        before, after = decoder(tokens), decoder(changed)
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100], after[:, 100])


@every_family
def test_decoding_a_family_equals_its_full_forward_pass(family: str) -> None:
    config = small(family)
    decoder, tokens = randomized(config, torch.float64), tokens_of(config, 140)
    kept = KVCache(config, batch_size=2, max_length=140, dtype=torch.float64)
    with torch.no_grad():
        pieces = [decoder(piece, kept) for piece in tokens.split([60, *[1] * 10, 57, *[1] * 13], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(tokens), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_families_remember_the_same_amount_after_any_number_of_tokens(family: str) -> None:
    sizes = {KVCache(family_config(family), batch_size=1, max_length=n).nbytes for n in (1, 100, 1000)}
    assert len(sizes) == 1


@every_family
def test_flops_of_a_family_are_those_that_torch_counts(family: str) -> None:
    config = family_config(family)
    assert 3 * counted_flops(config, 100) == pytest.approx(flops_per_token(config, 100) * 100, rel=1e-12)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["family=ssd", "width=100"], "width=100 is not a multiple of model.head_dim=32 of family=ssd: 96 or 128 "),
        (["family=gpt2", "width=20"], "width=20 is not a multiple of model.head_dim=32 of family=gpt2: 32 would be"),
        (["family=hybrid", "depth=6"], "depth=6 is not a multiple of the 4 blocks of the pattern of family=hybrid: 4 "),
        (["family=linear", "depth=0"], "depth=0 must be a whole number of at least 1"),
        (["family=linear", "width=wide"], "width=wide must be a whole number of at least 1"),
        (["family=ssd", "model.head_dim=0"], "model.head_dim=0 must be a whole number of at least 1"),
        (["width=192"], "width=192 and model.hidden_size=128 differ: give width with a family"),
        (["family=ssd", "model.num_layers=3"], "depth=8 and model.num_layers=3 differ: give depth with a family"),
        (["family=mamba"], "In 'train': Could not find 'family/mamba'; Available options in 'family': gpt2, hybrid"),
    ],
)
def test_what_a_rule_cannot_meet_is_one_sentence(overrides: list[str], said: str) -> None:
    with pytest.raises(MISTAKES) as caught:
        make_plan(composed(*overrides), CPU)
    assert one_sentence(caught.value).startswith(said)


def test_the_script_says_it_without_a_traceback() -> None:
    command = [sys.executable, str(ROOT / "train.py"), "family=ssd", "width=100", "dry_run=true"]
    done = run_script(command, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: width=100 is not a multiple of model.head_dim=32")
    assert done.stderr.count("\n") == 1
