"""Short names for checkpoints, unlike each other: for tables and legends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

GENERIC = ("model", "checkpoints")
"""Folder names that say nothing by themselves."""


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """The shortest ends of paths (or hub ids) that tell all apart; never only the name of a run's export folder."""
    parts = [[part for part in PurePath(name).parts if part not in ("/", ".", "..")] or [name] for name in checkpoints]
    longest = max(len(one) for one in parts)
    names = checkpoints
    for count in range(1, longest + 1):
        names = ["/".join(one[-max(count, 2 if one[-1] in GENERIC else 1) :]) for one in parts]
        if len(set(names)) == len(names):
            return list(names)
    return list(checkpoints)
