"""Kinds of the values in a config: one table, checked before anything else looks at them."""

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
DRY_RUN: Kind = ("true, false or plan", lambda value: isinstance(value, bool) or value == "plan")
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

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "bf16-mixed", "32-true", "64-true")

KINDS: dict[str, Kind] = {
    "name": NAME,
    "seed": SEED,
    "output_dir": NAME,
    "cache_dir": NAME,
    "dry_run": DRY_RUN,
    "train.tokens": POSITIVE,
    "train.tokens_per_param": or_null(POSITIVE),
    "train.flops": or_null(POSITIVE),
    "train.batch_tokens": COUNT,
    "train.sequence_length": COUNT,
    "train.log_every": COUNT,
    "train.eval_every": COUNT,
    "train.eval_tokens": COUNT,
    "train.sample_tokens": NATURAL,
    "train.sample_prompt": TEXT,
    "checkpoint.every_steps": or_null(COUNT),
    "checkpoint.every_minutes": or_null(POSITIVE),
    "checkpoint.keep_best": SWITCH,
    "optim.name": one_of(*OPTIMIZERS),
    "optim.lr": POSITIVE,
    "optim.betas": BETAS,
    "optim.eps": POSITIVE,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.clip_norm": POSITIVE,
    "optim.skip_factor": ABOVE_ONE,
    "optim.max_skipped_in_a_row": COUNT,
    "optim.ema_decay": or_null(BELOW_ONE),
    "parametrization.name": NAME,
    "schedule.name": NAME,
    "schedule.warmup_fraction": SHARE,
    "trainer.accelerator": one_of("auto", "cpu", "cuda", "gpu"),
    "trainer.devices": ("auto or a whole number of at least 1", lambda value: value == "auto" or COUNT[1](value)),
    "trainer.num_nodes": COUNT,
    "trainer.strategy": one_of("auto", "ddp", "fsdp"),
    "trainer.precision": one_of(*PRECISIONS),
    "trainer.compile": AUTO_SWITCH,
    "trainer.micro_batch_tokens": or_null(COUNT),
    "trainer.num_workers": NATURAL,
    "logger.wandb": SWITCH,
    "logger.tensorboard": SWITCH,
    "logger.project": NAME,
    "logger.tags": TEXTS,
}
"""Kinds of keys that every config has."""

OPTIONAL_KINDS: dict[str, Kind] = {
    "train.document_masking": SWITCH,
    "train.val_tokens": or_null(COUNT),
    "checkpoint.keep_steps": COUNTS,
    "schedule.warmup_steps": or_null(NATURAL),
    "branch_from": or_null(NAME),
    "optim.momentum": BELOW_ONE,
    "optim.iterations": COUNT,
    "schedule.final_fraction": SHARE,
    "schedule.decay_fraction": SHARE,
    "data.paths": PATHS,
    "data.val_paths": or_null(PATHS),
    "data.val_fraction": or_null(SHARE),
    "data.text_column": NAME,
    "data.max_document_bytes": or_null(COUNT),
    "data.max_documents": or_null(COUNT),
    "data.max_bytes": or_null(COUNT),
    "tokenizer.vocab_size": COUNT,
    "tokenizer.train_bytes": or_null(COUNT),
    "tokenizer.path": NAME,
}
"""Kinds of keys that some choices of their groups have, or that configs of older runs lack."""

SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}

BEFORE_KEYS: dict[str, Any] = {"train.document_masking": False, "train.val_tokens": None}
"""What runs did that were begun before the key existed."""

NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "optim": {"muon": ("momentum", "iterations")},
    "schedule": {
        "cosine": ("final_fraction",),
        "linear": ("final_fraction",),
        "wsd": ("final_fraction", "decay_fraction"),
    },
}
"""By the name of a group's choice: those of the optional keys that it cannot do without."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for the first value that is missing or of a wrong kind in a train config."""
    check_kinds(settings, KINDS, OPTIONAL_KINDS)
    for group, choices in NEEDED.items():
        name = settings[group]["name"]
        for key in choices.get(name, ()):
            if key not in settings[group]:
                raise ValueError(f"{group}.name={name} without {group}.{key}: choose {group}={name}, which sets it")


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
