"""Make results.csv: one row per checkpoint. The columns of the published MobileLLM study (`study.py`) come first.

Notable: `tokens`, `loss`, `perplexity` and `status` have the same meaning as in a table of runs (docs/tables.md), so
`python sweep.py runs=results.csv` works. `tokens` is the training budget, and is a column only if every row with a loss
has a budget. A checkpoint without a loss under the primary measure (the text and protocol of most checkpoints) has the
status "no loss", and sweep.py skips its row. If no text was scored, no row needs a loss: a task may be the target.
"""

import csv
import io

from slm.evaluation.report.results import (
    Entry,
    Results,
    average,
    common_tasks,
    family_of,
    has_loss,
    number,
    score_for,
    tasks_of,
)
from slm.runtime.words import is_number

SCORE_KEYS = ("loss", "perplexity", "bits_per_byte", "se_loss", "se_bits_per_byte", "word_perplexity")
SCORE_COLUMNS = {
    **{name: name for name in SCORE_KEYS if name != "perplexity"},
    **{f"eval_{name}": name for name in ("data", "data_fingerprint", "tokens", "bytes")},
    **{name: name for name in ("protocol", "max_length", "stride")},
}
"""Column -> key of a score under the primary measure."""
SPEED_KEYS = ("prefill_tokens_per_second", "decode_tokens_per_second", "cache", "compiled", "dtype", "device",
              "device_name", "threads", "prompt_tokens", "new_tokens", "repetitions", "peak_memory_bytes",
              "model_bytes", "kv_bytes_per_token", "kv_cache_bytes", "state_bytes")  # fmt: skip
STUDY_COLUMNS = ("model", "params_total", "perplexity", "tokens_per_second", "peak_memory_mb", "seconds")
"""The published columns, which every results.csv has."""
IDENTITY_COLUMNS = ("checkpoint", "kind", "revision", "fingerprint", "stored_dtype", "dtype", "autocast", "device",
                    "quantize", "load_seconds", "wall_seconds", "evaluated_at")  # fmt: skip


def rows(results: Results) -> list[Entry]:
    """Return one row per checkpoint. Columns other than the published ones are left out if no row has a value."""
    scored = [entry for entry, _ in results.scores_under(results.primary)] if results.primary else results.entries
    budgets = [entry.get("train_tokens") for entry in scored]
    has_budgets = bool(budgets) and all(map(is_number, budgets))
    table = [_row(entry, results, has_budgets) for entry in results.entries]
    names = dict.fromkeys(name for row in table for name in row)
    with_values = {name for row in table for name, value in row.items() if value is not None}
    columns = [name for name in names if name in with_values or name in STUDY_COLUMNS]
    return [{name: row.get(name) for name in columns} for row in table]


def to_csv(table: list[Entry]) -> str:
    """Return the rows as CSV. A missing value is an empty cell, and booleans are lower case."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]) if table else ["model"], lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()})
    return text.getvalue()


def _row(entry: Entry, results: Results, has_budgets: bool) -> Entry:
    score, speed, shape = score_for(entry, results.primary), entry["speed"], entry["shape"]
    lacks_loss = entry["status"] == "completed" and results.primary and not has_loss(score)
    status = "no loss" if lacks_loss else entry["status"]
    peak_bytes = number(speed, "peak_memory_bytes")
    model_bytes = number(entry, "model_bytes") or number(speed, "model_bytes")
    tokens_column = "tokens" if has_budgets else "train_tokens"
    return {
        "model": entry["name"],
        "params_total": entry["params_total"],
        "perplexity": score.get("perplexity"),
        "tokens_per_second": speed.get("decode_tokens_per_second"),
        "peak_memory_mb": None if peak_bytes is None else peak_bytes / 1e6,
        "seconds": entry.get("wall_seconds"),
        "family": family_of(entry),
        "params_non_embedding": entry.get("params_non_embedding"),
        "width": shape.get("hidden_size"),
        "depth": shape.get("num_layers"),
        "block_uses": shape["num_layers"] * (shape.get("num_repeats") or 1) if shape.get("num_layers") else None,
        "vocab_size": shape.get("vocab_size"),
        "status": status,
        tokens_column: entry.get("train_tokens"),
        **{column: score.get(key) for column, key in SCORE_COLUMNS.items()},
        **_other_scores(entry, results),
        **_speed_columns(speed),
        "model_bytes": model_bytes,
        "bits_per_weight": 8 * model_bytes / entry["params_total"] if model_bytes else None,
        **_task_columns(entry, results),
        **{name: entry.get(name) for name in IDENTITY_COLUMNS},
    }


def _other_scores(entry: Entry, results: Results) -> Entry:
    """Return the scores under all measures but the primary one. Columns end in `measure.key`, if that is unique."""
    columns: Entry = {}
    keys = [measure.key for measure in results.measures]
    for measure in results.measures[1:]:
        suffix = measure.key if keys.count(measure.key) == 1 else f"{measure.key}_{measure.fingerprint[:8]}"
        score = score_for(entry, measure)
        columns |= {f"{name}_{suffix}": score.get(name) for name in (*SCORE_KEYS, "tokens", "bytes")}
    return columns


def _speed_columns(speed: Entry) -> Entry:
    columns: Entry = {}
    for name in SPEED_KEYS:
        # Columns `dtype` and `device` tell how the checkpoint was scored, so these two get a prefix.
        column = f"speed_{name}" if name in ("dtype", "device") else name
        columns[column] = speed.get(name)
    for name in ("prefill", "decode"):
        columns[f"{name}_low"], columns[f"{name}_high"] = speed.get(f"{name}_spread") or (None, None)
    without_block_sharing = speed.get("without_sharing") or {}
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second"):
        columns[f"{name}_without_sharing"] = without_block_sharing.get(name)
    return columns


def _task_columns(entry: Entry, results: Results) -> Entry:
    columns: Entry = {}
    for name, result in entry["tasks"].items():
        columns[f"tasks/{name}"] = result.get("value")
        columns |= {f"tasks/{name}/{key}": result.get(key) for key in ("se", "n", "chance", "metric", "num_fewshot")}
        for metric, other in (result.get("also") or {}).items():
            columns |= {f"tasks/{name}/{metric}": other.get("value"), f"tasks/{name}/{metric}/se": other.get("se")}
    common = common_tasks(results.entries)
    if common and tasks_of(entry):
        value, se = average(entry, common)
        columns |= {"tasks/average": value, "tasks/average/se": se, "tasks/average/num_tasks": len(common)}
        if common_tasks(results.entries, "bits_per_byte") == common:
            value, se = average(entry, common, "bits_per_byte")
            columns |= {"tasks/average/bits_per_byte": value, "tasks/average/bits_per_byte/se": se}
    return columns
