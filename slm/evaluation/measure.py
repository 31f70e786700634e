"""Plan the measurements of a checkpoint and choose their precision. Planning finds mistakes before weights are read."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from slm.checkpoints import AnyCheckpoint as Checkpoint
from slm.checkpoints import AnyProvenance as Provenance
from slm.checkpoints import load_any
from slm.checkpoints.load import check_quantize
from slm.data.questions import files_of_task, question_texts, read_records
from slm.evaluation.encode import Stream, encode, run_stream
from slm.evaluation.ledger import Entry, with_quantisation
from slm.evaluation.perplexity import Protocol, perplexity
from slm.evaluation.speed import check_speed, measure_speed
from slm.evaluation.tasks.items import samples_file
from slm.evaluation.tasks.run import run_task
from slm.evaluation.texts import Text, read_run, read_text, sources_of_run, training_documents
from slm.runtime.address import is_engine_file
from slm.runtime.machine import has_mps, native_bfloat16, why_no_gpu, why_not_compiled
from slm.runtime.progress import progress

TRAINING_DTYPES = {
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "32-true": (torch.float32, None),
    "64-true": (torch.float64, None),
}
"""`precision` of a run -> (dtype of its weights, dtype of its matmuls; None means the dtype of the weights)."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Device, dtypes and rounding in which a checkpoint is measured."""

    device: str
    dtype: torch.dtype
    autocast: torch.dtype | None  # dtype of matmuls; None means the dtype of the weights
    quantize: str | None = None  # a kind of `QUANTISATIONS`
    notes: tuple[str, ...] = ()  # caveats for the report, as sentences


@dataclass(frozen=True)
class Measurement:
    """One thing to measure on a checkpoint."""

    is_done: Callable[[Entry], bool]  # whether an entry already has the result
    measure: Callable[[Entry, Checkpoint, Precision], None]  # measures the checkpoint and adds the result to the entry


def resolve_precision(settings: Mapping[str, Any], provenance: Provenance, quantize: str | None = None) -> Precision:
    """Resolve `auto`: a run of train.py keeps the precision of its validation; any other checkpoint gets float32.

    Raises `ValueError` for a device that this machine lacks, and for a rounding that the checkpoint cannot have.
    """
    device = settings["device"]
    check_quantize(provenance, quantize)
    if is_engine_file(provenance.checkpoint):
        given = [f"device={device}"] if device not in ("auto", "cpu") else []
        given += [f"dtype={settings['dtype']}"] if settings["dtype"] != "auto" else []
        if given:
            where = f"{provenance.checkpoint} runs on the CPU, in the precision of the file"
            raise ValueError(f"{' '.join(given)}: {where}: leave {'both' if len(given) > 1 else 'it'} out")
        return Precision(device="cpu", dtype=torch.float32, autocast=None)
    if device == "cuda" and not torch.cuda.is_available():
        reason = why_no_gpu()
        hint = f" ({reason})" if reason else ""
        raise ValueError(f"device=cuda, but torch sees no CUDA device here; device=cpu runs anywhere{hint}")
    if device == "mps" and not has_mps():
        raise ValueError("device=mps, but torch sees no Apple GPU here; device=cpu runs anywhere")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trained_precision = str(provenance.result.get("precision"))
    dtype, autocast = TRAINING_DTYPES.get(trained_precision, (torch.float32, None))
    if settings["dtype"] != "auto":
        dtype, autocast = getattr(torch, settings["dtype"]), None
    if dtype == torch.float64 and device == "mps":
        raise ValueError("device=mps has no float64: give dtype=float32, or device=cpu")
    is_fast = native_bfloat16(device) if autocast == torch.bfloat16 else device == "cuda"
    if autocast is not None and not is_fast:
        note = f"The run was validated in {trained_precision}, which is slow on this device: float32 is used."
        return Precision(device=device, dtype=dtype, autocast=None, quantize=quantize, notes=(note,))
    return Precision(device=device, dtype=dtype, autocast=autocast, quantize=quantize)


