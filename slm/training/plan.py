"""From a config to the numbers of a run: steps, batches, tokens. A user's arithmetic mistakes end here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm.model.config import ModelConfig
from slm.training.hardware import Hardware
from slm.training.optim import OPTIMIZERS
from slm.training.parametrization import Rules, check_parametrization, make_rules, with_multipliers
from slm.training.schedules import check_schedule

BUDGETS = ("tokens", "tokens_per_param", "flops")
"""Keys of `train` that say how long a run is."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of one run."""

    model: ModelConfig
    """The shape, with the parametrisation's multipliers."""
    rules: Rules
    """The parametrisation's factors on initial weights and learning rates."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    """Sequences of one optimizer step, over all devices."""
    micro_batch_size: int
    """Sequences of one forward pass on one device."""
    accumulation: int
    """Forward passes of one device in one optimizer step."""
    sequence_length: int
    document_masking: bool
    """Whether tokens see those of their own document alone."""
    averaged: bool
    """Whether an average of the weights is kept."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_size * self.sequence_length

    @property
    def train_tokens(self) -> int:
        """Tokens of the run, D."""
        return self.steps * self.batch_tokens

    @property
    def flops(self) -> float:
        """Exact training FLOPs of the run."""
        return self.train_tokens * self.model.flops_per_token(self.sequence_length)

    @property
    def state_bytes(self) -> int:
        """Weights, gradients, Adam's two moments (Muon has one) and the average, if one is kept, all float32."""
        return (20 if self.averaged else 16) * self.model.num_params()


def make_plan(config: Mapping[str, Any], hardware: Hardware) -> Plan:
    """The plan of a config whose values are of the right kinds. Raises `ValueError` naming what cannot be met."""
    train = config["train"]
    check_parametrization(config["parametrization"])
    model = with_multipliers(config["parametrization"], model_config(config["model"]))
    _check_family(config, model)
    length = int(train["sequence_length"])
    if length > model.max_position_embeddings:
        raise ValueError(
            f"train.sequence_length={length} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}: raise the latter or train on shorter sequences"
        )
    batch_tokens = int(train["batch_tokens"])
    unit = length * hardware.world_size
    if batch_tokens % unit:
        near = [n for n in (batch_tokens // unit * unit, (batch_tokens // unit + 1) * unit) if n]
        raise ValueError(
            f"train.batch_tokens={batch_tokens} is not a multiple of train.sequence_length={length} x "
            f"{hardware.world_size} device(s): try {' or '.join(map(str, near))}"
        )
    tokens, key = _budget(train, model)
    if tokens < batch_tokens:
        raise ValueError(
            f"{key}={train[key.split('.')[1]]} gives {tokens} tokens, fewer than one step of "
            f"train.batch_tokens={batch_tokens}: raise the budget or lower train.batch_tokens"
        )
    if config["optim"]["name"] not in OPTIMIZERS:
        raise ValueError(f"optim.name={config['optim']['name']} must be one of {', '.join(OPTIMIZERS)}")
    steps = tokens // batch_tokens
    check_schedule(config["schedule"], steps)
    _check_kept(config["checkpoint"].get("keep_steps", []), steps)
    local = batch_tokens // unit
    micro = _largest_divisor(local, at_most=max(1, hardware.micro_batch_tokens // length))
    return Plan(
        model=model,
        rules=make_rules(config["parametrization"], model),
        steps=steps,
        batch_size=local * hardware.world_size,
        micro_batch_size=micro,
        accumulation=local // micro,
        sequence_length=length,
        document_masking=train.get("document_masking", False),
        averaged=config["optim"]["ema_decay"] is not None,
    )


def _check_family(config: Mapping[str, Any], model: ModelConfig) -> None:
    """`width` and `depth` act through a family's rule alone: elsewhere they would be ignored without a word."""
    for key, name in (("width", "hidden_size"), ("depth", "num_layers")):
        given, is_ = config.get(key), getattr(model, name)
        if given is not None and given != is_:
            raise ValueError(
                f"{key}={given} and model.{name}={is_} differ: give {key} and a family (family=mobilellm), "
                f"or model.{name} alone"
            )


def model_config(model: Mapping[str, Any]) -> ModelConfig:
    """The shape in a `model` config, which also names its family."""
    return ModelConfig.from_dict({key: value for key, value in model.items() if key != "family"})


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


def _check_kept(kept: Sequence[int], steps: int) -> None:
    late = [step for step in kept if step > steps]
    if late:
        raise ValueError(f"checkpoint.keep_steps={kept} has {late[0]}, but the run ends at step {steps}")


def _largest_divisor(number: int, *, at_most: int) -> int:
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)
