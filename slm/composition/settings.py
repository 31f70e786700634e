"""Kinds of the values in a config: one table, checked before anything else looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.runtime.extensions import EXTENSIONS
from slm.runtime.settings import (
    ABOVE_ONE,
    AUTO_SWITCH,
    BELOW_ONE,
    BETAS,
    COUNT,
    COUNTS,
    NAME,
    NATURAL,
    NOT_NEGATIVE,
    PATHS,
    POSITIVE,
    SEED,
    SHARE,
    SWITCH,
    TEXT,
    TEXTS,
    Kind,
    check_kinds,
    one_of,
    or_null,
)

DRY_RUN = Kind("true, false or plan", lambda value: isinstance(value, bool) or value == "plan")

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
    "trainer.devices": Kind(
        "auto or a whole number of at least 1", lambda value: value == "auto" or COUNT.accepts(value)
    ),
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
    "extensions": EXTENSIONS,
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
