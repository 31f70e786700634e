"""The kinds of values that settings may have, and the checks of settings that all programs share."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slm.runtime.words import is_number


class Kind(NamedTuple):
    """What a value must be: `words` follow "must be" in a message, and `accepts` tests a value."""

    words: str
    accepts: Callable[[Any], bool]


def or_null(kind: Kind) -> Kind:
    """Return the kind that accepts null and whatever `kind` accepts."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.accepts(value))


def one_of(*allowed: str) -> Kind:
    """Return the kind that accepts only the `allowed` words."""
    return Kind(f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed)


def list_of(kind: Kind, plural: str, *, min_length: int = 1) -> Kind:
    """Return the kind for lists of at least `min_length` values of `kind`; messages call the values `plural`."""
    return Kind(
        f"a list of {plural}",
        lambda value: isinstance(value, list) and len(value) >= min_length and all(map(kind.accepts, value)),
    )


def whole_number(least: int) -> Kind:
    """Return the kind for whole numbers of at least `least`; 1e6 counts as a whole number."""
    return Kind(
        f"a whole number of at least {least}", lambda value: is_number(value) and value == int(value) and value >= least
    )


SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
AUTO_SWITCH = Kind("true, false or auto", lambda value: isinstance(value, bool) or value == "auto")
TEXT = Kind("text", lambda value: isinstance(value, str))
NAME = Kind("text that is not empty", lambda value: isinstance(value, str) and bool(value.strip()))
TEXTS = list_of(TEXT, "texts", min_length=0)
PATHS = Kind("a path, a glob or a list of them", lambda value: TEXT.accepts(value) or TEXTS.accepts(value))
COUNT = whole_number(1)
COUNTS = list_of(COUNT, "whole numbers of at least 1", min_length=0)
NATURAL = whole_number(0)
AUTO_COUNT = Kind(f"auto, or {COUNT.words}", lambda value: value == "auto" or COUNT.accepts(value))
AUTO_NATURAL = Kind(f"auto, or {NATURAL.words}", lambda value: value == "auto" or NATURAL.accepts(value))
SEED = Kind(
    "a whole number from 0 to 2^63 - 1",
    lambda value: isinstance(value, int) and NATURAL.accepts(value) and value < 2**63,
)
POSITIVE = Kind("a number above 0", lambda value: is_number(value) and value > 0)
NOT_NEGATIVE = Kind("a number of at least 0", lambda value: is_number(value) and value >= 0)
ABOVE_ONE = Kind("a number above 1", lambda value: is_number(value) and value > 1)
BELOW_ONE = Kind("a number above 0 and below 1", lambda value: is_number(value) and 0 < value < 1)
SHARE = Kind("a share from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
BETAS = Kind(
    "two numbers of at least 0 and below 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(is_number(x) and 0 <= x < 1 for x in value),
)
SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}  # refused: 2k may be 2,000 or 2,048


RENAMED_KEYS = {"data.path": "data.repo", "data.subset": "data.config"}
"""Old name of a key -> its name since 2026-11-29. Runs from before have the old names in config.yaml."""


def check_kinds(settings: Mapping[str, Any], kinds: Mapping[str, Kind], optional: Mapping[str, Kind] = {}) -> None:
    """Raise `ValueError` if a value is missing or not of its kind. Keys are dotted; `optional` keys may be absent."""
    for key, kind in {**kinds, **optional}.items():
        *groups, name = key.split(".")
        group: Any = settings
        for depth, group_name in enumerate(groups, 1):
            group = group.get(group_name)
            if not isinstance(group, Mapping):
                given = f"{'.'.join(groups[:depth])}={as_typed(group)}"
                raise ValueError(f"{given} must be a group of settings: set its keys, as in {key}=VALUE")
        if name in group:
            check_kind(key, group[name], kind)
        elif key not in optional:
            raise ValueError(f"{key} is missing: it must be {kind.words}")


def check_kind(key: str, value: Any, kind: Kind) -> None:
    """Raise `ValueError` for a value that is not of its kind."""
    if not kind.accepts(value):
        raise ValueError(f"{key}={as_typed(value)} must be {kind.words}{suffix_hint(value)}")


@contextmanager
def prefixed(setting: str) -> Iterator[None]:
    """Let each `ValueError` of this context begin with the setting that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


def as_typed(value: Any) -> str:
    """Return a value as a user types it on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings under dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def suffix_hint(value: Any) -> str:
    """Return a hint to append to an error message, such as `; write 1_000_000` for `1M`, or an empty string."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMBGT])", value) if isinstance(value, str) else None
    if match is None:
        return ""
    number, suffix = match.groups()
    return f"; write {round(float(number) * SUFFIXES[suffix.upper()]):_}"


def plain_settings(config: DictConfig) -> dict[str, Any]:
    """Return the config as plain values. Raises `ValueError` if a value is missing or cannot be resolved."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        message = str(error).splitlines()[0]
        if "Missing mandatory" in message:
            message = f"{key} must be set: {key}=VALUE"
        raise ValueError(message) from error
