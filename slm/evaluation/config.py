"""Check the settings of `conf/evaluate.yaml`. Imports no torch, so that `--help` and error messages appear quickly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slm.data.local import files_to_evaluate
from slm.evaluation.tasks import MOBILELLM
from slm.runtime.address import local_folder
from slm.runtime.command_line import cache_home, new_folder_path
from slm.runtime.settings import (
    AUTO_SWITCH,
    NAME,
    NOT_NEGATIVE,
    SWITCH,
    TEXT,
    TEXTS,
    Kind,
    check_kinds,
    list_of,
    one_of,
    or_null,
    whole_number,
)
from slm.runtime.words import is_number

PROTOCOLS = ("sliding", "non_overlapping")
BOS_RULES = ("auto", "always", "never")


def _integer(least: int) -> Kind:
    """Accept whole numbers from `least` up, but no floats such as 1e3, because counts of tokens index arrays."""
    kind = whole_number(least)
    return Kind(kind.words, lambda value: isinstance(value, int) and kind.accepts(value))


KINDS = {
    "checkpoint": or_null(Kind("a path or hub id", NAME.accepts)),
    "checkpoints": or_null(list_of(NAME, "paths and hub ids, as in checkpoints=[a,b]")),
    "revision": or_null(TEXT),
    "output_dir": Kind("a folder", NAME.accepts),
    "cache_dir": Kind("a folder", NAME.accepts),
    # The harness seeds numpy's global generator with it, which takes 32 bits.
    "seed": Kind("a whole number from 0 to 2^32 - 1", lambda value: _integer(0).accepts(value) and value < 2**32),
    "device": one_of("auto", "cpu", "cuda", "mps"),
    "dtype": one_of("auto", "float32", "bfloat16", "float16", "float64"),
    "batch_tokens": _integer(1),
    "perplexity.protocols": Kind(
        f"a list of {', '.join(PROTOCOLS)}, or [] for no perplexity", list_of(one_of(*PROTOCOLS), "", least=0).accepts
    ),
    "perplexity.sliding.max_length": or_null(_integer(2)),
    "perplexity.sliding.stride": or_null(_integer(1)),
    "perplexity.non_overlapping.max_length": or_null(_integer(1)),
    "perplexity.max_tokens": or_null(_integer(1)),
    "perplexity.bos": one_of(*BOS_RULES),
    "perplexity.document_start": or_null(Kind("a pattern", TEXT.accepts)),
    "speed.enabled": SWITCH,
    "speed.prompt_tokens": or_null(_integer(1)),
    "speed.new_tokens": _integer(2),
    "speed.repetitions": _integer(1),
    "speed.cache": SWITCH,
    "speed.compile": AUTO_SWITCH,
    "tasks": Kind(
        "mobilellm, the name of a task, or a list of names",
        lambda value: value is None or TEXT.accepts(value) or TEXTS.accepts(value),
    ),
    "task_files": Kind(
        "a mapping of names to files, as in 'task_files={piqa: piqa.jsonl}'",
        lambda value: value is None or (isinstance(value, Mapping) and all(map(TEXT.accepts, value.values()))),
    ),
    "task_limit": or_null(_integer(1)),
    "task_shots": or_null(_integer(0)),
    "prompt": or_null(TEXT),
    "generation.max_new_tokens": _integer(1),
    "generation.temperature": NOT_NEGATIVE,
    "generation.top_k": or_null(_integer(1)),
    "generation.top_p": or_null(Kind("above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1)),
    "export": or_null(TEXT),
    "unroll_sharing": SWITCH,
    "logger": Kind("a group of settings", lambda value: isinstance(value, Mapping)),
}


def register() -> None:
    """Register the resolvers that `conf/evaluate.yaml` uses."""
    for name, resolver in (("evaluation_dir", lambda: new_folder_path("evaluation")), ("cache_home", cache_home)):
        OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)


def check_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with lists `checkpoints` and `tasks`, dict `task_files`, and `~` in paths expanded.

    Raises `ValueError` for the first invalid setting.
    """
    check_kinds(config, KINDS)
    folder = Path(os.path.expanduser(config["output_dir"]))
    task_files = {str(name): path for name, path in (config["task_files"] or {}).items()}
    settings = {
        **config,
        "output_dir": str(folder),
        "cache_dir": os.path.expanduser(config["cache_dir"]),
        "checkpoints": _checkpoints(config),
        "task_files": task_files,
        "tasks": _task_names(config["tasks"], task_files),
    }
    if config["prompt"] is not None and config["export"] is not None:
        raise ValueError("prompt and export cannot be combined: give one of them")
    if config["unroll_sharing"] and config["export"] is None:
        raise ValueError("unroll_sharing=true needs export=FOLDER")
    perplexity = config["perplexity"]
    for key, default in (("bos", "auto"), ("document_start", None)):
        if config.get("data") is None and perplexity[key] != default:
            raise ValueError(
                f"perplexity.{key}={perplexity[key]} needs data=...: a run's own text is always encoded as in training"
            )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={folder} is a file: give the name of a directory")
    has_measurement = perplexity["protocols"] or config["speed"]["enabled"] or settings["tasks"]
    if not has_measurement and config["prompt"] is None and config["export"] is None:
        raise ValueError("nothing to measure: perplexity.protocols=[], speed.enabled=false and there are no tasks")
    return settings


def check_paths(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a checkpoint or text of checked settings does not exist."""
    for checkpoint in settings["checkpoints"]:
        local_folder(*address_of(checkpoint, settings))
    if (settings.get("data") or {}).get("source") == "local":
        files_to_evaluate(settings["data"])


def address_of(checkpoint: str, settings: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the path or hub id, and its revision: the text after @ in `checkpoint`, else the setting `revision`."""
    name, at, revision = checkpoint.rpartition("@")
    is_local = Path(os.path.expanduser(checkpoint)).exists()
    if at and not is_local:
        return name, revision
    # With several checkpoints, the setting `revision` applies only to hub checkpoints.
    uses_setting = len(settings["checkpoints"]) == 1 or not is_local
    return checkpoint, settings["revision"] if uses_setting else None


def _checkpoints(config: Mapping[str, Any]) -> list[str]:
    if (config["checkpoint"] is None) == (config["checkpoints"] is None):
        raise ValueError(
            "give one checkpoint=..., or several as checkpoints=[a,b]: run directories, folders of exported or "
            "downloaded models, or hub ids such as facebook/MobileLLM-125M"
        )
    names = [config["checkpoint"]] if config["checkpoints"] is None else list(config["checkpoints"])
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"checkpoints lists {repeated} more than once")
    if len(names) > 1 and (config["prompt"] is not None or config["export"] is not None):
        raise ValueError("prompt and export take a single checkpoint=...")
    return names


def _task_names(tasks: str | list[str] | None, files: Mapping[str, str]) -> list[str]:
    """Return the names of the tasks in `tasks` and `files`, each once, with `mobilellm` replaced by its tasks."""
    given = [tasks] if isinstance(tasks, str) else tasks or []
    names: list[str] = []
    for name in given:
        names += MOBILELLM if name == "mobilellm" else (name,)
    return list(dict.fromkeys([*names, *files]))
