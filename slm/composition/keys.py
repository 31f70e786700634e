"""Which keys a script reads: those of its conf/SCRIPT.yaml and of the choices of its groups. All others are refused.

Notable: Hydra recommends a `+` for a misspelt key, adds what stands behind it, and nobody reads that. So keys are
checked on the composed config, where a file of one's own may have brought them too. What a group may hold goes by the
choice that is in force (`optim.momentum` goes with muon): a key of another choice would be ignored as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException

from slm.model.config import ModelConfig

CONF = Path(__file__).parents[2] / "conf"
SCRIPTS = ("train", "evaluate", "sweep")
CHOSEN_BY = {
    "data": "source",
    "tokenizer": "kind",
    "optim": "name",
    "schedule": "name",
    "parametrization": "name",
    "launcher": "name",
}
"""The key of a group that says how the others are read."""
OPEN = {"sweep": ("columns", "sweep", "analysis")}
"""Groups of a script whose keys are a person's own, or are checked by name where they are read."""
SIMILAR = 0.6
"""Least ratio of `SequenceMatcher` for a suggestion; 0.6 is also the default of difflib."""

Tree = Mapping[str, Any]
"""Keys by group; the value of a key is anything but a mapping that is not empty."""


def check_keys(config: Mapping[str, Any], script: str, overrides: Iterable[str] = ()) -> None:
    """Raise `ValueError` for the first key of a composed config that `script` does not read.

    `overrides` are those of the command line, by which the message quotes what was given.
    """
    known = {**_known(script, config), **dict.fromkeys(OPEN.get(script, ()))}
    for key in unknown_keys(config, known):
        given = (item.lstrip("+") for item in overrides if item.startswith("+"))
        raise ValueError(_refusal(key, next((item for item in given if _is_about(item, key)), key), script, config))


def unknown_keys(config: Mapping[str, Any], known: Tree, prefix: str = "") -> Iterator[str]:
    """Dotted keys of `config` that are not in `known`; what lies below a key without a group of its own is free."""
    for key, value in config.items():
        if key not in known:
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping) and isinstance(known[key], Mapping) and known[key]:
            yield from unknown_keys(value, known[key], f"{prefix}{key}.")


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """`; did you mean KEY?` with the nearest of the dotted keys `known`, or nothing where none is near."""

    def likeness(other: str) -> float:
        last = SequenceMatcher(None, _last(key), _last(other)).ratio()
        return max(SequenceMatcher(None, key, other).ratio(), 0.9 * last)  # of equals, the one in the same group

    near = max(known, key=likeness, default="")
    return f"; did you mean {near}?" if near and likeness(near) >= SIMILAR else ""


@contextmanager
def unknown_keys_named(script: str) -> Iterator[None]:
    """Around Hydra's composition: its refusal of a key, which recommends a `+`, becomes a `ValueError` of ours."""
    try:
        yield
    except ConfigCompositionException as error:
        found = re.match(r"Could not (?:override|delete from config\.) '([^'@]+)", str(error))
        if not found:
            raise
        quoted = re.search(r"use \+(.*)", str(error))
        raise ValueError(_refusal(found[1], quoted[1] if quoted else found[1], script)) from None


def paths_of(tree: Tree, prefix: str = "") -> list[str]:
    """Dotted keys of a tree, groups included."""
    found = []
    for key, value in tree.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += paths_of(value, f"{prefix}{key}.")
    return found


def _refusal(key: str, given: str, script: str, config: Mapping[str, Any] = MappingProxyType({})) -> str:
    if _is_setting_of(script, key):
        group = key.partition(".")[0]
        choices = [name for name, tree in _choices(group).items() if key in paths_of({group: tree})]
        if choices and group in CHOSEN_BY:
            by = CHOSEN_BY[group]
            here = f"with {group}.{by}={config[group][by]}" if group in config else "here"
            return f"{key} has no effect {here}: it goes with {' or '.join(f'{group}={name}' for name in choices)}"
        return f"{key} is not in the config file that was given: add it, as +{given}"
    if script == "sweep" and _is_setting_of("train", key):
        return f"{given} is a setting of train.py: give it for all runs, as in \"sweep.also=['{given}']\""
    for other in SCRIPTS:
        if _is_setting_of(other, key):
            return f"{given} is a setting of {other}.py, not of {script}.py"
    near = did_you_mean(key, paths_of(_known(script, {})))
    return f"{key} is not a setting of {script}.py{near or f': python {script}.py --help lists them'}"


def _is_setting_of(script: str, key: str) -> bool:
    return key in paths_of(_known(script, {}))


def _is_about(override: str, key: str) -> bool:
    """Whether an override sets a key, or a group of which it is."""
    name = override.partition("=")[0].partition("@")[0]
    return name == key or key.startswith(f"{name}.") or name.startswith(f"{key}.")


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _known(script: str, config: Mapping[str, Any]) -> Tree:
    """Keys that the script reads, given the choices in `config`; where it does not say, those of every choice."""
    file = _file(f"{script}.yaml")
    tree = dict(_merged([file]))
    for group in _groups(script):
        choices, now = list(_choices(group).values()), config.get(group)
        if group in CHOSEN_BY and isinstance(now, Mapping):
            by = CHOSEN_BY[group]
            choices = [one for one in choices if one.get(by) == now.get(by)] or choices
        tree[group] = _merged([*choices, tree.get(group) or {}])
    return tree


def _groups(script: str) -> Sequence[str]:
    entries = [entry for entry in _file(f"{script}.yaml")["defaults"] if isinstance(entry, dict)]
    return [name for entry in entries for name in entry if not name.startswith("override ")]


@cache
def _choices(group: str) -> dict[str, Tree]:
    """The keys of each choice of a group; none of a group whose choices set keys of others."""
    if group == "model":  # a preset has what it changes alone
        return {"base": {"family": None, **{field.name: None for field in fields(ModelConfig)}}}
    files = sorted((CONF / group).glob("*.yaml"))
    own = [file for file in files if "@package _global_" not in file.read_text(encoding="utf-8")]
    return {file.stem: _with_parents(group, file.stem) for file in own}


def _with_parents(group: str, name: str) -> Tree:
    file = _file(f"{group}/{name}.yaml")
    parents = [entry for entry in file.get("defaults", []) if entry != "_self_"]
    return _merged([*(_with_parents(group, parent) for parent in parents), file])


def _merged(trees: Sequence[Tree]) -> Tree:
    return {key: value for tree in trees for key, value in tree.items() if key != "defaults"}


@cache
def _file(name: str) -> dict[str, Any]:
    return yaml.load((CONF / name).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
