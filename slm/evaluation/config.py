"""Check the settings of `conf/evaluate.yaml`. Imports no torch, so that `--help` and error messages appear quickly."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slm.data.local import files_to_evaluate
from slm.evaluation.tasks import MOBILELLM
from slm.model.config import QUANTISATIONS
from slm.runtime import settings as kinds
from slm.runtime.address import local_folder, split_revision
from slm.runtime.command_line import cache_home, new_folder_path
from slm.runtime.files import check_folders
from slm.runtime.words import is_number
from slm.scaling.measures import SHIP_KINDS

PROTOCOLS = ("sliding", "non_overlapping")
BOS_RULES = ("auto", "always", "never")


def _integer(minimum: int) -> kinds.Kind:
    """Accept whole numbers from `minimum` up, but no floats such as 1e3, because counts of tokens index arrays."""
    kind = kinds.whole_number(minimum)
    return kinds.Kind(kind.words, lambda value: isinstance(value, int) and kind.accepts(value))


def _are_quantisations(value: Any) -> bool:
    kinds_given = value if isinstance(value, list) else [value]
    are_known = all(kind in (None, *QUANTISATIONS) for kind in kinds_given)
    return are_known and 0 < len({*kinds_given}) == len(kinds_given)


CHECKPOINTS = kinds.list_of(kinds.NAME, "paths and hub ids, as in checkpoints=[a,b]")
KINDS = {
    "checkpoint": kinds.or_null(kinds.Kind("a path or hub id", kinds.NAME.accepts)),
    "checkpoints": kinds.or_null(CHECKPOINTS),
    "source": kinds.or_null(kinds.NAME),
    "revision": kinds.or_null(kinds.TEXT),
    **dict.fromkeys(("output_dir", "cache_dir"), kinds.Kind("a folder", kinds.NAME.accepts)),
    # The harness seeds numpy's global generator with this number, so it must fit into 32 bits.
    "seed": kinds.Kind("a whole number from 0 to 2^32 - 1", lambda value: _integer(0).accepts(value) and value < 2**32),
    "device": kinds.one_of("auto", "cpu", "cuda", "mps"),
    "dtype": kinds.one_of("auto", "float32", "bfloat16", "float16", "float64"),
    "quantize": kinds.Kind(
        f"one of null, {', '.join(QUANTISATIONS)}, or a list of different ones, as in quantize=[null,int8,int4]",
        _are_quantisations,
    ),
    "batch_tokens": _integer(1),
    "perplexity.protocols": kinds.Kind(
        f"a list of {', '.join(PROTOCOLS)}, or [] for no perplexity",
        kinds.list_of(kinds.one_of(*PROTOCOLS), "", min_length=0).accepts,
    ),
    "perplexity.sliding.max_length": kinds.or_null(_integer(2)),
    "perplexity.sliding.stride": kinds.or_null(_integer(1)),
    "perplexity.non_overlapping.max_length": kinds.or_null(_integer(1)),
    "perplexity.max_tokens": kinds.or_null(_integer(1)),
    "perplexity.bos": kinds.one_of(*BOS_RULES),
    "perplexity.document_start": kinds.or_null(kinds.Kind("a pattern", kinds.TEXT.accepts)),
    "speed.enabled": kinds.SWITCH,
    "speed.prompt_tokens": kinds.or_null(_integer(1)),
    "speed.new_tokens": _integer(2),
    "speed.repetitions": _integer(1),
    "speed.cache": kinds.SWITCH,
    "speed.compile": kinds.AUTO_SWITCH,
    "tasks": kinds.Kind(
        "mobilellm, the name of a task, or a list of names",
        lambda value: value is None or kinds.TEXT.accepts(value) or kinds.TEXTS.accepts(value),
    ),
    "task_files": kinds.Kind(
        "a mapping of names to files, as in 'task_files={piqa: piqa.jsonl}'",
        lambda value: value is None or (isinstance(value, Mapping) and all(map(kinds.TEXT.accepts, value.values()))),
    ),
    "task_limit": kinds.or_null(_integer(1)),
    "task_shots": kinds.or_null(_integer(0)),
    "task_log_samples": kinds.SWITCH,
    "prompt": kinds.or_null(kinds.TEXT),
    "prompt_file": kinds.or_null(kinds.NAME),
    "chat": kinds.Kind("true, false or text", lambda value: isinstance(value, bool) or value == "text"),
    "system": kinds.or_null(kinds.TEXT),
    "generation.max_new_tokens": _integer(1),
    "generation.temperature": kinds.NOT_NEGATIVE,
    "generation.top_k": kinds.or_null(_integer(1)),
    **dict.fromkeys(
        ("generation.top_p", "generation.min_p"),
        kinds.or_null(kinds.Kind("above 0 and at most 1", lambda p: is_number(p) and 0 < p <= 1)),
    ),
    "generation.repetition_penalty": kinds.POSITIVE,
    "generation.compile": kinds.SWITCH,
    "export": kinds.or_null(kinds.TEXT),
    "format": kinds.one_of("transformers", "executorch", "gguf"),
    "export_dtype": kinds.one_of("auto", "float32", "float16", "q8_0"),
    "export_context": kinds.or_null(_integer(4)),
    "unroll_sharing": kinds.SWITCH,
    **SHIP_KINDS,
    "logger": kinds.Kind("a group of settings", lambda value: isinstance(value, Mapping)),
}


def register() -> None:
    """Register the resolvers that `conf/evaluate.yaml` uses."""
    for name, resolver in (("evaluation_dir", lambda: new_folder_path("evaluation")), ("cache_home", cache_home)):
        OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)


def check_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with lists `checkpoints` and `tasks`, dict `task_files`, and `~` in paths expanded.

    Raises `ValueError` for the first invalid setting.
    """
    kinds.check_kinds(config, KINDS)
    folder = Path(os.path.expanduser(config["output_dir"]))
    task_files = {str(name): path for name, path in (config["task_files"] or {}).items()}
    settings = {
        **config,
        "output_dir": str(folder),
        "cache_dir": os.path.expanduser(config["cache_dir"]),
        "checkpoints": _checkpoints(config),
        "baselines": _baselines(config),
        "quantize": config["quantize"] if isinstance(config["quantize"], list) else [config["quantize"]],
        "task_files": task_files,
        "tasks": _task_names(config["tasks"], task_files),
    }
    actions = _actions(config)
    if len(actions) > 1:
        raise ValueError(f"{' and '.join(actions)} cannot be combined: give one of them")
    if actions and len(settings["quantize"]) > 1:
        raise ValueError(f"{actions[0]} takes a single quantize=..., not a list")
    if config["system"] is not None and not config["chat"]:
        raise ValueError("system needs chat=true")
    _check_export(config, settings["quantize"][0])
    for key, limit in config["ship"].items():
        if limit is not None and (key == "joules" or not config["speed"]["enabled"]):
            problem = "joules are measured by no program of slm" if key == "joules" else "speed.enabled=false"
            raise ValueError(f"ship.{key}={limit:g} needs a measurement, and {problem}: leave it out")
    perplexity = config["perplexity"]
    if config.get("data") is not None and config["source"] is not None:
        raise ValueError(
            f"source={config['source']} selects from a run's own text, which data=... replaces: leave one out"
        )
    needs_text = settings["baselines"] and not actions and perplexity["protocols"]
    if needs_text and config.get("data") is None:  # before baselines are fetched
        raise ValueError(
            "baselines need a text that all checkpoints are scored on: give one, such as data=wikitext2, or "
            "perplexity.protocols=[]"
        )
    for key, default in (("bos", "auto"), ("document_start", None)):
        if config.get("data") is None and perplexity[key] != default:
            raise ValueError(
                f"perplexity.{key}={perplexity[key]} needs data=...: a run's own text is always encoded as in training"
            )
    check_folders(config, "output_dir", "cache_dir", "export")
    has_measurement = bool(perplexity["protocols"] or config["speed"]["enabled"] or settings["tasks"])
    if not has_measurement and not actions:
        raise ValueError("nothing to measure: perplexity.protocols=[], speed.enabled=false and there are no tasks")
    return settings


