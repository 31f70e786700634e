"""Collect runs into one table, with a row for each `result.json`, even if the run failed or was interrupted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

COLUMNS = (
    "run_id", "trunk", "family", "name", "seed", "status", "params_total", "params_non_embedding", "tokens", "flops",
    "flops_6n", "width", "depth", "lr", "batch_tokens", "sequence_length", "document_masking", "steps", "optimizer",
    "ema_decay", "schedule", "parametrization", "data_fingerprint", "epochs", "tokenizer_fingerprint",
    "vocab_size", "precision", "loss", "bits_per_byte", "perplexity", "val_tokens", "val_bytes", "tokens_per_second",
    "peak_memory_bytes", "wall_seconds", "device", "versions", "git_commit", "init_from", "distill", "quantize",
    "budget", "lr_rule", "lr_at_end", "lr_tried",
)  # fmt: skip
"""The columns of a sweep's table before any cell has a result. A branch is a run that continues from a checkpoint of
another run, its `trunk`. Only tuned learning rates have `lr_at_end` and `lr_tried`."""
SAME_AS_TRUNK = ("family", "seed", "lr", "width", "depth", "params_total", "batch_tokens", "data_fingerprint")
"""Columns in which a branch and its trunk have the same values."""


def collect_runs(directory: str | Path) -> pd.DataFrame:
    """One row per run found at any depth under `directory` (a folder of run directories, such as `multirun/DATE`).

    `loss` is in nats per token, at the last step; only completed runs have one. `flops` are exact training FLOPs,
    `depth` counts distinct blocks, `epochs` counts how often the training text was seen, and `run_id` is the run's
    folder relative to `directory`. Raises `ValueError` if there is no run or a result cannot be read.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ValueError(f"{root} is a file: give a directory of runs" if root.exists() else f"{root} does not exist")
    paths = sorted(root.rglob("result.json"))
    if not paths:
        raise ValueError(f"{root} holds no run: there is no result.json in it or in any directory below it")
    rows = [row_of_run(path, root) for path in paths]
    return table_of_runs([row | {"trunk": _trunk(row, rows)} for row in rows])


