"""What is measured of a checkpoint: perplexity by a protocol, speed, a task. Each knows its place in an entry.

Notable: everything that can be refused is refused when measurements are planned, before any checkpoint is loaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from slm.checkpoints import Checkpoint, Provenance
from slm.evaluation.encode import Stream, encode, run_stream
from slm.evaluation.overlap import trained_on
from slm.evaluation.perplexity import perplexity
from slm.evaluation.precision import Precision
from slm.evaluation.protocols import Protocol
from slm.evaluation.speed import check_compiler, check_room, measure_speed
from slm.evaluation.tasks import run_tasks
from slm.evaluation.tasks.local import answered, files_of_task, read_records
from slm.evaluation.texts import Text, read_text
from slm.runtime.progress import progress

Entry = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One thing to measure: whether an entry has it, and how to add it."""

    is_in: Callable[[Entry], bool]
    take: Callable[[Entry, Checkpoint, Precision], None]


def text_of(settings: Mapping[str, Any]) -> Text | None:
    """The text that all checkpoints are scored on; None where each has its own. Raises `ValueError` as `read_text`."""
    asked = settings["perplexity"]
    if settings.get("data") is None or not asked["protocols"]:
        return None
    cache_dir = Path(os.path.expanduser(settings["cache_dir"]))
    return read_text(settings["data"], document_start=asked["document_start"], cache_dir=cache_dir)


def planned(
    settings: Mapping[str, Any], provenance: Provenance, precision: Precision, text: Text | None
) -> list[Measurement]:
    """What the settings ask to measure of a checkpoint. Raises `ValueError` for what cannot be."""
    # Speed first: what was computed before would count as memory.
    speed = [_speed(settings["speed"], provenance, precision.device)] if settings["speed"]["enabled"] else []
    return (
        speed
        + _perplexities(settings, provenance, text)
        + [_task(name, settings, provenance) for name in settings["tasks"]]
    )


def _speed(asked: Mapping[str, Any], provenance: Provenance, device: str) -> Measurement:
    """A prompt that is left open is as long as usual, or as the context allows where that is shorter."""
    room = provenance.config.max_position_embeddings
    settings = {**asked, "prompt_tokens": asked["prompt_tokens"] or max(1, min(512, room - asked["new_tokens"]))}
    check_room(settings, room)
    check_compiler(asked["compile"], device)

    def take(entry: Entry, checkpoint: Checkpoint, precision: Precision) -> None:
        with progress("evaluation: speed", 100, "%") as advance:
            entry["speed"] = measure_speed(checkpoint.decoder, settings, progress=lambda share: advance(100 * share))

    return Measurement(lambda entry: entry["speed"] is not None, take)


def _task(name: str, settings: Mapping[str, Any], provenance: Provenance) -> Measurement:
    given = settings["task_files"].get(name)
    content = b"".join(file.read_bytes() for file in files_of_task(name, given)) if given else b""
    digest = hashlib.sha256(content).hexdigest()[:16] if given else None

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
        # A group of the harness gives tasks of other names; one that failed, an error of its own.
        others = {task: result for task, result in entry["tasks"].items() if result["asked_as"] != name}
        asked: Entry = {"asked_as": name, "file_fingerprint": digest, "in_training": None}
        known = trained_on(provenance.run, Path(os.path.expanduser(settings["cache_dir"]))) if given else None
        if known is not None:
            asked["in_training"] = known.share_of([answered(record) for record in read_records(name, given)])
        entry["tasks"] = others | {task: {**result, **asked} for task, result in found.items()}

    def is_in(entry: Entry) -> bool:
        done = [task for task in entry["tasks"].values() if task["asked_as"] == name]
        # What failed is tried again.
        return bool(done) and all("error" not in task and task["file_fingerprint"] == digest for task in done)

    return Measurement(is_in, take)


def _perplexities(settings: Mapping[str, Any], provenance: Provenance, text: Text | None) -> list[Measurement]:
    asked = settings["perplexity"]
    if not asked["protocols"]:
        return []
    scored = _scored(settings, provenance, text)
    protocols = [_protocol(name, asked, provenance) for name in dict.fromkeys(asked["protocols"])]
    return [_perplexity(scored, protocol, settings) for protocol in protocols]


def _perplexity(scored: _Scored, protocol: Protocol, settings: Mapping[str, Any]) -> Measurement:
    def take(entry: Entry, checkpoint: Checkpoint, precision: Precision) -> None:
        text = scored.stream(checkpoint)
        with progress(f"evaluation: perplexity, {protocol.name}", text.num_scored, "tokens") as advance:
            found = perplexity(
                checkpoint.decoder,
                text,
                protocol,
                batch_tokens=settings["batch_tokens"],
                autocast=precision.autocast,
                progress=advance,
            )
        others = [result for result in entry["perplexity_results"] if not by_protocol(result)]
        entry["perplexity_results"] = [*others, found]

    def by_protocol(result: Entry) -> bool:
        return all(result[key] == wanted for key, wanted in windows.items())

    def is_in(entry: Entry) -> bool:
        prints = [result["data_fingerprint"] for result in entry["perplexity_results"] if by_protocol(result)]
        return bool(prints) and scored.fingerprint in (None, *prints)

    windows = {"protocol": protocol.name, "max_length": protocol.max_length, "stride": protocol.stride}

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


@dataclass(frozen=True)
class _Scored:
    """A text to score: how a checkpoint sees it, and what tells it from others; None for a run's own."""

    stream: Callable[[Checkpoint], Stream]
    fingerprint: str | None


def _scored(settings: Mapping[str, Any], provenance: Provenance, text: Text | None) -> _Scored:
    asked, cache_dir = settings["perplexity"], Path(os.path.expanduser(settings["cache_dir"]))
    if text is not None:
        how = {"bos": asked["bos"], "max_tokens": asked["max_tokens"]}

        def stream(checkpoint: Checkpoint) -> Stream:
            known = trained_on(provenance.run, cache_dir)
            share = None if known is None else known.share_of_bytes(text.documents)
            return replace(encode(text, checkpoint.tokenizer, **how), in_training=share)

        return _Scored(stream, text.fingerprint)
    run = provenance.run
    if run is None:
        raise ValueError(
            f"checkpoint={provenance.checkpoint} is no run of ours, so it has no validation text: give one, as "
            "data=wikitext2 (hub), data=local data.paths=FILE or data=pydocs, or perplexity.protocols=[] for none"
        )
    limit = asked["max_tokens"]
    return _Scored(lambda own: run_stream(run, own.tokenizer, cache_dir=cache_dir, max_tokens=limit), None)
