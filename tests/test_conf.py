"""Every choice in conf/ composes, and every shape has the parameters that its paper prints."""

import pytest

from slm.composition.budget import model_config
from slm.composition.settings import check_settings
from slm.model.counts import num_params
from slm.training.plan import make_plan
from tests.composing import PUBLISHED, choices, composed
from tests.training.small import CPU

GROUPS = ["model", "family", "data", "tokenizer", "optim", "parametrization", "schedule"]
GROUPS += ["trainer", "logger", "experiment"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_shape_and_parameters(name: str) -> None:
    model = model_config(composed(f"model={name}")["model"])
    shape = (model.num_layers, model.hidden_size, model.intermediate_size, model.num_heads, model.num_kv_heads)
    assert (*shape, num_params(model), num_params(model, non_embedding=True)) == PUBLISHED[name]
    assert model.head_dim == 64
    assert model.tie_embeddings


def test_windows_of_layers_are_given_as_a_list() -> None:
    model = model_config(composed("model.mixer_pattern=SF", "model.sliding_window=[64,256]")["model"])
    assert model.windows == (64, 256) * 4
    assert model_config(composed()["model"]).windows == (256,) * 8


def test_ls_presets_apply_every_block_twice_in_place() -> None:
    model = model_config(composed("model=mobilellm_ls_125m")["model"])
    assert model.block_uses == tuple(block for block in range(30) for _ in range(2))


def test_every_preset_is_checked_above_or_tiny() -> None:
    assert set(choices("model")) == set(PUBLISHED) | {"tiny", "tiny_ls"}


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in choices(group)])
def test_every_choice_composes_into_a_plan(choice: str) -> None:
    needed = ["data.paths=x.txt"] if choice == "data=local" else []
    needed += ["data.repo=x/y"] if choice == "data=hub" else []
    needed += ["data.sources={a: pydocs}", "data.weights={a: 1}"] if choice == "data=mix" else []
    needed += ["tokenizer.path=x"] if choice == "tokenizer=file" else []
    config = composed(choice, *needed)
    check_settings(config)
    plan = make_plan(config, CPU)
    assert plan.train_tokens <= config["train"]["tokens"] < plan.train_tokens + plan.batch_tokens


def test_the_papers_recipe_is_the_papers() -> None:
    config = composed("experiment=mobilellm_125m_paper")
    assert (config["optim"]["name"], config["optim"]["lr"]) == ("adamw", 2e-3)
    assert config["optim"]["betas"] == [0.9, 0.95]
    assert config["optim"]["weight_decay"] == 0.1
    assert config["schedule"]["name"] == "cosine"
    assert config["train"]["batch_tokens"] == 2_097_152
    assert config["train"]["tokens"] / config["train"]["batch_tokens"] == 480_000
    assert config["train"]["val_tokens"] < 1e-4 * config["train"]["tokens"]  # a part of the validation set
