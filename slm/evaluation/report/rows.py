"""results.csv: a row a checkpoint, the published study's columns first, and a legal table for sweep.py.

Notable: `tokens`, `loss`, `perplexity`, `status` mean what they mean in a table of runs (docs/tables.md), so that
`python sweep.py runs=results.csv` reads it: `tokens` is the training budget and is there only if every row knows it; a
checkpoint without a loss by the first measure has another status than completed, which that reader leaves out.
"""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from slm.evaluation.report.average import average
from slm.evaluation.report.results import (
    Entry,
    Measure,
    Results,
    common_tasks,
    family_of,
    has_loss,
    number,
    score_by,
    tasks_of,
)
from slm.runtime.words import is_number

MEGABYTE = 1e6
"""As in the published table."""
SCORES = ("loss", "perplexity", "bits_per_byte", "se_loss", "se_bits_per_byte", "word_perplexity")
SPEEDS = (
    *("prefill_tokens_per_second", "decode_tokens_per_second", "cache", "compiled", "dtype", "device", "device_name"),
    *("threads", "prompt_tokens", "new_tokens", "repetitions", "peak_memory_bytes", "model_bytes"),
    *("kv_bytes_per_token", "kv_cache_bytes", "state_bytes"),
)
STUDY = ("model", "params_total", "perplexity", "tokens_per_second", "peak_memory_mb", "seconds")
"""The published columns, which are always there."""
IDENTITY = (
    *("checkpoint", "kind", "revision", "fingerprint", "stored_dtype", "dtype", "autocast", "device", "load_seconds"),
    *("wall_seconds", "evaluated_at"),
)


def rows(results: Results) -> list[Entry]:
    """One row a checkpoint; all have the same columns, those that any has a value in, and the published ones."""
    budgets = [entry.get("train_tokens") for entry, _ in results.scored(results.primary)]
    known = bool(budgets) and all(map(is_number, budgets))
    made = [_row(entry, results, known) for entry in results.entries]
    held = {name for row in made for name, value in row.items() if value is not None}
    columns = [name for name in dict.fromkeys(name for row in made for name in row) if name in held or name in STUDY]
    return [{name: row.get(name) for name in columns} for row in made]


def to_csv(table: list[Entry]) -> str:
    """Rows as CSV; empty cells where there is nothing."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]) if table else ["model"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in table)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value).lower() if isinstance(value, bool) else value


def _row(entry: Entry, results: Results, tokens_known: bool) -> Entry:
    score = score_by(entry, results.primary) or {}
    speed, shape = entry.get("speed") or {}, entry.get("shape") or {}
    peak = number(speed, "peak_memory_bytes")
    status = entry.get("status", "completed")
    if status == "completed" and not has_loss(score):
        status = "no loss"
    published = {
        "model": entry["name"],
        "params_total": entry["params_total"],
        "perplexity": score.get("perplexity"),
        "tokens_per_second": speed.get("decode_tokens_per_second"),
        "peak_memory_mb": None if peak is None else peak / MEGABYTE,
        "seconds": entry.get("wall_seconds"),
    }
    table = {
        "family": family_of(entry),
        "params_non_embedding": entry.get("params_non_embedding"),
        "width": shape.get("hidden_size"),
        "depth": shape.get("num_layers"),
        "vocab_size": shape.get("vocab_size"),
        "status": status,
        **({"tokens": entry.get("train_tokens")} if tokens_known else {"train_tokens": entry.get("train_tokens")}),
    }
    return published | table | _scores(score) | _others(entry, results) | _speed(speed) | _tasks(entry, results) | {
        name: entry.get(name) for name in IDENTITY
    }  # fmt: skip


def _scores(score: Entry) -> Entry:
    named = {"eval_data": "data", "eval_data_fingerprint": "data_fingerprint", "eval_tokens": "tokens"}
    named |= {"eval_bytes": "bytes", "protocol": "protocol", "max_length": "max_length", "stride": "stride"}
    return {name: score.get(name) for name in SCORES if name != "perplexity"} | {
        column: score.get(name) for column, name in named.items()
    }


def _others(entry: Entry, results: Results) -> Entry:
    """Results by further measures, in columns that end in the measure."""
    found: Entry = {}
    endings = suffixes(results)
    for measure in results.measures[1:]:
        score = score_by(entry, measure) or {}
        found |= {f"{name}_{endings[measure]}": score.get(name) for name in (*SCORES, "tokens", "bytes")}
    return found


def suffixes(results: Results) -> dict[Measure, str]:
    """Unique endings of columns: text and protocol, and the fingerprint where two texts have one name."""
    keys = [measure.key for measure in results.measures]
    return {
        measure: key if keys.count(key) == 1 else f"{key}_{measure.fingerprint[:8]}"
        for measure, key in zip(results.measures, keys, strict=True)
    }


def _speed(speed: Entry) -> Entry:
    shown = {f"speed_{name}" if name in ("dtype", "device") else name: speed.get(name) for name in SPEEDS}
    for name in ("prefill", "decode"):
        low, high = speed.get(f"{name}_spread") or (None, None)
        shown |= {f"{name}_low": low, f"{name}_high": high}
    apart = speed.get("without_sharing") or {}
    return shown | {
        f"{name}_tokens_per_second_without_sharing": apart.get(f"{name}_tokens_per_second")
        for name in ("prefill", "decode")
    }


def _tasks(entry: Entry, results: Results) -> Entry:
    common = common_tasks(results.entries)
    found: Entry = {}
    for name, one in (entry.get("tasks") or {}).items():
        found |= {f"tasks/{name}": one.get("value")}
        found |= {f"tasks/{name}/{key}": one.get(key) for key in ("se", "n", "metric", "num_fewshot")}
        for metric, also in (one.get("also") or {}).items():
            found |= {f"tasks/{name}/{metric}": also.get("value"), f"tasks/{name}/{metric}/se": also.get("se")}
    if common and tasks_of(entry):
        value, se = average(entry, common)
        found |= {"tasks/average": value, "tasks/average/se": se, "tasks/average/of": len(common)}
    return found
