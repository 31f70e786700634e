"""What a train config comes to on any machine, its shape and steps; whatever is wrong with it by itself ends here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm.composition.budget import check_family, model_config, steps_of
from slm.composition.schedules import check_schedule
from slm.model.config import ModelConfig

BASE_SHAPE = {
    "standard": (),
    "mup": ("base_width", "base_head_dim"),
    "completep": ("base_width", "base_head_dim", "base_depth"),
}
"""By `parametrization.name`: the keys of the base shape that it needs."""


def shape_and_steps(config: Mapping[str, Any], *, devices: int = 1) -> tuple[ModelConfig, int]:
    """The shape and the optimizer steps of a config whose values are of their kinds, over `devices` processes.

    Raises `ValueError` naming what cannot be met.
    """
    check_parametrization(config["parametrization"])
    model = model_config(config["model"])
    check_family(config, model)
    steps = steps_of(config["train"], model, devices=devices)
    check_schedule(config["schedule"], steps)
    _check_kept(config["checkpoint"].get("keep_steps", []), steps)
    return model, steps


def check_parametrization(parametrization: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a parametrisation that does not exist, or with less or more than its base shape."""
    name = parametrization["name"]
    if name not in BASE_SHAPE:
        raise ValueError(f"parametrization.name={name} must be one of {', '.join(BASE_SHAPE)}")
    for key in BASE_SHAPE[name]:
        value = parametrization.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            given = "null" if value is None else value
            raise ValueError(
                f"parametrization.{key}={given} must be a whole number of at least 1 for parametrization={name}: "
                "that of the shape at which optim.lr was tuned"
            )
    for key in sorted(parametrization.keys() - {"name", *BASE_SHAPE[name]}):
        raise ValueError(
            f"parametrization.{key}={parametrization[key]} has no effect with parametrization={name}: leave it out, or "
            "choose completep, which follows width and depth"
        )


def _check_kept(kept: Sequence[int], steps: int) -> None:
    late = [step for step in kept if step > steps]
    if late:
        raise ValueError(f"checkpoint.keep_steps={kept} has {late[0]}, but the run ends at step {steps}")
