"""Runs as one table: a row for each `result.json`, whatever became of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

COLUMNS = (
    *("run_id", "trunk", "family", "name", "seed", "status", "params_total", "params_non_embedding", "tokens"),
    *("flops", "flops_6n", "width", "depth", "lr", "batch_tokens", "sequence_length", "document_masking", "steps"),
    *("optimizer", "ema_decay", "schedule", "parametrization", "data_fingerprint", "tokenizer_fingerprint"),
    *("vocab_size", "precision", "loss", "bits_per_byte", "perplexity", "val_tokens", "val_bytes"),
    *("tokens_per_second", "peak_memory_bytes", "wall_seconds", "device", "budget", "lr_rule", "lr_at_end"),
    "lr_tried",
)
"""The columns of a sweep's table before any cell has a result. Only branches have `trunk`, and only tuned rates
`lr_at_end` and `lr_tried`."""
SHARED = ("family", "seed", "lr", "width", "depth", "params_total", "batch_tokens", "data_fingerprint")
"""Columns in which a branch and its trunk agree."""


def collect_runs(directory: str | Path) -> pd.DataFrame:
    """One row a run found at any depth under `directory` (a folder of run directories, such as `multirun/DATE`).

    Losses are nats a token and only those of completed runs, at their last step; `flops` are exact training FLOPs,
    `depth` counts distinct blocks, `run_id` is the run's folder relative to `directory`. Raises `ValueError` of one
    sentence if there is no run or a result cannot be read.
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
    """The rows as a table, with the column `trunk` only if a run was branched off another."""
    frame = pd.DataFrame(rows, columns=None if rows else COLUMNS)
    return frame.drop(columns="trunk") if all(row["trunk"] is None for row in rows) and rows else frame


def _trunk(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The `run_id` of the run from step 0 that `row` goes back to, or the name of its trunk if that is not in `rows`.

    Several runs may have the name and settings of a trunk; the longest of them is taken.
    """
    others = [other for other in rows if other is not row]
    shared = [row[key] for key in SHARED]
    same = [other for other in others if other["name"] == row["trunk"] and [other[key] for key in SHARED] == shared]
    if row["trunk"] is None or not same:
        return row["trunk"]
    trunk = max(same, key=lambda other: (other["trunk"] is None, other["tokens"]))
    return trunk["run_id"] if trunk["trunk"] is None else _trunk(trunk, others)


def row_of_run(path: Path, root: Path) -> dict[str, Any]:
    """The columns of the run whose result.json is at `path`. Raises `ValueError` for a result that cannot be read."""
    result = _read(path)
    folder = path.parent.relative_to(root)
    run_id = str(folder) if folder.parts else root.resolve().name
    try:
        trunk = (result.get("branched_from") or {}).get("name")  # the name of that run, not of its folder
        identity = {name: result[name] for name in ("family", "name", "seed", "status")}
        return {"run_id": run_id, "trunk": trunk} | identity | _settings(result) | _measurements(result)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"has no {error.args[0]}" if isinstance(error, KeyError) else "has other fields"
        raise ValueError(f"{path} {what}: this version cannot read it as a result of train.py") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not JSON ({error}): move that run away or run it again") from None
    if not isinstance(result, dict):
        raise ValueError(f"{path} must hold the result of a run as a JSON object: move it away")
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
        "document_masking": result.get("document_masking", False),  # older runs had no choice
        "steps": result["steps"],
        "optimizer": result.get("optimizer", "adamw"),  # the only optimizer of older runs
        "ema_decay": result.get("ema_decay") or 0.0,  # 0 for no average: a blank would mean unknown
        "schedule": _canonical(result["schedule"]),
        "parametrization": result["parametrization"],
        "data_fingerprint": result["data"]["fingerprint"],
        "tokenizer_fingerprint": result["tokenizer"]["fingerprint"],
        "vocab_size": result["tokenizer"]["vocab_size"],
        "precision": result["precision"],
    }


def _measurements(result: Mapping[str, Any]) -> dict[str, Any]:
    # An interrupted run has the loss of only a part of the validation set, which is not comparable.
    val = (result["val"] or {}) if result["status"] == "completed" else {}
    scores = {name: val.get(name) for name in ("loss", "bits_per_byte", "perplexity")}
    speed = {name: result[name] for name in ("tokens_per_second", "peak_memory_bytes", "wall_seconds", "device")}
    return scores | {"val_tokens": val.get("tokens"), "val_bytes": val.get("bytes")} | speed


def _canonical(schedule: Mapping[str, Any]) -> str:
    """Name and settings in one order: `cosine(final_fraction=0.1, warmup_fraction=0.05)`."""
    given = {key: value for key, value in sorted(schedule.items()) if key != "name" and value is not None}
    return f"{schedule['name']}({', '.join(f'{key}={value}' for key, value in given.items())})"
