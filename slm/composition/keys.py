"""Refuse keys that a script does not read: keys in neither conf/SCRIPT.yaml nor the choices of the script's groups.

For a misspelt key Hydra recommends a `+`, which adds a key that nothing reads. So all keys of the composed config are
checked, including keys from a user's own file. The keys of a group depend on its choice: `optim.momentum` belongs to
muon, and adamw would ignore it.
"""

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
from slm.runtime.settings import RENAMED_KEYS

CONF = Path(__file__).parents[2] / "conf"
SCRIPTS = ("train", "evaluate", "sweep")
CHOICE_KEYS = {"data": "source", "tokenizer": "kind"}
CHOICE_KEYS |= dict.fromkeys(("optim", "schedule", "parametrization", "launcher", "distill"), "name")
"""Group -> the key of the group whose value says which choice was made, such as `optim.name`."""
UNCHECKED_GROUPS = {"sweep": ("columns", "sweep", "analysis")}
"""Script -> groups whose keys are the user's own, or are checked where they are read."""
USER_GROUPS = ("data.sources", "data.weights")
"""Keys below which the user chooses the names of keys."""
MIN_SIMILARITY = 0.6
"""Lowest ratio of `SequenceMatcher` at which a key is suggested; the default of difflib."""

Tree = Mapping[str, Any]
"""Keys in nested groups. A value that is a mapping with entries is a group; any other value belongs to a key."""


def check_keys(config: Mapping[str, Any], script: str, overrides: Iterable[str] = ()) -> None:
    """Raise `ValueError` for the first key of `config` that `script` does not read, with the override that set it."""
    allowed = {**_keys_read_by(script, config), **dict.fromkeys(UNCHECKED_GROUPS.get(script, ()))}
    for key in unknown_keys(config, allowed):
        added = (override.lstrip("+") for override in overrides if override.startswith("+"))
        quoted = next((override for override in added if _sets_key(override, key)), key)
        raise ValueError(_refusal(key, quoted, script, config))


def unknown_keys(config: Mapping[str, Any], allowed: Tree, prefix: str = "") -> Iterator[str]:
    """Dotted keys of `config` that are not in `allowed`. An allowed key that is not a group may have any keys."""
    for key, value in config.items():
        if key not in allowed:
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping) and isinstance(allowed[key], Mapping) and allowed[key]:
            yield from unknown_keys(value, allowed[key], f"{prefix}{key}.")


def did_you_mean(key: str, candidates: Iterable[str]) -> str:
    """`; did you mean KEY?` with the most similar dotted key among `candidates`, or "" if none is similar."""
    group, _, name = key.rpartition(".")

    def similarity(other: str) -> float:
        other_group, _, other_name = other.rpartition(".")
        # The factor makes a name in the same group win over an equally similar name in another group.
        return SequenceMatcher(None, name, other_name).ratio() * (1 if group == other_group else 0.9)

    nearest = max((other for other in candidates if not key.startswith(f"{other}.")), key=similarity, default="")
    return f"; did you mean {nearest}?" if nearest and similarity(nearest) >= MIN_SIMILARITY else ""


def dotted_keys(tree: Tree, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a tree and of all its groups, and the names of the groups themselves."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{key}.")


@contextmanager
def explain_unknown_keys(script: str) -> Iterator[None]:
    """Raise our own `ValueError` for a key that `script` does not have; Hydra's error would recommend a `+`."""
    try:
        yield
    except ConfigCompositionException as error:
        refused = re.match(r"Could not (?:override|delete from config\.) '([^'@]+)", str(error))
        if not refused:
            raise
        advice = re.search(r"use \+(.*)", str(error))
        entry = re.search(r"full_key: (\S+)", str(error.__cause__))
        if entry and advice and entry[1].startswith(tuple(f"{group}." for group in USER_GROUPS)):
            raise ValueError(f"{entry[1]} does not exist yet: add it with +{advice[1]}") from None
        raise ValueError(_refusal(refused[1], advice[1] if advice else refused[1], script)) from None


