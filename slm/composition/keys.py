"""The keys that a script reads: those of its conf/SCRIPT.yaml and of the choices of its groups. All others are refused.

Hydra recommends a `+` for a misspelt key and adds the key, which then nobody reads. So keys are checked on the composed
config, to which a user's own file may also have added some. The keys of a group depend on the choice in force:
`optim.momentum` belongs to muon, and under adamw it would be ignored as well.
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
"""The key of a group that says which choice is in force."""
OPEN = {"sweep": ("columns", "sweep", "analysis")}
"""Groups of a script whose keys are the user's own, or are checked where they are read."""
MIN_SIMILARITY = 0.6
"""Least ratio of `SequenceMatcher` for a suggestion; also difflib's default."""

Tree = Mapping[str, Any]
"""Keys by group. A value that is not a mapping, or is an empty one, stands for a key."""


def check_keys(config: Mapping[str, Any], script: str, overrides: Iterable[str] = ()) -> None:
    """Raise `ValueError` for the first key of a composed config that `script` does not read.

    `overrides` are those of the command line; the message quotes the one that set the key.
    """
    known = {**_keys_read_by(script, config), **dict.fromkeys(OPEN.get(script, ()))}
    for key in unknown_keys(config, known):
        added = (item.lstrip("+") for item in overrides if item.startswith("+"))
        given = next((item for item in added if _sets(item, key)), key)
        raise ValueError(_refusal(key, given, script, config))


def unknown_keys(config: Mapping[str, Any], known: Tree, prefix: str = "") -> Iterator[str]:
    """Dotted keys of `config` that are not in `known`. Anything may lie below a known key that is not a group."""
    for key, value in config.items():
        if key not in known:
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping) and isinstance(known[key], Mapping) and known[key]:
            yield from unknown_keys(value, known[key], f"{prefix}{key}.")


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """`; did you mean KEY?` with the most similar of the dotted keys `known`, or nothing if none is similar."""

    def similarity(other: str) -> float:
        last_parts = SequenceMatcher(None, key.rpartition(".")[2], other.rpartition(".")[2]).ratio()
        # 0.9: of two equally similar names, the one in the same group wins.
        return max(SequenceMatcher(None, key, other).ratio(), 0.9 * last_parts)

    nearest = max(known, key=similarity, default="")
    return f"; did you mean {nearest}?" if nearest and similarity(nearest) >= MIN_SIMILARITY else ""


def dotted_keys(tree: Tree, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a tree, groups included."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{key}.")


@contextmanager
def unknown_keys_named(script: str) -> Iterator[None]:
    """Within, a key that Hydra refuses is a `ValueError` of ours, since Hydra's message recommends a `+`."""
    try:
        yield
    except ConfigCompositionException as error:
        refused = re.match(r"Could not (?:override|delete from config\.) '([^'@]+)", str(error))
        if not refused:
            raise
        quoted = re.search(r"use \+(.*)", str(error))
        raise ValueError(_refusal(refused[1], quoted[1] if quoted else refused[1], script)) from None


def _refusal(key: str, given: str, script: str, config: Mapping[str, Any] = MappingProxyType({})) -> str:
    readers = [name for name in SCRIPTS if key in dotted_keys(_keys_read_by(name, {}))]
    if script in readers:
        group = key.partition(".")[0]
        choices = [name for name, tree in _choices(group).items() if key in dotted_keys({group: tree})]
        if choices and group in CHOSEN_BY:
            by = CHOSEN_BY[group]
            here = f"with {group}.{by}={config[group][by]}" if group in config else "here"
            return f"{key} has no effect {here}: it goes with {' or '.join(f'{group}={name}' for name in choices)}"
        return f"{key} is not in the config file that was given: add it, as +{given}"
    if script == "sweep" and "train" in readers:
        return f"{given} is a setting of train.py: give it for all runs, as in \"sweep.also=['{given}']\""
    if readers:
        return f"{given} is a setting of {readers[0]}.py, not of {script}.py"
    near = did_you_mean(key, dotted_keys(_keys_read_by(script, {})))
    return f"{key} is not a setting of {script}.py{near or f': python {script}.py --help lists them'}"


def _sets(override: str, key: str) -> bool:
    """Whether an override sets `key`, its group, or a key below it."""
    name = override.partition("=")[0].partition("@")[0]
    return name == key or key.startswith(f"{name}.") or name.startswith(f"{key}.")


def _keys_read_by(script: str, config: Mapping[str, Any]) -> Tree:
    """The keys of `script` under the choices in `config`; of a group whose choice it does not state, all choices'."""
    file = _file(f"{script}.yaml")
    tree = dict(_merged([file]))
    groups = [name for entry in file["defaults"] if isinstance(entry, dict) for name in entry]
    for group in (name for name in groups if not name.startswith("override ")):
        choices, chosen = list(_choices(group).values()), config.get(group)
        if group in CHOSEN_BY and isinstance(chosen, Mapping):
            by = CHOSEN_BY[group]
            matching = [choice for choice in choices if choice.get(by) == chosen.get(by)]
            # A data source of the user's own has keys of its own, which it checks.
            choices = matching or ([] if group == "data" else choices)
        tree[group] = _merged([*choices, tree.get(group) or {}])
    return tree


@cache
def _choices(group: str) -> dict[str, Tree]:
    """The keys of each choice of a group, but for choices that set keys of other groups."""
    if group == "model":  # a preset lists only the fields that it changes
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
