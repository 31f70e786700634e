"""Check the kind of each value in a train config against one table, before any value is used."""

import re
from collections.abc import Mapping
from typing import Any

from slm.model.config import QUANTISATIONS
from slm.runtime import settings as kinds
from slm.runtime.extensions import EXTENSIONS

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true", "64-true")

TASK_FILES = kinds.Kind(
    "a mapping of names (letters, digits, _ and -) to files, as in '{piqa: piqa.jsonl}'",
    lambda value: (
        isinstance(value, Mapping)
        and all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", str(name)) for name in value)
        and all(map(kinds.NAME.accepts, value.values()))
    ),
)
"""A name is part of the names of columns in metrics.csv, such as `tasks/piqa/bits_per_byte`."""

KINDS: dict[str, kinds.Kind] = {
    **dict.fromkeys(("name", "output_dir", "cache_dir"), kinds.NAME),
    "seed": kinds.SEED,
    "dry_run": kinds.Kind("true, false or plan", lambda value: isinstance(value, bool) or value == "plan"),
    "train.tokens": kinds.POSITIVE,
    **dict.fromkeys(("train.tokens_per_param", "train.flops"), kinds.or_null(kinds.POSITIVE)),
    **dict.fromkeys(("train.batch_tokens", "train.sequence_length"), kinds.COUNT),
    **dict.fromkeys(("train.log_every", "train.eval_every", "train.eval_tokens"), kinds.COUNT),
    "train.sample_tokens": kinds.NATURAL,
    "train.sample_prompt": kinds.TEXT,
    "checkpoint.every_steps": kinds.or_null(kinds.COUNT),
    "checkpoint.every_minutes": kinds.or_null(kinds.POSITIVE),
    "checkpoint.keep_best": kinds.SWITCH,
    "optim.name": kinds.one_of(*OPTIMIZERS),
    **dict.fromkeys(("optim.lr", "optim.eps", "optim.clip_norm"), kinds.POSITIVE),
    "optim.betas": kinds.BETAS,
    "optim.weight_decay": kinds.NOT_NEGATIVE,
    "optim.skip_factor": kinds.ABOVE_ONE,
    "optim.max_skipped_in_a_row": kinds.COUNT,
    "optim.ema_decay": kinds.or_null(kinds.BELOW_ONE),
    **dict.fromkeys(("parametrization.name", "schedule.name"), kinds.NAME),
    "schedule.warmup_fraction": kinds.SHARE,
    "trainer.accelerator": kinds.one_of("auto", "cpu", "cuda", "gpu", "mps"),
    "trainer.devices": kinds.AUTO_COUNT,
    "trainer.num_nodes": kinds.COUNT,
    "trainer.strategy": kinds.one_of("auto", "ddp", "fsdp"),
    "trainer.precision": kinds.one_of(*PRECISIONS),
    "trainer.compile": kinds.AUTO_SWITCH,
    "trainer.micro_batch_tokens": kinds.or_null(kinds.COUNT),
    "trainer.num_workers": kinds.AUTO_NATURAL,
    **dict.fromkeys(("logger.wandb", "logger.tensorboard"), kinds.SWITCH),
    "logger.project": kinds.NAME,
    "logger.tags": kinds.TEXTS,
}
"""Kinds of the keys that every config has."""

