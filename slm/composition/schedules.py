"""Learning rates over a run, as pure functions of the step.

Every schedule is a linear warm-up to the peak followed by one of the shapes below, which maps progress through the rest
of the run (0 to 1) to a share of the peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


def _cosine(progress: float, schedule: Mapping[str, Any]) -> float:
    """Half a cosine from 1 to `final_fraction` (arXiv:1608.03983, eq. 5, without restarts)."""
    final = schedule["final_fraction"]
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def _linear(progress: float, schedule: Mapping[str, Any]) -> float:
    return 1 - (1 - schedule["final_fraction"]) * progress


def _constant(progress: float, schedule: Mapping[str, Any]) -> float:
    return 1.0


def _wsd(progress: float, schedule: Mapping[str, Any]) -> float:
    """The peak, then a line down over the last `decay_fraction` of the run (arXiv:2404.06395; linear: 2405.18392)."""
    # decay_fraction is of the whole run, progress of what follows the warm-up.
    decay = schedule["decay_fraction"] / (1 - schedule["warmup_fraction"])
    return 1 - (1 - schedule["final_fraction"]) * max(0.0, (progress - (1 - decay)) / decay)


SHAPES: dict[str, Callable[[float, Mapping[str, Any]], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}


ROUNDING = 1e-9
"""Of the shares of a run, so that a warm-up and a decay that fill it exactly fit."""


def check_schedule(schedule: Mapping[str, Any], total_steps: int) -> None:
    """Raise `ValueError` for a schedule that does not exist or whose phases do not fit into a run of `total_steps`."""
    if schedule["name"] not in SHAPES:
        raise ValueError(f"schedule.name={schedule['name']} must be one of {', '.join(SHAPES)}")
    key = "warmup_fraction" if schedule.get("warmup_steps") is None else "warmup_steps"
    share = _in_shares(schedule, total_steps)["warmup_fraction"]
    if share >= 1:
        raise ValueError(f"schedule.{key}={schedule[key]} leaves no step after the warm-up of a {total_steps}-step run")
    if schedule["name"] == "wsd" and not 0 < schedule["decay_fraction"] <= 1 - share + ROUNDING:
        raise ValueError(
            f"schedule.decay_fraction={schedule['decay_fraction']} must be above 0 and leave room for "
            f"schedule.{key}={schedule[key]} in a run of {total_steps} steps"
        )


def lr_factor(step: int, total_steps: int, schedule: Mapping[str, Any]) -> float:
    """Share of the peak learning rate at optimizer step `step` (from 0) of `total_steps`."""
    schedule = _in_shares(schedule, total_steps)
    warmup = round(schedule["warmup_fraction"] * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return SHAPES[schedule["name"]](progress, schedule)


def steps_in_common(one: Mapping[str, Any], steps_of_one: int, other: Mapping[str, Any], steps_of_other: int) -> int:
    """At how many first steps runs under two schedules have exactly the same share of the peak."""
    both = min(steps_of_one, steps_of_other)
    same = (lr_factor(step, steps_of_one, one) == lr_factor(step, steps_of_other, other) for step in range(both))
    return next((step for step, equal in enumerate(same) if not equal), both)


def _in_shares(schedule: Mapping[str, Any], total_steps: int) -> Mapping[str, Any]:
    """The schedule with its warm-up as a share of the run, also where `warmup_steps` gives it."""
    steps = schedule.get("warmup_steps")
    return schedule if steps is None else {**schedule, "warmup_fraction": steps / total_steps}
