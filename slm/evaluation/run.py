"""`evaluate` takes checked settings, measures the checkpoints, writes the report and returns an exit code."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence, Sized
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slm.checkpoints import AnyProvenance as Provenance
from slm.checkpoints import check_any, export
from slm.checkpoints.engine_export import export_for_engine
from slm.checkpoints.weights import dtype_name
from slm.evaluation.config import address_of
from slm.evaluation.ledger import Entry, Ledger, with_quantisation
from slm.evaluation.measure import (
    Measurement,
    Precision,
    load_checked,
    plan_measurements,
    resolve_precision,
    shared_text,
)
from slm.evaluation.report.results import Results, task_metric
from slm.evaluation.report.rows import rows
from slm.evaluation.report.ship import ship_entry
from slm.evaluation.report.tasks import MEASURES
from slm.evaluation.report.write import print_report, write_report
from slm.evaluation.tasks import check_tasks
from slm.report.ship import choice_rows
from slm.runtime.address import is_engine_file
from slm.runtime.machine import why_no_gpu
from slm.runtime.progress import say
from slm.runtime.system import keep_freed_memory
from slm.runtime.words import is_number
from slm.tracking import Record, check_logger, is_tracked, record_directory

SKIPPED_TASKS = 3  # exit code if everything was measured except baselines, or tasks whose data was not available
SCHEMA = 1
SUMMARY_COLUMNS = ("perplexity", "bits_per_byte", "decode_tokens_per_second")  # logged to the summary of a W&B run
TASK_COLUMNS = ("model", "task", "metric", "value", "se", "chance", "n", "num_fewshot",
                *(f"{name}{end}" for name in MEASURES for end in ("", "_se")), "error")  # fmt: skip


def evaluate(settings: Mapping[str, Any]) -> int:
    """Measure or export the checkpoints; return an exit code, 0 or `SKIPPED_TASKS`.

    `settings` comes from `check_settings`. If `output_dir` holds an evaluation with the same settings, it is continued
    and nothing is measured twice. Raises `ValueError` before any measurement if the user made a mistake.
    """
    if settings["export"] is not None:
        return _export(settings)
    check_logger(settings["logger"])
    check_tasks(settings["tasks"], settings["task_files"])
    folder = Path(settings["output_dir"])
    ledger = Ledger(folder, settings)
    checkpoints = _check_all(settings)
    text = shared_text(settings)  # after the checks, because building the text can take long
    plans = []
    for name, provenance in checkpoints.items():  # plan all measurements before reading any weights
        for kind in _quantisations(name, settings):
            try:
                precision = resolve_precision(settings, provenance, kind)
                plans.append((name, provenance, precision, plan_measurements(settings, provenance, precision, text)))
            except ValueError as error:
                _skip_or_raise(name, error, settings, kind)
    labels = [
        with_quantisation(name, kind) for name in settings["checkpoints"] for kind in _quantisations(name, settings)
    ]
    _require_any(plans)
    if text is not None:
        for note in text.notes:
            say(note)
    if settings["device"] == "auto" and (reason := why_no_gpu()):
        say(f"WARNING: this evaluation runs on the CPU, but {reason}")
    keep_freed_memory()
    measured = []
    with ledger.lock():
        say(f"results go to {folder}")
        for position, (name, provenance, precision, measurements) in enumerate(plans, start=1):
            label = with_quantisation(name, precision.quantize)
            say(f"[{position}/{len(plans)}] {label}")
            entry = ledger.find_or_add(_describe(name, provenance, precision))
            try:
                _measure(entry, measurements, provenance, precision, ledger)
            except ValueError as error:
                _skip_or_raise(name, error, settings, precision.quantize)
                if entry["status"] != "completed":  # else it has the results of earlier commands
                    ledger.entries.remove(entry)
            else:
                measured.append(label)
        _require_any(ledger.entries)
        ledger.arrange(labels)
        ledger.save()
        files = write_report(folder, ledger.entries, command=shlex.join(["python", *sys.argv]), limits=settings["ship"])
        if is_tracked(settings["logger"]):
            record(folder, ledger.entries, settings, files)
    print_report(ledger.entries, folder, settings["ship"])
    task_results = [result for entry in ledger.entries for result in entry["tasks"].values()]
    is_complete = measured == labels and not any("error" in result for result in task_results)
    return 0 if is_complete else SKIPPED_TASKS


def _check_all(settings: Mapping[str, Any]) -> dict[str, Provenance]:
    """Check all checkpoints. One that fails is refused, or skipped if it is one of the baselines."""
    checkpoints: dict[str, Provenance] = {}
    name_by_fingerprint: dict[str, str] = {}
    for name in settings["checkpoints"]:
        try:
            address, revision = address_of(name, settings)
            provenance = check_any(address, revision=revision)
            first_name = name_by_fingerprint.setdefault(provenance.fingerprint, name)
            if first_name != name:  # comparisons and fits would count equal weights twice
                raise ValueError(f"checkpoints: {first_name} and {name} have the same weights: give only one of them")
        except ValueError as error:
            _skip_or_raise(name, error, settings)
        else:
            checkpoints[name] = provenance
    _require_any(checkpoints)
    return checkpoints


def _quantisations(checkpoint: str, settings: Mapping[str, Any]) -> list[str | None]:
    """Return the roundings to measure. With null among them, the export for an engine is measured as it is."""
    kinds: list[str | None] = settings["quantize"]
    return [None] if None in kinds and is_engine_file(address_of(checkpoint, settings)[0]) else kinds


def _require_any(left: Sized) -> None:
    if not left:
        raise ValueError("none of the baselines can be measured, each for the reason above")


def _skip_or_raise(name: str, error: ValueError, settings: Mapping[str, Any], kind: str | None = None) -> None:
    if name not in settings["baselines"]:
        raise error
    say(f"  {with_quantisation(name, kind)} is skipped: {error}")


def _measure(
    entry: Entry, measurements: Sequence[Measurement], provenance: Provenance, precision: Precision, ledger: Ledger
) -> None:
    """Take the measurements that `entry` lacks, and save after each. If it lacks none, the checkpoint is not loaded."""
    missing = [measurement for measurement in measurements if not measurement.is_done(entry)]
    if not missing:
        say("  already measured")
        return
    start = time.perf_counter()
    checkpoint = load_checked(provenance, precision)
    if checkpoint.provenance.fingerprint != provenance.fingerprint:
        raise ValueError(f"checkpoint={entry['checkpoint']} changed during the evaluation: run the command again")
    counts = checkpoint.decoder.counts()
    entry["load_seconds"] = time.perf_counter() - start
    entry["params_total"] = counts.params_total
    entry["params_non_embedding"] = counts.params_non_embedding
    entry["model_bytes"] = counts.model_bytes
    entry["shape"] = checkpoint.decoder.config.to_dict()
    entry["notes"] = [*checkpoint.provenance.notes, *precision.notes]
    if "continued" in entry:
        entry["notes"].append(entry["continued"])
    for measurement in missing:
        start = time.perf_counter()
        measurement.measure(entry, checkpoint, precision)
        entry["wall_seconds"] += time.perf_counter() - start
        entry["evaluated_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        ledger.save()
    entry["status"] = "completed"
    ledger.save()


def _describe(checkpoint: str, provenance: Provenance, precision: Precision) -> Entry:
    return {
        "schema": SCHEMA,
        "checkpoint": checkpoint,
        "name": checkpoint,
        "kind": provenance.kind,
        "revision": provenance.revision,
        "fingerprint": provenance.fingerprint,
        "family": provenance.result.get("family"),
        "train_tokens": provenance.result.get("train_tokens"),
        "stored_dtype": provenance.stored_dtype,
        "dtype": dtype_name(precision.dtype),
        "autocast": None if precision.autocast is None else dtype_name(precision.autocast),
        "device": precision.device,
        "quantize": precision.quantize,
        "versions": {package: version(package) for package in ("slm", "torch")},
    }


def record(folder: Path, entries: Sequence[Entry], settings: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Log one run with tables `evaluation` and `tasks`, the figures among `files`, and all files.

    Table `evaluation` has the rows of results.csv. A task that could not be evaluated has an `error` and no value.
    """
    results = Results(entries, limits=settings["ship"])
    checkpoint_rows = rows(results)
    task_rows = [
        {"model": entry["name"], "task": task, **result, **_task_measures(result)}
        for entry in results.entries
        for task, result in entry["tasks"].items()
    ]

    def key(*parts: str) -> str:
        return "/".join(part.replace("/", "_") for part in parts)

    summary: dict[str, float] = {}
    for row in checkpoint_rows:
        summary |= {key(row["model"], name): row[name] for name in SUMMARY_COLUMNS if is_number(row.get(name))}
    for row in task_rows:
        if is_number(row.get("value")):
            summary[key(row["model"], "task", row["task"])] = row["value"]
        if is_number(row.get("bits_per_byte")):
            summary[key(row["model"], "task", row["task"], "bits_per_byte")] = row["bits_per_byte"]
    record_directory(
        Record(
            folder=folder,
            kind="evaluation",
            name=f"evaluation-{folder.name}",
            config=settings,
            tables={
                "evaluation": (list(checkpoint_rows[0]), [list(row.values()) for row in checkpoint_rows]),
                "tasks": (TASK_COLUMNS, [[row.get(column) for column in TASK_COLUMNS] for row in task_rows]),
                **({"ship": choice_rows(made)} if (made := ship_entry(results)) else {}),
            },
            images=[file for file in files if file.suffix == ".png"],
            summary=summary,
            files=[folder / "results.json", *files],
        )
    )


def _task_measures(result: Entry) -> dict[str, Any]:
    """Return bits per byte and margin of the right answer of a task, and their errors, as columns of a table."""
    ends = {"": "value", "_se": "se"}
    return {f"{name}{end}": task_metric(result, name).get(key) for name in MEASURES for end, key in ends.items()}


def _export(settings: Mapping[str, Any]) -> int:
    address, revision = address_of(settings["checkpoints"][0], settings)
    if is_engine_file(address):
        raise ValueError(f"export of {address}, which is an export already: give the checkpoint that it was made from")
    if settings["format"] != "transformers":
        folder = export_for_engine(
            address, settings["export"], engine=settings["format"], revision=revision, dtype=settings["export_dtype"],
            max_length=settings["export_context"], quantize=settings["quantize"][0],
        )  # fmt: skip
    else:
        folder = export(address, settings["export"], revision=revision, unroll_sharing=settings["unroll_sharing"])
    print(f"exported to {folder}")
    return 0
