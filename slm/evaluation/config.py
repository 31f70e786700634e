"""What `conf/evaluate.yaml` needs of Python: the folder of an evaluation, and the check of what a person gave.

Imports no torch, so `--help` and mistakes are quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slm.data.local import files_to_evaluate
from slm.evaluation.protocols import BOS_RULES, PROTOCOLS
from slm.runtime.address import local_folder
from slm.runtime.command_line import cache_home, new_folder
from slm.runtime.settings import written_out

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
DEVICES = ("auto", "cpu", "cuda")
MOBILELLM = "mobilellm"
"""In `tasks`: the paper's eight."""


def register() -> None:
    """Register the resolvers that `conf/evaluate.yaml` uses."""
    for name, resolver in (("evaluation_dir", lambda: new_folder("evaluation")), ("cache_home", cache_home)):
        OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)


def check_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with checkpoints, tasks and task files in one form; `ValueError` names the first key that is wrong.

    `checkpoints` become a list, `tasks` a list of names, `task_files` a dict.
    """
    for key in ("perplexity", "perplexity.sliding", "perplexity.non_overlapping", "speed", "generation", "logger"):
        _require(key, section := _at(config, key), isinstance(section, Mapping), "a group of settings")
    for key in ("output_dir", "cache_dir"):
        _require(key, config[key], isinstance(config[key], str) and bool(config[key].strip()), "a folder")
    settings = {**config, "output_dir": str(Path(os.path.expanduser(config["output_dir"])))}
    settings["checkpoints"] = _checkpoints(config)
    _check_choices(config)
    _check_perplexity(config["perplexity"], own_text=config.get("data") is None)
    _check_speed(config["speed"])
    _check_generation(config["generation"])
    settings["task_files"] = _task_files(config["task_files"])
    settings["tasks"] = _tasks(config["tasks"], settings["task_files"])
    for key in ("task_limit", "task_shots"):
        least = int(key == "task_limit")
        good = config[key] is None or _whole(config[key], least)
        _require(key, config[key], good, f"a whole number of at least {least}, or null")
    folder = Path(settings["output_dir"])
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={folder} is a file: give the name of a directory")
    measured = config["perplexity"]["protocols"] or config["speed"]["enabled"] or settings["tasks"]
    if not measured and config["prompt"] is None and config["export"] is None:
        raise ValueError("nothing is left to measure: perplexity.protocols is [], speed.enabled false, tasks null")
    return settings


def check_paths(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a checkpoint or a text of checked settings that is not there."""
    for checkpoint in settings["checkpoints"]:
        local_folder(*address_of(checkpoint, settings))
    if (settings.get("data") or {}).get("source") == "local":
        files_to_evaluate(settings["data"])


def address_of(checkpoint: str, settings: Mapping[str, Any]) -> tuple[str, str | None]:
    """Path or hub id, and revision: after an @, or what holds for all."""
    name, at, revision = checkpoint.rpartition("@")
    if at and not Path(os.path.expanduser(checkpoint)).exists():
        return name, revision
    alone = len(settings["checkpoints"]) == 1  # of several, `revision` is for those on the hub
    return checkpoint, settings["revision"] if alone or not Path(os.path.expanduser(checkpoint)).exists() else None


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _checkpoints(config: Mapping[str, Any]) -> list[str]:
    one, several = config["checkpoint"], config["checkpoints"]
    if (one is None) == (several is None):
        raise ValueError(
            "give one checkpoint=..., or several as checkpoints=[a,b]: run directories, folders of exported or "
            "downloaded models, or hub ids such as facebook/MobileLLM-125M"
        )
    named = [one] if several is None else several
    good = isinstance(named, list) and bool(named) and all(isinstance(item, str) and item.strip() for item in named)
    wanted = "a path or hub id" if several is None else "a list of paths and hub ids, as in checkpoints=[a,b]"
    _require("checkpoint" if several is None else "checkpoints", one if several is None else several, good, wanted)
    if len(set(named)) < len(named):
        raise ValueError(f"checkpoints names {next(n for n in named if named.count(n) > 1)} more than once")
    if len(named) > 1 and (config["prompt"] is not None or config["export"] is not None):
        raise ValueError("prompt and export take one checkpoint=...")
    return list(named)