def check_compile(key: str, provenance: Provenance, device: str) -> None:
    """Raise `ValueError` if the decoding step cannot be compiled, though the setting `key` is true."""
    reason = why_not_compiled(device)
    if provenance.kind not in ("run", "export", "hf"):
        reason = f"checkpoint={provenance.checkpoint} is computed by {provenance.kind}, uncompiled"
    if reason:
        raise ValueError(f"{key}=true, but {reason}: give {key}=false")


def load_checked(provenance: Provenance, precision: Precision) -> Checkpoint:
    """Load a checkpoint that was checked; of a hub repository, the revision that was checked."""
    source = provenance.checkpoint if provenance.revision is None else provenance.folder
    return load_any(source, dtype=precision.dtype, device=precision.device, quantize=precision.quantize)


def shared_text(settings: Mapping[str, Any]) -> Text | None:
    """Return the text that all checkpoints are scored on; None if no text is given or no protocol requested."""
    perplexity_settings = settings["perplexity"]
    if settings.get("data") is None or not perplexity_settings["protocols"]:
        return None
    document_start = perplexity_settings["document_start"]
    return read_text(settings["data"], document_start=document_start, cache_dir=Path(settings["cache_dir"]))


def plan_measurements(
    settings: Mapping[str, Any], provenance: Provenance, precision: Precision, text: Text | None
) -> list[Measurement]:
    """Return the measurements that the settings request. Raises `ValueError` for one that is impossible."""
    measurements = []
    if settings["speed"]["enabled"]:
        # Speed comes first, because memory that other measurements leave allocated would count as used.
        measurements.append(_speed(settings["speed"], provenance, precision.device))
    tasks = [_task(name, settings, provenance) for name in settings["tasks"]]
    return measurements + _perplexities(settings, provenance, text) + tasks


def _speed(settings: Mapping[str, Any], provenance: Provenance, device: str) -> Measurement:
    context = provenance.config.max_position_embeddings
    prompt_tokens = settings["prompt_tokens"] or max(1, min(512, context - settings["new_tokens"]))
    settings = {**settings, "prompt_tokens": prompt_tokens}
    check_speed(settings, context)
    if settings["compile"] is True:
        check_compile("speed.compile", provenance, device)

    def measure(entry: Entry, checkpoint: Checkpoint, precision: Precision) -> None:
        with progress("evaluation: speed", 100, "%") as advance:
            entry["speed"] = measure_speed(checkpoint.decoder, settings, progress=lambda share: advance(100 * share))

    return Measurement(lambda entry: entry["speed"] is not None, measure)


def _task(name: str, settings: Mapping[str, Any], provenance: Provenance) -> Measurement:
    file = settings["task_files"].get(name)
    fingerprint = None
    if file:
        content = b"".join(path.read_bytes() for path in files_of_task(name, file))
        fingerprint = hashlib.sha256(content).hexdigest()[:16]
    log_samples, folder = settings["task_log_samples"], Path(settings["output_dir"])

    def measure(entry: Entry, checkpoint: Checkpoint, precision: Precision) -> None:
        written: list[str] = []  # a harness group has a file for each of its tasks

        def file_for(task: str) -> Path:
            label = with_quantisation(provenance.checkpoint, precision.quantize)
            written.append(samples_file(task, label, provenance.fingerprint))
            return folder / written[-1]

        results = run_task(
            checkpoint.decoder,
            checkpoint.tokenizer,
            name,
            file=file,
            limit=settings["task_limit"],
            num_fewshot=settings["task_shots"],
            batch_tokens=settings["batch_tokens"],
            autocast=precision.autocast,
            seed=settings["seed"],
            samples_file=file_for if log_samples else None,
        )
        training = training_documents(provenance.run, Path(settings["cache_dir"])) if file else None
        seen_share = None
        if training is not None:
            seen_share = training.share_of_questions([question_texts(record) for record in read_records(name, file)])
        origin: dict[str, Any] = {"asked_as": name, "file_fingerprint": fingerprint, "in_training": seen_share}
        if log_samples:
            origin["samples"] = written
        # A harness group gives several results under the names of its tasks, and all have the group as `asked_as`.
        others = {task: result for task, result in entry["tasks"].items() if result["asked_as"] != name}
        entry["tasks"] = others | {task: {**result, **origin} for task, result in results.items()}

    def is_done(entry: Entry) -> bool:
        results = [result for result in entry["tasks"].values() if result["asked_as"] == name]
        has_samples = all(
            result.get("samples") and all((folder / file).exists() for file in result["samples"]) for result in results
        )
        if log_samples and not has_samples:
            return False
        # A failed task is tried again.
        return bool(results) and all("error" not in r and r["file_fingerprint"] == fingerprint for r in results)

    return Measurement(is_done, measure)