def _refusal(key: str, quoted: str, script: str, config: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Why `script` does not read `key`, and what to do; `quoted` is the override that set the key, without its `+`."""
    if key in RENAMED_KEYS:
        return f"{quoted} has another name now: give {RENAMED_KEYS[key]}{quoted.removeprefix(key)}"
    readers = [name for name in SCRIPTS if key in dotted_keys(_keys_read_by(name, {}))]
    if script in readers:
        group = key.partition(".")[0]
        choices = [name for name, tree in keys_of_choices(group).items() if key in dotted_keys({group: tree})]
        if choices and group in CHOICE_KEYS:
            choice_key = CHOICE_KEYS[group]
            chosen = f"with {group}.{choice_key}={config[group][choice_key]}" if group in config else "here"
            needed = " or ".join(f"{group}={name}" for name in choices)
            return f"{key} has no effect {chosen}: it needs {needed}"
        return f"{key} is not in your config file: add it with +{quoted}"
    if script == "sweep" and "train" in readers:
        return f"{quoted} is a setting of train.py: set it for all runs with \"sweep.also=['{quoted}']\""
    if readers:
        return f"{quoted} is a setting of {readers[0]}.py, not of {script}.py"
    suggestion = did_you_mean(key, dotted_keys(_keys_read_by(script, {})))
    return f"{key} is not a setting of {script}.py" + (suggestion or f": python {script}.py --help lists all settings")


def _sets_key(override: str, key: str) -> bool:
    """Whether an override sets `key`, its group, or a key below it."""
    name = re.split("[=@]", override)[0]
    return name == key or key.startswith(f"{name}.") or name.startswith(f"{key}.")


def _keys_read_by(script: str, config: Mapping[str, Any]) -> Tree:
    """The keys of `script`. A group has the keys of its choice in `config`, or of all its choices if none is made."""
    file = _config_file(f"{script}.yaml")
    tree = dict(_merged([file]))
    groups = [name for entry in file["defaults"] if isinstance(entry, dict) for name in entry]
    groups = [name for name in groups if not name.startswith("override ")]  # without the groups of Hydra itself
    for group in groups:
        choices = list(keys_of_choices(group).values())
        settings = config.get(group)
        if group in CHOICE_KEYS and isinstance(settings, Mapping):
            choice_key = CHOICE_KEYS[group]
            matching = [choice for choice in choices if choice.get(choice_key) == settings.get(choice_key)]
            # A data source that an extension adds checks its own keys.
            if matching or group == "data":
                choices = matching
        tree[group] = _merged([*choices, tree.get(group) or {}])
        if group == "data":  # the names of the sources of a mix are the user's own
            tree[group] = dict.fromkeys(tree[group])
    return tree


@cache
def keys_of_choices(group: str) -> dict[str, Tree]:
    """Name of a choice of `group` -> its keys; choices that set keys of other groups are left out."""
    if group == "model":  # the file of a model lists only the fields that it changes
        return {"base": {"family": None, **{field.name: None for field in fields(ModelConfig)}}}
    files = sorted((CONF / group).glob("*.yaml"))
    files = [file for file in files if "@package _global_" not in file.read_text(encoding="utf-8")]
    return {file.stem: _keys_of_choice(group, file.stem) for file in files}


def default_choice(script: str, group: str) -> Tree:
    """The keys in the file of the choice that a script makes by default, without those of the files it starts from."""
    entries = (entry for entry in _config_file(f"{script}.yaml")["defaults"] if isinstance(entry, dict))
    name = next(entry[group] for entry in entries if group in entry)
    return _merged([_config_file(f"{group}/{name}.yaml")])


def _keys_of_choice(group: str, name: str) -> Tree:
    """The keys of one choice, including the keys of the choices in its defaults list."""
    file = _config_file(f"{group}/{name}.yaml")
    parents = [entry for entry in file.get("defaults", []) if entry != "_self_"]
    return _merged([*(_keys_of_choice(group, parent) for parent in parents), file])


def _merged(trees: Sequence[Tree]) -> Tree:
    """The keys of all trees, without Hydra's `defaults`. If several trees have a key, the last tree counts."""
    return {key: value for tree in trees for key, value in tree.items() if key != "defaults"}


@cache
def _config_file(name: str) -> dict[str, Any]:
    return yaml.load((CONF / name).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
