"""The rules against the papers' tables, worked out by hand, and against what activations do."""

from typing import Any

import pytest
import torch

from benchmarks.coord_check import shape_at, trained_activations
from slm.composition.budget import check_parametrization
from slm.model import Decoder, ModelConfig
from slm.training.optim import OPTIMIZERS, parameter_groups
from slm.training.parametrization import STANDARD, make_rules, parameter_kinds, scale_initial_weights, with_multipliers
from tests.seeds import seeded
from tests.training.small import OPTIM

BASE = {"base_width": 32, "base_depth": 2, "base_head_dim": 8}
ADAMW, MUON = OPTIM | {"name": "adamw"}, OPTIM | {"name": "muon"}
NAMES = ("standard", "mup", "completep")


def shape(**changes: Any) -> ModelConfig:
    values = {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    return ModelConfig(**(values | {"intermediate_size": 96} | changes))


# m = 4, d = 6 (three blocks used four times), c = 2
SHARED = {"num_layers": 3, "layer_sharing": "immediate", "num_repeats": 4}
LARGE = shape(hidden_size=128, num_heads=8, intermediate_size=384, **SHARED)


@pytest.mark.parametrize("optim", [ADAMW, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("name", NAMES)
def test_at_the_base_shape_training_is_standard_to_the_last_bit(name: str, optim: dict[str, Any]) -> None:
    trained = []
    for parametrization in ({"name": "standard"}, {"name": name, **BASE}):
        rules, config = make_rules(parametrization, shape()), with_multipliers(parametrization, shape())
        assert config == shape()
        assert rules == STANDARD
        torch.manual_seed(seeded())
        decoder = Decoder(config)
        scale_initial_weights(decoder, rules)
        optimizer = OPTIMIZERS[optim["name"]](decoder, optim, rules)
        for step in range(3):
            tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(seeded(step)))
            decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step()
        trained.append(list(decoder.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_standard_looks_at_no_shape() -> None:
    assert make_rules({"name": "standard"}, LARGE) == STANDARD
    assert with_multipliers({"name": "standard"}, LARGE) == LARGE


def test_multipliers_are_those_of_the_tables() -> None:
    """arXiv:2203.03466, table 8 (1/C attention, output 1/width); arXiv:2505.01618, table 1 (branches 1/depth)."""
    mup = with_multipliers({"name": "mup", **BASE}, LARGE)
    completep = with_multipliers({"name": "completep", **BASE}, LARGE)
    assert (mup.logits_multiplier, mup.residual_multiplier) == (1 / 4, 1.0)
    assert (completep.logits_multiplier, completep.residual_multiplier) == (1 / 4, 1 / 6)
    assert mup.attention_multiplier == completep.attention_multiplier == pytest.approx(8**0.5 / 16)
    assert mup.embedding_multiplier == completep.embedding_multiplier == 1.0


def test_multipliers_that_a_shape_has_are_tuned_at_the_base_and_carried_on() -> None:
    tuned = {"residual_multiplier": 0.3, "attention_multiplier": 0.5, "logits_multiplier": 2.0}
    config = with_multipliers({"name": "completep", **BASE}, ModelConfig(**(LARGE.to_dict() | tuned)))
    assert config.residual_multiplier == pytest.approx(0.3 / 6)
    assert config.attention_multiplier == pytest.approx(0.5 / 2)
    assert config.logits_multiplier == pytest.approx(2.0 / 4)


def settings_of(name: str, config: ModelConfig, optim: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """(lr, weight decay, epsilon) of each tensor, relative to the config's."""
    decoder = Decoder(config)
    rules = make_rules({"name": name, **BASE}, config)
    found = {
        parameter: (group["lr"] / 0.01, group["weight_decay"] / 0.1, group["eps"] / 1e-8)
        for group in parameter_groups(decoder, optim, rules, muon=optim["name"] == "muon")
        for parameter in group["params"]
    }
    return {name: found[parameter] for name, parameter in decoder.named_parameters()}


@pytest.mark.parametrize(("name", "eps"), [("mup", 1 / 4), ("completep", 1 / 24)])
@pytest.mark.parametrize("tied", [True, False])
def test_learning_rates_decay_and_epsilon_are_those_of_the_tables(name: str, eps: float, tied: bool) -> None:
    config = ModelConfig(**(LARGE.to_dict() | {"attention_bias": True, "tie_embeddings": tied}))
    found = settings_of(name, config, ADAMW)
    assert found["embed_tokens.weight"] == pytest.approx((1, 1, 1 / 4))
    assert found["norm.weight"] == pytest.approx((1, 0, 1 / 4))
    if not tied:
        assert found["lm_head.weight"] == pytest.approx((1, 1, 1 / 4))
    for tensor in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        assert found[f"layers.0.{tensor}.weight"] == pytest.approx((1 / 4, 4, eps))
    for tensor in ("input_layernorm.weight", "self_attn.q_proj.bias"):
        assert found[f"layers.0.{tensor}"] == pytest.approx((1, 0, eps))


@pytest.mark.parametrize("name", ["mup", "completep"])
def test_muons_updates_keep_the_spectral_norm_that_the_width_asks_for(name: str) -> None:
    """arXiv:2310.17813: lr x 0.2 sqrt(max(rows, columns)) must stay in proportion to sqrt(rows / columns)."""
    ratios: dict[str, list[float]] = {}
    for config in (shape(), shape_at(shape(), 128, 2)):
        found = settings_of(name, config, MUON)
        for tensor, parameter in Decoder(config).named_parameters():
            if "_proj" in tensor and "layers.0" in tensor:
                rows, columns = parameter.shape
                spectral_norm = found[tensor][0] * max(rows, columns) ** 0.5
                ratios.setdefault(tensor, []).append(spectral_norm / (rows / columns) ** 0.5)
                assert found[tensor][0] * found[tensor][1] == pytest.approx(1)
    assert len(ratios) == 7
    for at_base, at_large in ratios.values():
        assert at_large == pytest.approx(at_base)


@pytest.mark.parametrize("name", ["mup", "completep"])
def test_initial_weights_are_the_standard_draws_with_fan_in_stds(name: str) -> None:
    """arXiv:2203.03466, table 8: variance of hidden weights in proportion to 1 / fan-in; of others, as it was."""
    torch.manual_seed(seeded())
    decoder = Decoder(LARGE)
    before = {tensor: parameter.detach().clone() for tensor, parameter in decoder.named_parameters()}
    scale_initial_weights(decoder, make_rules({"name": name, **BASE}, LARGE))
    for tensor, parameter in decoder.named_parameters():
        factor = 0.5 if "_proj" in tensor else 1.0
        assert torch.equal(parameter, before[tensor] * factor)


def test_every_parameter_is_of_one_kind() -> None:
    decoder = Decoder(shape(attention_bias=True, qk_norm="learned", tie_embeddings=False))
    kinds = {name: parameter_kinds(decoder)[parameter] for name, parameter in decoder.named_parameters()}
    by_kind = {kind: {name for name in kinds if kinds[name] == kind} for kind in kinds.values()}
    assert by_kind["outer"] == {"embed_tokens.weight", "norm.weight", "lm_head.weight"}
    assert by_kind["hidden"] == {name for name in kinds if name.endswith("_proj.weight")}


@pytest.mark.parametrize(
    ("parametrization", "message"),
    [
        ({"name": "sp"}, r"parametrization\.name=sp must be one of standard, mup, completep"),
        ({"name": "mup", "base_width": None, "base_head_dim": 8}, r"parametrization\.base_width=null must be a whole"),
        ({"name": "mup", "base_width": 32}, r"parametrization\.base_head_dim=null must be a whole"),
        ({"name": "completep", **BASE, "base_depth": 0}, r"parametrization\.base_depth=0 must be a whole number"),
        ({"name": "completep", **BASE, "base_width": 1.5}, r"parametrization\.base_width=1\.5 must be a whole number"),
        ({"name": "mup", **BASE}, r"parametrization\.base_depth=2 has no effect with parametrization=mup"),
        ({"name": "standard", "base_width": 32}, r"base_width=32 has no effect with parametrization=standard"),
        ({"name": "completep", **BASE, "base_heads": 4}, r"parametrization\.base_heads=4 has no effect with"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(parametrization: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_parametrization(parametrization)


def spread(name: str, sizes: list[tuple[int, int]], optim: dict[str, Any] = ADAMW, **changes: Any) -> float:
    """Largest over smallest root mean square of the last block's output."""
    parametrization, fast = {"name": name, **BASE}, optim | {"lr": 4e-3}
    found = [
        trained_activations(shape_at(shape(**changes), width, depth), parametrization, fast, steps=10, seed=0)["last"]
        for width, depth in sizes
    ]
    return max(found) / min(found)


@pytest.mark.parametrize(("optim", "grows"), [(ADAMW, 3), (MUON, 1.5)], ids=["adamw", "muon"])
def test_activations_keep_their_size_when_the_width_grows_under_mup_alone(optim: dict[str, Any], grows: float) -> None:
    widths = [(32, 2), (64, 2), (128, 2)]
    assert spread("mup", widths, optim) < 1.2
    assert spread("standard", widths, optim) > grows


def test_activations_keep_their_size_when_the_depth_grows_under_completep_alone() -> None:
    depths = [(32, 2), (32, 16)]
    assert spread("completep", depths) < 1.2
    assert spread("mup", depths) > 3


@pytest.mark.parametrize(
    "changes",
    [
        {"mixer_pattern": "SP", "sliding_window": 8, "sparse_block": 8, "sparse_stride": 4},
        {"mixer_pattern": "L", "norm_position": "both"},
        {"mixer_pattern": "G", "state_size": 8, "position": "none"},
        {"mlp": "gelu", "norm": "layernorm", "position": "learned", "attention_bias": True, "mlp_bias": True},
        {"layer_sharing": "immediate", "num_repeats": 2, "parallel_block": True, "mlp": "relu2"},
    ],
    ids=["sparse", "linear", "ssd", "gpt2", "shared"],
)
def test_the_rules_hold_whatever_blocks_are_made_of(changes: dict[str, Any]) -> None:
    assert spread("completep", [(32, 2), (128, 2)], **changes) < 1.3
    assert spread("completep", [(32, 2), (32, 16)], **changes) < 2
