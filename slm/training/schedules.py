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


def check_schedule(schedule: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a schedule that does not exist or whose phases do not fit into a run."""
    if schedule["name"] not in SHAPES:
        raise ValueError(f"schedule.name={schedule['name']} must be one of {', '.join(SHAPES)}")
    if schedule["warmup_fraction"] >= 1:
        raise ValueError(f"schedule.warmup_fraction={schedule['warmup_fraction']} leaves no step after the warm-up")
    if schedule["name"] == "wsd" and not 0 < schedule["decay_fraction"] <= 1 - schedule["warmup_fraction"]:
        raise ValueError(
            f"schedule.decay_fraction={schedule['decay_fraction']} must be above 0 and leave room for "
            f"schedule.warmup_fraction={schedule['warmup_fraction']}"
        )


def lr_factor(step: int, total_steps: int, schedule: Mapping[str, Any]) -> float:
    """Share of the peak learning rate at optimizer step `step` (from 0) of `total_steps`."""
    warmup = round(schedule["warmup_fraction"] * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return SHAPES[schedule["name"]](progress, schedule)
