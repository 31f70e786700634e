"""What is measured of a checkpoint: perplexity by a protocol, speed, a task. Each knows its place in an entry.

Notable: everything that can be refused is refused when measurements are planned, before any checkpoint is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from slm.checkpoints import Checkpoint, Provenance
from slm.data.progress import progress
from slm.evaluation.encode import Stream, encode, run_stream
from slm.evaluation.perplexity import perplexity
from slm.evaluation.precision import Precision
from slm.evaluation.protocols import Protocol
from slm.evaluation.speed import check_room, measure_speed
from slm.evaluation.tasks import run_tasks
from slm.evaluation.texts import Text, read_text

Entry = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One thing to measure: whether an entry has it, and how to add it."""

    is_in: Callable[[Entry], bool]
    take: Callable[[Entry, Checkpoint, Precision], None]


def planned(settings: Mapping[str, Any], provenance: Provenance, precision: Precision) -> list[Measurement]:
    """What the settings ask to measure of a checkpoint. Raises `ValueError` for what cannot be."""
    # Speed first: what was computed before would count as memory.
    speed = [_speed(settings["speed"], provenance)] if settings["speed"]["enabled"] else []
    return speed + _perplexities(settings, provenance) + [_task(name, settings) for name in settings["tasks"]]


def _speed(asked: Mapping[str, Any], provenance: Provenance) -> Measurement:
    """A prompt that is left open is as long as usual, or as the context allows where that is shorter."""
    room = provenance.config.max_position_embeddings
    settings = {**asked, "prompt_tokens": asked["prompt_tokens"] or max(1, min(512, room - asked["new_tokens"]))}
    check_room(settings, room)

    def take(entry: Entry, checkpoint: Checkpoint, precision: Precision) -> None:
        with progress("speed", 100, "%", room="evaluation") as advance:
            entry["speed"] = measure_speed(checkpoint.decoder, settings, progress=lambda share: advance(100 * share))

    return Measurement(lambda entry: entry["speed"] is not None, take)


def _task(name: str, settings: Mapping[str, Any]) -> Measurement:
    def take(entry: Entry, checkpoint: Checkpoint, precision: Precision) -> None:
        found = run_tasks(
            checkpoint.decoder,
            checkpoint.tokenizer,
            [name],
            task_files=settings["task_files"],
            limit=settings["task_limit"],
            num_fewshot=settings["task_shots"],
            batch_tokens=settings["batch_tokens"],
            autocast=precision.autocast,
            seed=settings["seed"],
        )
        # A group or tag of the harness is several tasks, none of its own name.
        entry["tasks"] |= {task: {**result, "asked_as": name} for task, result in found.items()}

    def is_in(entry: Entry) -> bool:
        done = [task for task in entry["tasks"].values() if task["asked_as"] == name]
        return bool(done) and not any("error" in task for task in done)  # what failed is tried again

    return Measurement(is_in, take)


def _perplexities(settings: Mapping[str, Any], provenance: Provenance) -> list[Measurement]:
    asked = settings["perplexity"]
    if not asked["protocols"]:
        return []
    stream = _stream_of(settings, provenance)
    protocols = [_protocol(name, asked, provenance) for name in asked["protocols"]]
    return [_perplexity(stream, protocol, settings) for protocol in protocols]


def _perplexity(stream: Callable[[Checkpoint], Stream], protocol: Protocol, settings: Mapping[str, Any]) -> Measurement:
    def take(entry: Entry, checkpoint: Checkpoint, precision: Precision) -> None:
        text = stream(checkpoint)
        with progress(f"perplexity, {protocol.name}", text.num_scored, "tokens", room="evaluation") as advance:
            found = perplexity(
                checkpoint.decoder,
                text,
                protocol,
                batch_tokens=settings["batch_tokens"],
                autocast=precision.autocast,
                progress=advance,
            )
        entry["perplexity_results"].append(found)

    def is_in(entry: Entry) -> bool:
        names = ("protocol", "max_length", "stride")
        wanted = (protocol.name, protocol.max_length, protocol.stride)
        return any(tuple(found[name] for name in names) == wanted for found in entry["perplexity_results"])

    return Measurement(is_in, take)


def _protocol(
    name: Literal["sliding", "non_overlapping"], asked: Mapping[str, Any], provenance: Provenance
) -> Protocol:
    """The windows asked for; those left open fit the context, and are no longer than what a run was trained on."""
    usual = 1024 if name == "sliding" else 2048
    fits = min(usual, provenance.config.max_position_embeddings, provenance.result.get("sequence_length") or usual)
    max_length = asked[name]["max_length"] or fits
    stride = max_length if name == "non_overlapping" else asked[name]["stride"] or max(1, max_length // 2)
    protocol = Protocol(name=name, max_length=max_length, stride=stride)
    protocol.check(provenance.config)
    return protocol


def _stream_of(settings: Mapping[str, Any], provenance: Provenance) -> Callable[[Checkpoint], Stream]:
    """How to get the tokens to score; the text itself is read now, so that a mistake in it is found now."""
    asked, cache_dir = settings["perplexity"], Path(settings["cache_dir"]).expanduser()
    if settings.get("data") is not None:
        text = _text(yaml.safe_dump(settings["data"]), asked["document_start"], cache_dir)
        return lambda checkpoint: encode(text, checkpoint.tokenizer, bos=asked["bos"], max_tokens=asked["max_tokens"])
    run = provenance.run
    if run is None:
        raise ValueError(
            f"checkpoint={provenance.checkpoint} is no run of ours, so it has no validation text: give one, as "
            "data=wikitext2 (hub), data=local data.paths=FILE or data=pydocs, or perplexity.protocols=[] for none"
        )
    return lambda checkpoint: run_stream(run, checkpoint.tokenizer, cache_dir=cache_dir)


@lru_cache(maxsize=1)
def _text(data: str, document_start: str | None, cache_dir: Path) -> Text:
    """Read once for all checkpoints; `data` as YAML, which can be a key of the cache."""
    return read_text(yaml.safe_load(data), document_start=document_start, cache_dir=cache_dir)
