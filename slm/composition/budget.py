"""Derive the shape and the number of steps of a run from its config, and refuse settings that do not fit together."""

from collections.abc import Mapping
from typing import Any

from slm.composition.schedules import check_schedule
from slm.model.config import ModelConfig
from slm.model.counts import flops_per_token, num_params
from slm.runtime.settings import COUNT, as_typed

IDENTITY_KEYS = (
    *("model", "data", "tokenizer", "optim", "parametrization", "schedule", "train", "seed"),
    *("init_from", "init_vocab", "distill", "quantize"),
)
"""Config groups and keys that determine the result of a run. Devices, logging and checkpoint intervals may change."""
LATER_KEYS = {"train": ("val_tokens", "eval_tasks", "eval_task_limit"), "tokenizer": ("split",)}
"""Group -> keys that were added to it later. The hashes that name the cells of older sweeps do not include them."""
BUDGETS = ("tokens", "tokens_per_param", "flops")
"""Keys of the group `train` that set the budget; a run uses one of them."""
MAX_PADDING = 0.05
"""Empty sequences fill up a step that devices cannot share evenly: fewer than this fraction of the step's sequences."""
BASE_SHAPE = {
    "standard": (),
    "mup": ("base_width", "base_head_dim"),
    "completep": ("base_width", "base_head_dim", "base_depth"),
}
"""`parametrization.name` -> the keys of its base shape, the shape at which `optim.lr` was tuned."""


def shape_and_steps(config: Mapping[str, Any], *, devices: int = 1) -> tuple[ModelConfig, int]:
    """The shape and number of steps of a checked config. Raises `ValueError` if its settings do not fit together."""
    check_parametrization(config["parametrization"])
    model = model_config(config["model"])
    check_family(config, model)
    steps = count_steps(config["train"], model, devices=devices)
    check_schedule(config["schedule"], steps)
    check_quantize(config, model)
    keep_steps = config["checkpoint"].get("keep_steps", [])
    if too_late := [step for step in keep_steps if step > steps]:
        raise ValueError(f"checkpoint.keep_steps={keep_steps} has {too_late[0]}, but the run ends at step {steps}")
    return model, steps


def model_config(model: Mapping[str, Any]) -> ModelConfig:
    """The shape in a `model` config, without the name of the family."""
    return ModelConfig.from_dict({key: value for key, value in model.items() if key != "family"})


def check_family(config: Mapping[str, Any], model: ModelConfig) -> None:
    """Raise `ValueError` if `width` or `depth` contradicts the shape: only a family derives its shape from them."""
    for key, field in (("width", "hidden_size"), ("depth", "num_layers")):
        given, actual = config.get(key), getattr(model, field)
        if given is not None and given != actual:
            raise ValueError(
                f"{key}={given} and model.{field}={actual} differ: give {key} with a family (family=mobilellm), "
                f"or only model.{field}"
            )


def check_quantize(config: Mapping[str, Any], model: ModelConfig) -> None:
    """Raise `ValueError` if the weights of this shape cannot be rounded as `quantize` says."""
    if kind := config.get("quantize"):  # older configs lack the key
        from slm.model.quantised import check_shape  # imports torch

        check_shape(model, kind)


def check_parametrization(parametrization: Mapping[str, Any]) -> None:
    """Raise `ValueError` for an unknown parametrization, and for keys of its base shape that are missing or unknown."""
    name = parametrization["name"]
    if name not in BASE_SHAPE:
        raise ValueError(f"parametrization.name={name} must be one of {', '.join(BASE_SHAPE)}")
    for key in BASE_SHAPE[name]:
        value = parametrization.get(key)
        if not COUNT.accepts(value):
            raise ValueError(
                f"parametrization.{key}={as_typed(value)} must be {COUNT.words} for parametrization={name}: give the "
                "value for the shape at which optim.lr was tuned"
            )
    for key in sorted(parametrization.keys() - {"name", *BASE_SHAPE[name]}):
        raise ValueError(
            f"parametrization.{key}={parametrization[key]} has no effect with parametrization={name}: leave it out, or "
            "choose completep, which transfers rates over width and depth"
        )


def count_steps(train: Mapping[str, Any], model: ModelConfig, *, devices: int = 1) -> int:
    """Count the optimizer steps in the budget of a `train` config. Raises `ValueError` if its sizes disagree."""
    length = int(train["sequence_length"])
    if length > model.max_position_embeddings:
        raise ValueError(
            f"train.sequence_length={length} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}: raise max_position_embeddings or train on shorter sequences"
        )
    batch_tokens = int(train["batch_tokens"])
    _check_batch(batch_tokens, length, devices)
    set_keys = [key for key in ("tokens_per_param", "flops") if train[key] is not None]
    if len(set_keys) == 2:
        raise ValueError("train.tokens_per_param and train.flops are both set: set one of them to null")
    key = set_keys[0] if set_keys else "tokens"
    budget = train[key]
    if key == "tokens_per_param":
        budget *= num_params(model)
    if key == "flops":
        budget *= 1 / flops_per_token(model, 1, convention="6n")
    tokens = int(budget)
    if tokens < batch_tokens:
        raise ValueError(
            f"train.{key}={train[key]} gives {tokens} tokens, fewer than one step of "
            f"train.batch_tokens={batch_tokens}: raise the budget or lower train.batch_tokens"
        )
    return tokens // batch_tokens


def _check_batch(batch_tokens: int, length: int, devices: int) -> None:
    smallest = length * devices  # one sequence on each device
    rounded_down = batch_tokens // smallest * smallest
    nearest = f"{rounded_down} or {rounded_down + smallest}" if rounded_down else f"{smallest}"
    if batch_tokens % length:
        raise ValueError(
            f"train.batch_tokens={batch_tokens} is not a multiple of train.sequence_length={length} x "
            f"{devices} device(s): try {nearest}"
        )
    sequences = batch_tokens // length
    padding = -sequences % devices  # up to the next multiple of devices
    if padding >= MAX_PADDING * sequences:
        raise ValueError(
            f"train.batch_tokens={batch_tokens} is {sequences} sequences of train.sequence_length={length}. For equal "
            f"shares, {devices} devices need {padding} additional empty sequences ({padding / sequences:.0%}, but less "
            f"than {MAX_PADDING:.0%} is allowed): try {nearest}"
        )
