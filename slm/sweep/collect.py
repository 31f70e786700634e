"""Runs as one table: a row for each `result.json`, whatever became of the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from slm.sweep.cells import Cell


def collect_runs(directory: str | Path) -> pd.DataFrame:
    """One row a run found at any depth under `directory` (a folder of run directories, such as `multirun/DATE`).

    Losses are nats a token and only those of completed runs, whose whole validation set was scored; `flops` are exact
    training FLOPs, `depth` counts distinct blocks, `run_id` is the run's folder relative to `directory`. Raises
    `ValueError` of one sentence if there is no run or a result cannot be read.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ValueError(f"{root} is {'a file' if root.exists() else 'not there'}: give a directory of runs")
    paths = sorted(root.rglob("result.json"))
    if not paths:
        raise ValueError(f"{root} holds no run: no result.json is in it or in any directory below it")
    return pd.DataFrame([_row(path, root) for path in paths])


def collect_cells(directory: Path, cells: Iterable[Cell], lr_rule: str) -> pd.DataFrame:
    """`collect_runs` for the cells of a sweep that have a result, with their `budget` and the rule of their rates."""
    paths = ((cell, directory / cell.name / "result.json") for cell in cells)
    return pd.DataFrame(
        [_row(path, directory) | {"budget": cell.budget, "lr_rule": lr_rule} for cell, path in paths if path.exists()]
    )


def _row(path: Path, root: Path) -> dict[str, Any]:
    result = _read(path)
    folder = path.parent.relative_to(root)
    run_id = str(folder) if folder.parts else root.resolve().name
    try:
        return {"run_id": run_id} | _identity(result) | _settings(result) | _measurements(result)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"has no {error.args[0]}" if isinstance(error, KeyError) else "has other fields"
        raise ValueError(f"{path} {what}: it is no result of train.py that this version reads") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not JSON ({error}): move that run away or run it again") from None
    if not isinstance(result, dict):
        raise ValueError(f"{path} holds no result of a run: move it away")
    return result


def _identity(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("family", "name", "seed", "status")}


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
        "document_masking": result.get("document_masking", False),  # which older runs lack
        "steps": result["steps"],
        "schedule": _canonical(result["schedule"]),
        "parametrization": result["parametrization"],
        "data_fingerprint": result["data"]["fingerprint"],
        "tokenizer_fingerprint": result["tokenizer"]["fingerprint"],
        "vocab_size": result["tokenizer"]["vocab_size"],
        "precision": result["precision"],
    }


def _measurements(result: Mapping[str, Any]) -> dict[str, Any]:
    # An interrupted run has the loss of a part of the validation set, which compares with nothing.
    val = (result["val"] or {}) if result["status"] == "completed" else {}
    scores = {name: val.get(name) for name in ("loss", "bits_per_byte", "perplexity")}
    speed = {name: result[name] for name in ("tokens_per_second", "peak_memory_bytes", "wall_seconds", "device")}
    return scores | {"val_tokens": val.get("tokens"), "val_bytes": val.get("bytes")} | speed


def _canonical(schedule: Mapping[str, Any]) -> str:
    """Name and settings in one order: `cosine(final_fraction=0.1, warmup_fraction=0.05)`."""
    given = {key: value for key, value in sorted(schedule.items()) if key != "name" and value is not None}
    return f"{schedule['name']}({', '.join(f'{key}={value}' for key, value in given.items())})"
