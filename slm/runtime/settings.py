"""Kinds of the values in a config: one way to check settings, whatever program reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Kind = tuple[str, Callable[[Any], bool]]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, least: int) -> bool:
    return _number(value) and value == int(value) and value >= least


def or_null(kind: Kind) -> Kind:
    """That kind, or nothing."""
    return f"{kind[0]}, or null", lambda value: value is None or kind[1](value)


def one_of(*allowed: str) -> Kind:
    """One of some words."""
    return f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed


def list_of(kind: Kind, what: str, *, least: int = 1) -> Kind:
    """A list of at least so many values of a kind, called `what`."""
    return (
        f"a list of {what}",
        lambda value: isinstance(value, list) and len(value) >= least and all(map(kind[1], value)),
    )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


SWITCH: Kind = ("true or false", lambda value: isinstance(value, bool))


AUTO_SWITCH: Kind = ("true, false or auto", lambda value: isinstance(value, bool) or value == "auto")


TEXT: Kind = ("text", lambda value: isinstance(value, str))


NAME: Kind = ("text that is not empty", lambda value: isinstance(value, str) and value != "")


TEXTS: Kind = ("a list of texts", _texts)


PATHS: Kind = ("a path, a glob or a list of them", lambda value: isinstance(value, str) or _texts(value))


COUNT: Kind = ("a whole number of at least 1", lambda value: _whole(value, 1))


COUNTS: Kind = list_of(COUNT, "whole numbers of at least 1", least=0)


NATURAL: Kind = ("a whole number of at least 0", lambda value: _whole(value, 0))


SEED: Kind = (
    "a whole number from 0 to 2^63 - 1",
    lambda value: isinstance(value, int) and _whole(value, 0) and value < 2**63,
)


POSITIVE: Kind = ("a number above 0", lambda value: _number(value) and value > 0)


NOT_NEGATIVE: Kind = ("a number of at least 0", lambda value: _number(value) and value >= 0)


ABOVE_ONE: Kind = ("a number above 1", lambda value: _number(value) and value > 1)


BELOW_ONE: Kind = ("a number above 0 and below 1", lambda value: _number(value) and 0 < value < 1)


SHARE: Kind = ("a share from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)


BETAS: Kind = (
    "two numbers of at least 0 and below 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(_number(b) and 0 <= b < 1 for b in value),
)


SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


def check_kinds(settings: Mapping[str, Any], kinds: Mapping[str, Kind], optional: Mapping[str, Kind]) -> None:
    """Raise `ValueError` for the first value that is missing or not of its kind; `optional` keys may be absent.

    The message names the key, what it got and what is accepted.
    """
    for key, kind in {**kinds, **optional}.items():
        *groups, name = key.split(".")
        place: Any = settings
        for depth, group in enumerate(groups, 1):
            place = place.get(group)
            if not isinstance(place, Mapping):
                path = ".".join(groups[:depth])
                raise ValueError(f"{path}={place} must be a group of settings, such as one of conf/{groups[0]}/*.yaml")
        wanted, fits = kind
        if name not in place:
            if key in optional:
                continue
            raise ValueError(f"{key} is missing: it must be {wanted}")
        if not fits(place[name]):
            raise ValueError(f"{key}={_shown(place[name])} must be {wanted}{written_out(place[name])}")


def written_out(value: Any) -> str:
    """`; write 1_000_000` for `1M`. Such a value is refused, since 2k tokens may be 2,000 or 2,048 to who gives it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMBGT])", value) if isinstance(value, str) else None
    return f"; write {round(float(found[1]) * SUFFIXES[found[2].upper()]):_}" if found else ""


def plain_settings(config: DictConfig) -> dict[str, Any]:
    """The config as plain values. Raises `ValueError` for a value that is missing or refers to nothing."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        message = str(error).splitlines()[0]
        raise ValueError(f"{key} must be set: {key}=VALUE" if "Missing mandatory" in message else message) from error


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
