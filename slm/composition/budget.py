"""The shape, the budget and the identity of a run, out of its config. A user's arithmetic mistakes end here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.model.config import ModelConfig

IDENTITY = ("model", "data", "tokenizer", "optim", "parametrization", "schedule", "train", "seed")
"""Groups that decide a run; devices, logging and how often to save may change while it is continued."""
LATER_KEYS = {"train": ("val_tokens",)}
"""Of those groups, keys that came after runs were named by a hash of their settings."""
BUDGETS = ("tokens", "tokens_per_param", "flops")
"""Keys that say how long a run is, one of them at a time."""


def model_config(model: Mapping[str, Any]) -> ModelConfig:
    """The shape in a `model` config, which also names its family."""
    return ModelConfig.from_dict({key: value for key, value in model.items() if key != "family"})


def check_family(config: Mapping[str, Any], model: ModelConfig) -> None:
    """`width` and `depth` act through a family's rule alone: elsewhere they would be ignored without a word."""
    for key, name in (("width", "hidden_size"), ("depth", "num_layers")):
        given, is_ = config.get(key), getattr(model, name)
        if given is not None and given != is_:
            raise ValueError(
                f"{key}={given} and model.{name}={is_} differ: give {key} and a family (family=mobilellm), "
                f"or model.{name} alone"
            )


def steps_of(train: Mapping[str, Any], model: ModelConfig, *, devices: int = 1) -> int:
    """Whole optimizer steps in the budget of a `train` config; `ValueError` names what cannot be met."""
    length = int(train["sequence_length"])
    if length > model.max_position_embeddings:
        raise ValueError(
            f"train.sequence_length={length} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}: raise the latter or train on shorter sequences"
        )
    batch_tokens = int(train["batch_tokens"])
    unit = length * devices
    if batch_tokens % unit:
        near = [n for n in (batch_tokens // unit * unit, (batch_tokens // unit + 1) * unit) if n]
        raise ValueError(
            f"train.batch_tokens={batch_tokens} is not a multiple of train.sequence_length={length} x "
            f"{devices} device(s): try {' or '.join(map(str, near))}"
        )
    tokens, key = _budget(train, model)
    if tokens < batch_tokens:
        raise ValueError(
            f"{key}={train[key.split('.')[1]]} gives {tokens} tokens, fewer than one step of "
            f"train.batch_tokens={batch_tokens}: raise the budget or lower train.batch_tokens"
        )
    return tokens // batch_tokens


def _budget(train: Mapping[str, Any], model: ModelConfig) -> tuple[int, str]:
    """The token budget and the key it comes from."""
    given = [key for key in BUDGETS[1:] if train[key] is not None]
    if len(given) == 2:
        raise ValueError("train.tokens_per_param and train.flops are both set: a run has one budget")
    key = given[0] if given else "tokens"
    value = train[key]
    per_unit = {
        "tokens": 1.0,
        "tokens_per_param": model.num_params(),
        "flops": 1 / model.flops_per_token(1, convention="6n"),
    }
    return int(value * per_unit[key]), f"train.{key}"