OPTIONAL_KINDS: dict[str, kinds.Kind] = {
    "extensions": EXTENSIONS,
    "logger.mlflow": kinds.SWITCH,
    "logger.tracking_uri": kinds.NAME,
    "train.document_masking": kinds.SWITCH,
    "train.val_tokens": kinds.or_null(kinds.COUNT),
    "train.eval_tasks": kinds.or_null(TASK_FILES),
    "train.eval_task_limit": kinds.or_null(kinds.COUNT),
    "checkpoint.keep_steps": kinds.COUNTS,
    "trainer.activation_checkpointing": kinds.AUTO_SWITCH,
    "trainer.deterministic": kinds.SWITCH,
    "schedule.warmup_steps": kinds.or_null(kinds.NATURAL),
    **dict.fromkeys(("branch_from", "init_from"), kinds.or_null(kinds.NAME)),
    "init_vocab": kinds.one_of("same", "match"),
    "quantize": kinds.or_null(kinds.one_of(*QUANTISATIONS)),
    "optim.momentum": kinds.BELOW_ONE,
    "optim.iterations": kinds.COUNT,
    **dict.fromkeys(("schedule.final_fraction", "schedule.decay_fraction"), kinds.SHARE),
    "data.paths": kinds.PATHS,
    "data.val_paths": kinds.or_null(kinds.PATHS),
    "data.val_fraction": kinds.or_null(kinds.SHARE),
    **dict.fromkeys(("data.text_column", "data.repo", "data.split"), kinds.NAME),
    **dict.fromkeys(("data.config", "data.revision", "data.val_split", "data.test_split"), kinds.or_null(kinds.NAME)),
    "data.template": kinds.or_null(kinds.NAME),
    "data.document_masking": kinds.SWITCH,
    **{f"data.max_{key}": kinds.or_null(kinds.COUNT) for key in ("document_bytes", "documents", "bytes")},
    "tokenizer.vocab_size": kinds.COUNT,
    "tokenizer.split": kinds.one_of("slm", "llama3"),
    "tokenizer.train_bytes": kinds.or_null(kinds.COUNT),
    "tokenizer.path": kinds.NAME,
}
"""Kinds of the keys that only some choices of a group have, or that configs of older runs lack."""

DISTILL_KINDS: dict[str, kinds.Kind] = {
    "distill.name": kinds.one_of("logits"),
    "distill.teacher": kinds.NAME,
    "distill.temperature": kinds.POSITIVE,
    "distill.weight": kinds.Kind(
        "a number above 0 and at most 1", lambda value: kinds.POSITIVE.accepts(value) and value <= 1
    ),
    "distill.top_k": kinds.or_null(kinds.COUNT),
    "distill.dtype": kinds.one_of("auto", "float32", "bfloat16", "float16"),
}
"""Kinds of the keys of `distill`, a group that only distilled runs have."""

LEGACY_VALUES: dict[str, Any] = {
    "train.document_masking": False,
    "train.val_tokens": None,
    "train.eval_tasks": None,
    "train.eval_task_limit": 200,  # has no effect without tasks
    "data.split": "train",
    "tokenizer.split": "slm",
    "init_from": None,
    "init_vocab": "same",
    "quantize": None,
}
"""Key that was added later -> the value at which runs do what runs did before the key existed."""

REQUIRED_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "optim": {"muon": ("momentum", "iterations")},
    "schedule": {
        "cosine": ("final_fraction",),
        "linear": ("final_fraction",),
        "wsd": ("final_fraction", "decay_fraction"),
    },
}
"""Group -> name of a choice -> the optional keys that this choice needs."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for the first value that is missing or of a wrong kind in a train config."""
    kinds.check_kinds(settings, KINDS, OPTIONAL_KINDS)
    if settings.get("distill") is not None:
        kinds.check_kinds(settings, DISTILL_KINDS)
    data_kinds = {key: kind for key, kind in OPTIONAL_KINDS.items() if key.startswith("data.")}
    sources = settings["data"].get("sources")
    for name, source in sources.items() if isinstance(sources, Mapping) else ():
        if isinstance(source, str):  # the name of a choice of conf/data
            continue
        with kinds.prefixed(f"data.sources.{name}"):
            kinds.check_kinds({"data": source}, {}, data_kinds)
    for group, choices in REQUIRED_KEYS.items():
        name = settings[group]["name"]
        for key in choices.get(name, ()):
            if key not in settings[group]:
                raise ValueError(f"{group}.name={name} needs {group}.{key}: choose {group}={name}, which sets it")