def _check_export(config: Mapping[str, Any], quantize: str | None) -> None:
    target, dtype = config["format"], config["export_dtype"]
    given = {"unroll_sharing": config["unroll_sharing"] and "true", "format": target != "transformers" and target}
    given |= {"export_dtype": dtype != "auto" and dtype, "export_context": config["export_context"]}
    for key, value in given.items():
        if value and config["export"] is None:
            raise ValueError(f"{key}={value} needs export=FOLDER")
        if value and key.startswith("export_") and target == "transformers":
            raise ValueError(f"{key}={value} needs format=executorch or format=gguf: format=transformers keeps both")
    if config["unroll_sharing"] and target != "transformers":
        raise ValueError(f"unroll_sharing=true is for format=transformers: format={target} needs no such setting")
    if config["export"] is not None and quantize is not None and target != "executorch":
        hint = "give export_dtype=q8_0" if target == "gguf" else "leave it out and give it when you evaluate the export"
        raise ValueError(f"quantize={quantize} is for format=executorch; for format={target} {hint}")
    if config["export"] is not None and quantize in ("int8", "int4"):
        raise ValueError(
            f"quantize={quantize}: XNNPACK rounds the inputs of linear maps whose weights are rounded, so "
            f"format=executorch takes quantize={quantize}_dynamic"
        )
    if target == "executorch" and dtype not in ("auto", "float32"):
        raise ValueError(f"export_dtype={dtype} is for format=gguf: format=executorch writes float32")


