"""Compute the learning rate of each step of a run with pure functions.

Every schedule is a linear warm-up to the peak, followed by one of the shapes below. A shape is a function of the
progress since the warm-up (from 0 to 1); its value is a fraction of the peak.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any


def _cosine(progress: float, schedule: Mapping[str, Any]) -> float:
    """Half a cosine from 1 to `final_fraction` (arXiv:1608.03983, eq. 5, without restarts)."""
    final = schedule["final_fraction"]
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def _linear(progress: float, schedule: Mapping[str, Any]) -> float:
    return 1 - (1 - schedule["final_fraction"]) * progress


def _wsd(progress: float, schedule: Mapping[str, Any]) -> float:
    """Constant, then linear over the last `decay_fraction` (WSD: arXiv:2404.06395; linear decay: arXiv:2405.18392)."""
    # decay_fraction is a fraction of the whole run; progress is a fraction of the steps after the warm-up.
    decay = schedule["decay_fraction"] / (1 - schedule["warmup_fraction"])
    return 1 - (1 - schedule["final_fraction"]) * max(0.0, (progress - (1 - decay)) / decay)


SHAPES: dict[str, Callable[[float, Mapping[str, Any]], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": lambda progress, schedule: 1.0,
    "wsd": _wsd,
}

FRACTION_TOLERANCE = 1e-9
"""Tolerance on the sum of two fractions, so that a warm-up and a decay that together fill the run are accepted."""


def check_schedule(schedule: Mapping[str, Any], total_steps: int) -> None:
    """Raise `ValueError` for an unknown schedule, or a schedule whose phases do not fit into `total_steps`."""
    if schedule["name"] not in SHAPES:
        raise ValueError(f"schedule.name={schedule['name']} must be one of {', '.join(SHAPES)}")
    key = "warmup_fraction" if schedule.get("warmup_steps") is None else "warmup_steps"
    warmup = _with_warmup_fraction(schedule, total_steps)["warmup_fraction"]
    if warmup >= 1:
        raise ValueError(f"schedule.{key}={schedule[key]} leaves no step after the warm-up of a {total_steps}-step run")
    if schedule["name"] == "wsd" and not 0 < schedule["decay_fraction"] <= 1 - warmup + FRACTION_TOLERANCE:
        raise ValueError(
            f"schedule.decay_fraction={schedule['decay_fraction']} must be above 0 and leave room for "
            f"schedule.{key}={schedule[key]} in a run of {total_steps} steps"
        )


def lr_factor(step: int, total_steps: int, schedule: Mapping[str, Any]) -> float:
    """Fraction of the peak learning rate at optimizer step `step` (from 0) of `total_steps`."""
    schedule = _with_warmup_fraction(schedule, total_steps)
    warmup = round(schedule["warmup_fraction"] * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return SHAPES[schedule["name"]](progress, schedule)


def count_common_steps(first: Mapping[str, Any], first_steps: int, second: Mapping[str, Any], second_steps: int) -> int:
    """Count the steps before two schedules first give a different fraction of the peak."""
    shorter = min(first_steps, second_steps)
    for step in range(shorter):
        if lr_factor(step, first_steps, first) != lr_factor(step, second_steps, second):
            return step
    return shorter


def _with_warmup_fraction(schedule: Mapping[str, Any], total_steps: int) -> Mapping[str, Any]:
    steps = schedule.get("warmup_steps")
    return schedule if steps is None else {**schedule, "warmup_fraction": steps / total_steps}
