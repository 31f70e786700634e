"""`evaluate`: from checked settings to measured checkpoints, a report, and an exit code."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slm.checkpoints import Provenance, check, export, load
from slm.checkpoints.weights import dtype_name
from slm.evaluation.config import address_of
from slm.evaluation.generation import stream_sample
from slm.evaluation.ledger import Ledger
from slm.evaluation.measure import Measurement, planned, text_of
from slm.evaluation.precision import Precision, resolve_precision
from slm.evaluation.report import write_report
from slm.evaluation.summary import print_summary
from slm.evaluation.tasks import check_tasks
from slm.evaluation.texts import Text
from slm.model.counts import num_params
from slm.tracking import check_logger, record_evaluation

Entry = dict[str, Any]

SKIPPED_TASKS = 3
"""Exit code where all was measured but tasks whose data could not be had."""
SCHEMA = 1


def evaluate(settings: Mapping[str, Any]) -> int:
    """Measure, sample from, or export the checkpoints; `settings` are those that `check_settings` returns.

    An `output_dir` that holds the same evaluation is continued: what is measured already is not measured again.
    Raises `ValueError`, before any work, for what a user can get wrong.
    """
    if settings["prompt"] is not None:
        return _sample(settings)
    if settings["export"] is not None:
        return _export(settings)
    check_logger(settings["logger"])
    if settings["logger"]["tensorboard"]:
        raise ValueError("logger=tensorboard holds no tables: use logger=wandb, or logger=csv for the files alone")
    check_tasks(settings["tasks"], settings["task_files"])
    folder = Path(settings["output_dir"])
    ledger = Ledger(folder, settings)
    found = {checkpoint: _checked(checkpoint, settings) for checkpoint in settings["checkpoints"]}
    _refuse_doubles(found)
    text = text_of(settings)  # which may have to be built, so mistakes in checkpoints come first
    plans = {name: _plan(provenance, settings, text) for name, provenance in found.items()}
    for note in text.notes if text else ():
        _say(note)
    with ledger.claimed():
        _say(f"results go to {folder}")
        for number, (checkpoint, (provenance, precision, measurements)) in enumerate(plans.items(), start=1):
            _say(f"[{number}/{len(plans)}] {checkpoint}")
            entry = ledger.entry(_facts(checkpoint, provenance, precision))
            _measure(entry, measurements, provenance, precision, ledger)
        ledger.arrange(settings["checkpoints"])
        ledger.save()
        files = write_report(folder, ledger.entries, command=_command())
        _record(folder, ledger.entries, settings, files)
    print_summary(ledger.entries, folder)
    return SKIPPED_TASKS if any("error" in task for e in ledger.entries for task in e["tasks"].values()) else 0


def _checked(checkpoint: str, settings: Mapping[str, Any]) -> Provenance:
    address, revision = address_of(checkpoint, settings)
    return check(address, revision=revision)


def _plan(
    provenance: Provenance, settings: Mapping[str, Any], text: Text | None
) -> tuple[Provenance, Precision, list[Measurement]]:
    """What is to be measured of a checkpoint, everything refused that can be before its weights are read."""
    precision = resolve_precision(settings, provenance)
    return provenance, precision, planned(settings, provenance, precision, text)


def _refuse_doubles(found: Mapping[str, Provenance]) -> None:
    """A model beside itself would enter comparisons and fits twice."""
    names: dict[str, str] = {}
    for name, provenance in found.items():
        if provenance.fingerprint in names:
            raise ValueError(f"checkpoints: {names[provenance.fingerprint]} and {name} are the same weights: name one")
        names[provenance.fingerprint] = name


def _measure(
    entry: Entry,
    measurements: Sequence[Measurement],
    provenance: Provenance,
    precision: Precision,
    ledger: Ledger,
) -> None:
    """Take the measurements that `entry` lacks, saving each; the checkpoint is only loaded if there are any."""
    missing = [one for one in measurements if not one.is_in(entry)]
    if not missing:
        _say("  measured already")
        return
    start = time.perf_counter()
    checkpoint = load(
        provenance.checkpoint if provenance.revision is None else provenance.folder,
        dtype=precision.dtype,
        device=precision.device,
    )
    entry["load_seconds"] = time.perf_counter() - start
    entry["params_total"] = num_params(checkpoint.decoder.config)
    entry["params_non_embedding"] = num_params(checkpoint.decoder.config, non_embedding=True)
    entry["shape"] = checkpoint.decoder.config.to_dict()
    if checkpoint.provenance.fingerprint != provenance.fingerprint:
        raise ValueError(f"checkpoint={entry['checkpoint']} was changed by somebody meanwhile: give the command again")
    entry["notes"] = [*checkpoint.provenance.notes, *precision.notes, *filter(None, [entry.get("continued")])]
    for one in missing:
        begin = time.perf_counter()
        one.take(entry, checkpoint, precision)
        entry["wall_seconds"] += time.perf_counter() - begin
        entry["evaluated_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        ledger.save()
    entry["status"] = "completed"
    ledger.save()


def _facts(checkpoint: str, provenance: Provenance, precision: Precision) -> Entry:
    """The part of an entry that is known before anything is measured."""
    result = provenance.result
    return {
        "schema": SCHEMA,
        "checkpoint": checkpoint,
        "name": checkpoint,
        "kind": provenance.kind,
        "revision": provenance.revision,
        "fingerprint": provenance.fingerprint,
        "family": result.get("family"),
        "train_tokens": result.get("train_tokens"),
        "stored_dtype": provenance.stored_dtype,
        "dtype": dtype_name(precision.dtype),
        "autocast": None if precision.autocast is None else dtype_name(precision.autocast),
        "device": precision.device,
        "versions": {package: version(package) for package in ("slm", "torch")},
    }


def _sample(settings: Mapping[str, Any]) -> int:
    address, revision = address_of(settings["checkpoints"][0], settings)
    precision = resolve_precision(settings, check(address, revision=revision))
    checkpoint = load(address, revision=revision, dtype=precision.dtype, device=precision.device)
    stream_sample(checkpoint, settings["prompt"], settings["generation"], seed=settings["seed"])
    return 0


def _export(settings: Mapping[str, Any]) -> int:
    address, revision = address_of(settings["checkpoints"][0], settings)
    folder = export(address, settings["export"], revision=revision, unroll_sharing=settings["unroll_sharing"])
    print(f"exported to {folder}")
    return 0


def _record(folder: Path, entries: Sequence[Entry], settings: Mapping[str, Any], files: Sequence[Path]) -> None:
    if not settings["logger"]["wandb"]:
        return
    record_evaluation(
        folder,
        entries,
        name=f"evaluation-{folder.name}",
        config={key: value for key, value in settings.items() if key != "logger"},
        settings=settings["logger"],
        files=[folder / "results.json", *files],
        images=[file for file in files if file.suffix == ".png"],
    )


def _command() -> str:
    return shlex.join(["python", *sys.argv])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