def _perplexities(settings: Mapping[str, Any], provenance: Provenance, text: Text | None) -> list[Measurement]:
    names = dict.fromkeys(settings["perplexity"]["protocols"])
    if names and text is None:
        if provenance.run is None:
            raise ValueError(
                f"checkpoint={provenance.checkpoint} is not a run of train.py, so it has no validation text: give a "
                "text, such as data=wikitext2, data=local data.paths=FILE or data=pydocs, or perplexity.protocols=[]"
            )
        sources_of_run(*read_run(provenance.run), settings["source"])  # raises for an unknown source
    protocols = [_protocol(name, settings["perplexity"], provenance) for name in names]
    return [_perplexity(protocol, settings, provenance.run, text) for protocol in protocols]


def _perplexity(protocol: Protocol, settings: Mapping[str, Any], run: Path | None, text: Text | None) -> Measurement:
    protocol_fields = {"protocol": protocol.name, "max_length": protocol.max_length, "stride": protocol.stride}

    def measure(entry: Entry, checkpoint: Checkpoint, precision: Precision) -> None:
        stream = _stream(checkpoint, settings, run, text)
        with progress(f"evaluation: perplexity, {protocol.name}", stream.num_scored, "tokens") as advance:
            score = perplexity(
                checkpoint.decoder,
                stream,
                protocol,
                batch_tokens=settings["batch_tokens"],
                autocast=precision.autocast,
                progress=advance,
            )
        others = [other for other in entry["perplexity_results"] if not has_same_protocol(other)]
        entry["perplexity_results"] = [*others, score]

    def has_same_protocol(score: Entry) -> bool:
        return all(score.get(key) == value for key, value in protocol_fields.items())

    def is_done(entry: Entry) -> bool:
        fingerprints = [score["data_fingerprint"] for score in entry["perplexity_results"] if has_same_protocol(score)]
        return bool(fingerprints) and (text is None or text.fingerprint in fingerprints)

    return Measurement(is_done, measure)


def _stream(checkpoint: Checkpoint, settings: Mapping[str, Any], run: Path | None, text: Text | None) -> Stream:
    """Encode the shared text, or if it is None the run's own validation text, with the checkpoint's tokenizer."""
    bos, max_tokens = settings["perplexity"]["bos"], settings["perplexity"]["max_tokens"]
    cache_dir = Path(settings["cache_dir"])
    if text is None:
        assert run is not None  # `_perplexities` raises if both are None
        return run_stream(
            run, checkpoint.tokenizer, cache_dir=cache_dir, max_tokens=max_tokens, source=settings["source"]
        )
    training = training_documents(run, cache_dir)
    seen_share = None if training is None else training.share_of_bytes(text.documents)
    return replace(encode(text, checkpoint.tokenizer, bos=bos, max_tokens=max_tokens), in_training=seen_share)


def _protocol(
    name: Literal["sliding", "non_overlapping"], settings: Mapping[str, Any], provenance: Provenance
) -> Protocol:
    """Return a protocol. By default, its windows are no longer than the context and the sequences of training."""
    default = 1024 if name == "sliding" else 2048
    trained_length = provenance.result.get("sequence_length") or default
    max_length = settings[name]["max_length"] or min(default, provenance.config.max_position_embeddings, trained_length)
    stride = max_length
    if name == "sliding":
        stride = settings[name]["stride"] or max(1, max_length // 2)
    protocol = Protocol(name=name, max_length=max_length, stride=stride)
    protocol.check(provenance.config)
    return protocol
