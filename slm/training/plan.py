"""From a config to the numbers of a run on this hardware: steps, batches, passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm.composition.budget import shape_and_steps
from slm.composition.settings import BEFORE_KEYS
from slm.model.config import ModelConfig
from slm.model.counts import flops_per_token, num_params
from slm.training.hardware import Hardware
from slm.training.parametrization import Rules, make_rules, with_multipliers


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
        return self.train_tokens * flops_per_token(self.model, self.sequence_length)

    @property
    def state_bytes(self) -> int:
        """Weights, gradients, Adam's two moments (Muon has one) and the average, if one is kept, all float32."""
        return (20 if self.averaged else 16) * num_params(self.model)


def make_plan(config: Mapping[str, Any], hardware: Hardware) -> Plan:
    """The plan of a config whose values are of the right kinds. Raises `ValueError` naming what cannot be met."""
    train = config["train"]
    shape, steps = shape_and_steps(config, devices=hardware.world_size)
    model = with_multipliers(config["parametrization"], shape)
    length = int(train["sequence_length"])
    local = int(train["batch_tokens"]) // (length * hardware.world_size)
    micro = _largest_divisor(local, at_most=max(1, hardware.micro_batch_tokens // length))
    return Plan(
        model=model,
        rules=make_rules(config["parametrization"], model),
        steps=steps,
        batch_size=local * hardware.world_size,
        micro_batch_size=micro,
        accumulation=local // micro,
        sequence_length=length,
        document_masking=train.get("document_masking", BEFORE_KEYS["train.document_masking"]),
        averaged=config["optim"]["ema_decay"] is not None,
    )


def _largest_divisor(number: int, *, at_most: int) -> int:
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)