def table_of_runs(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a table; without rows, an empty table of `COLUMNS`. `trunk` is left out if no run is a branch."""
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    has_branches = any(row["trunk"] is not None for row in rows)
    return pd.DataFrame(rows) if has_branches else pd.DataFrame(rows).drop(columns="trunk")


def _trunk(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The `run_id` of the trunk of `row`, or of the trunk's own trunk if it is a branch; None if `row` is not a branch.

    `rows` hold the name of each trunk. The name is returned if no run has this name and the settings of `row`.
    """
    others = [other for other in rows if other is not row]
    settings = [row[key] for key in SAME_AS_TRUNK]
    candidates = [other for other in others if other["name"] == row["trunk"]]
    candidates = [other for other in candidates if [other[key] for key in SAME_AS_TRUNK] == settings]
    if row["trunk"] is None or not candidates:
        return row["trunk"]
    # Of several runs with this name, prefer one that is not a branch; among these, the longest.
    trunk = max(candidates, key=lambda other: (other["trunk"] is None, other["tokens"]))
    return trunk["run_id"] if trunk["trunk"] is None else _trunk(trunk, others)


def row_of_run(path: Path, root: Path) -> dict[str, Any]:
    """The columns of the run whose result.json is at `path`. Raises `ValueError` for a result that cannot be read."""
    result = _read_result(path)
    folder = path.parent.relative_to(root)
    run_id = str(folder) if folder.parts else root.resolve().name
    try:
        trunk = (result.get("branched_from") or {}).get("name")  # the name of the run, not of its folder
        identity = {name: result[name] for name in ("family", "name", "seed", "status")}
        return {"run_id": run_id, "trunk": trunk} | identity | _settings(result) | _measurements(result)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"has no {error.args[0]}" if isinstance(error, KeyError) else "has other fields"
        raise ValueError(f"{path} {what}: this version cannot read it as a result of train.py") from None


def _read_result(path: Path) -> Mapping[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not JSON ({error}): move the run away or run it again") from None
    if not isinstance(result, dict):
        raise ValueError(f"{path} must hold the result of a run as a JSON object: move the file away")
    return result


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    shape = result["shape"]
    return {
        "params_total": result["params_total"],
        "params_non_embedding": result["params_non_embedding"],
        "tokens": result["train_tokens"],
        "flops": result["flops_per_token_exact"] * result["train_tokens"],
        "flops_6n": result["flops_per_token_6n"] * result["train_tokens"],
        "width": shape["hidden_size"],
        "depth": shape["num_layers"],
        "lr": result["peak_lr"],
        "batch_tokens": result["batch_tokens"],
        "sequence_length": result["sequence_length"],
        "document_masking": result.get("document_masking", False),  # older runs had no masking
        "steps": result["steps"],
        "optimizer": result.get("optimizer", "adamw"),  # the only optimizer of older runs
        "ema_decay": result.get("ema_decay") or 0.0,  # 0 means no averaging; an empty cell would mean unknown
        "schedule": _schedule_text(result["schedule"]),
        "parametrization": result["parametrization"],
        "data_fingerprint": result["data"]["fingerprint"],
        "epochs": result["data"].get("epochs"),  # unknown for older runs; of a mix, of its most repeated source
        "tokenizer_fingerprint": result["tokenizer"]["fingerprint"],
        "vocab_size": result["tokenizer"]["vocab_size"],
        "precision": result["precision"],
    }


def _measurements(result: Mapping[str, Any]) -> dict[str, Any]:
    val: Mapping[str, Any] = {}  # empty for interrupted runs, which are scored on only a part of the validation set
    if result["status"] == "completed":
        val = result["val"] or {}
    scores = {name: val.get(name) for name in ("loss", "bits_per_byte", "perplexity")}
    for name, task in (result.get("tasks") or {}).items() if val else ():  # of `train.eval_tasks`, as in results.csv
        scores[f"tasks/{name}"] = task["value"]
        scores |= {f"tasks/{name}/{metric}": measured["value"] for metric, measured in task["also"].items()}
    speed = {name: result[name] for name in ("tokens_per_second", "peak_memory_bytes", "wall_seconds", "device")}
    versions = ", ".join(f"{package} {number}" for package, number in (result.get("versions") or {}).items())
    origin = {"versions": versions or None, "git_commit": result.get("git_commit")}  # older runs have neither
    start = result.get("init_from")
    weights = "scratch" if start is None else f"weights {start['fingerprint']}"
    origin |= {"init_from": weights, "distill": _teacher_text(result.get("distill"))}
    origin["quantize"] = result.get("quantize") or "none"
    for source, score in (val.get("by_source") or {}).items():
        scores |= {f"val_{source}_{name}": score[name] for name in ("loss", "bits_per_byte")}
    return scores | {"val_tokens": val.get("tokens"), "val_bytes": val.get("bytes")} | speed | origin


def _teacher_text(distill: Mapping[str, Any] | None) -> str:
    """`no teacher`, or its fingerprint and the settings, as in `ab12(temperature=2.0, top_k=None, weight=0.5)`."""
    if distill is None:
        return "no teacher"
    settings = ", ".join(f"{key}={distill[key]}" for key in ("temperature", "top_k", "weight"))
    return f"{distill['fingerprint']}({settings})"


def _schedule_text(schedule: Mapping[str, Any]) -> str:
    """Name and sorted settings of a schedule, as text: `cosine(final_fraction=0.1, warmup_fraction=0.05)`."""
    settings = [f"{key}={value}" for key, value in sorted(schedule.items()) if key != "name" and value is not None]
    return f"{schedule['name']}({', '.join(settings)})"