def _check_choices(config: Mapping[str, Any]) -> None:
    for key, allowed in (("dtype", DTYPES), ("device", DEVICES)):
        _require(key, config[key], config[key] in allowed, f"one of {', '.join(allowed)}")
    _require("batch_tokens", config["batch_tokens"], _whole(config["batch_tokens"], 1), "a whole number of at least 1")
    good = _whole(config["seed"], 0) and config["seed"] < 2**32
    _require("seed", config["seed"], good, "a whole number from 0 to 2**32 - 1")
    for key in ("revision", "prompt", "export"):
        _require(key, config[key], config[key] is None or isinstance(config[key], str), "text, or null")
    if config["prompt"] is not None and config["export"] is not None:
        raise ValueError("prompt and export are two things to do: give one of them")
    _require("unroll_sharing", config["unroll_sharing"], isinstance(config["unroll_sharing"], bool), "true or false")
    if config["unroll_sharing"] and config["export"] is None:
        raise ValueError("unroll_sharing=true goes with export=FOLDER")


def _check_perplexity(settings: Mapping[str, Any], *, own_text: bool) -> None:
    for key, usual in (("bos", "auto"), ("document_start", None)):
        if own_text and settings[key] != usual:
            raise ValueError(
                f"perplexity.{key}={settings[key]} goes with data=...: a run's own validation text is framed as it was "
                "in training"
            )
    _require("perplexity.bos", settings["bos"], settings["bos"] in BOS_RULES, f"one of {', '.join(BOS_RULES)}")
    start = settings["document_start"]
    _require("perplexity.document_start", start, start is None or isinstance(start, str), "a pattern, or null")
    protocols = settings["protocols"]
    good = isinstance(protocols, list) and set(map(str, protocols)) <= set(PROTOCOLS)
    _require("perplexity.protocols", protocols, good, "a list of sliding, non_overlapping, or [] for no perplexity")
    lengths = {
        "perplexity.sliding.max_length": settings["sliding"]["max_length"],
        "perplexity.sliding.stride": settings["sliding"]["stride"],
        "perplexity.non_overlapping.max_length": settings["non_overlapping"]["max_length"],
        "perplexity.max_tokens": settings["max_tokens"],
    }
    for key, value in lengths.items():
        _require(key, value, value is None or _whole(value, 1), "a whole number of at least 1, or null")


def _check_speed(settings: Mapping[str, Any]) -> None:
    prompt = settings["prompt_tokens"]
    _require(
        "speed.prompt_tokens", prompt, prompt is None or _whole(prompt, 1), "a whole number of at least 1, or null"
    )
    for key, least in (("new_tokens", 2), ("repetitions", 1)):
        _require(f"speed.{key}", settings[key], _whole(settings[key], least), f"a whole number of at least {least}")
    for key in ("enabled", "cache"):
        _require(f"speed.{key}", settings[key], isinstance(settings[key], bool), "true or false")
    _require("speed.compile", settings["compile"], settings["compile"] in ("auto", True, False), "auto, true or false")


def _check_generation(settings: Mapping[str, Any]) -> None:
    new, temperature, k, p = (settings[key] for key in ("max_new_tokens", "temperature", "top_k", "top_p"))
    _require("generation.max_new_tokens", new, _whole(new, 1), "a whole number of at least 1")
    _require("generation.temperature", temperature, _number(temperature) and temperature >= 0, "a number from 0 on")
    _require("generation.top_k", k, k is None or _whole(k, 1), "a whole number of at least 1, or null")
    _require("generation.top_p", p, p is None or (_number(p) and 0 < p <= 1), "above 0 and at most 1, or null")


def _task_files(files: Any) -> dict[str, str]:
    good = files is None or (isinstance(files, Mapping) and all(isinstance(path, str) for path in files.values()))
    _require("task_files", files, good, "a mapping of names to files, as in 'task_files={piqa: piqa.jsonl}'")
    return {str(name): path for name, path in (files or {}).items()}


def _tasks(tasks: Any, files: Mapping[str, str]) -> list[str]:
    """Names of tasks; those of files are run without being named."""
    from slm.evaluation.tasks.names import MOBILELLM as EIGHT

    named = [tasks] if isinstance(tasks, str) else tasks or []
    good = isinstance(named, list) and all(isinstance(name, str) for name in named)
    _require("tasks", tasks, good, f"{MOBILELLM}, the name of a task, or a list of names")
    names = [task for name in named for task in (EIGHT if name == MOBILELLM else (name,))]
    return list(dict.fromkeys([*names, *files]))


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require(key: str, value: Any, good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(f"{key}={value!r} must be {wanted}{written_out(value)}")