def check_paths(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a local checkpoint, text or prompt is missing. `settings` comes from `check_settings`."""
    for checkpoint in settings["checkpoints"]:
        if checkpoint not in settings["baselines"]:
            local_folder(*address_of(checkpoint, settings))
    if settings["prompt_file"] is not None:
        read_prompt(settings)
    if (settings.get("data") or {}).get("source") == "local":
        files_to_evaluate(settings["data"])


def read_prompt(settings: Mapping[str, Any]) -> str:
    """Return the prompt: the text of `prompt`, of standard input if `prompt` is -, or of `prompt_file`.

    The line break that ends a file or an input is left out. Raises `ValueError` if a file cannot be read as UTF-8.
    """
    name, prompt = settings["prompt_file"], settings["prompt"]
    if name is None and prompt != "-":
        return str(prompt)
    try:
        content = sys.stdin.buffer.read() if name is None else Path(os.path.expanduser(name)).read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise ValueError(f"prompt_file={name}: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        source = "prompt=-: standard input" if name is None else f"prompt_file={name}"
        raise ValueError(f"{source} is not UTF-8 at byte {error.start}: convert it to UTF-8") from None
    return text.replace("\r\n", "\n").removesuffix("\n")


def address_of(checkpoint: str, settings: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the path or hub id, and its revision: the text after @ in `checkpoint`, else the setting `revision`."""
    name, revision = split_revision(checkpoint)
    if revision is not None:
        return name, revision
    is_local = Path(os.path.expanduser(checkpoint)).exists()
    # With several checkpoints, the setting `revision` is meant for those of the hub that the user gave.
    if (is_local and len(settings["checkpoints"]) > 1) or checkpoint in settings["baselines"]:
        return checkpoint, None
    return checkpoint, settings["revision"]


def _baselines(config: Mapping[str, Any]) -> list[str]:
    """Return the checkpoints that may fail. Raises `ValueError` unless they are a list of names."""
    if config.get("baselines") is None:
        return []
    kinds.check_kinds(config, {"baselines.checkpoints": CHECKPOINTS})
    return list(config["baselines"]["checkpoints"])


def _checkpoints(config: Mapping[str, Any]) -> list[str]:
    """Return the names of `checkpoint` or `checkpoints`, then those of `baselines`, each once."""
    baselines, both = _baselines(config), config["checkpoint"] is not None and config["checkpoints"] is not None
    names = [config["checkpoint"]] if config["checkpoints"] is None else list(config["checkpoints"])
    if both or (names == [None] and not baselines):
        raise ValueError(
            "give one checkpoint=..., or several as checkpoints=[a,b]: run directories, folders of exported or "
            "downloaded models, or hub ids such as facebook/MobileLLM-125M"
        )
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"checkpoints lists {repeated} more than once")
    names = list(dict.fromkeys([*(name for name in names if name is not None), *baselines]))
    if len(names) > 1 and _actions(config):
        raise ValueError("prompt, chat and export take a single checkpoint=...")
    return names


def _actions(config: Mapping[str, Any]) -> list[str]:
    """Return the keys that ask for something else than measurements."""
    return [key for key in ("prompt", "prompt_file", "chat", "export") if config[key] not in (None, False)]


def _task_names(tasks: str | list[str] | None, files: Mapping[str, str]) -> list[str]:
    """Return the names of the tasks in `tasks` and `files`, each once, with `mobilellm` replaced by its tasks."""
    given = [tasks] if isinstance(tasks, str) else tasks or []
    names = [task for name in given for task in (MOBILELLM if name == "mobilellm" else [name])]
    return list(dict.fromkeys([*names, *files]))
