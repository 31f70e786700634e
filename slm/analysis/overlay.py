"""Overlay released checkpoints on the laws of a sweep, and state how the checkpoints differ from the runs.

Notable: bits per byte are compared, because loss per token depends on the tokenizer; loss is compared only if both
tables name the same tokenizer. Other differences (text, tokens, windows, recipe) are stated as caveats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from slm.analysis.agreement import complete_column
from slm.analysis.audit import TOKENIZER
from slm.runtime.words import count, format_number, shortlist
from slm.scaling.entries import Entry, to_json_types
from slm.scaling.overlay import Model, overlay_law, overlay_models
from slm.scaling.settings import Settings
from slm.scaling.tables import Table, table_from_frame
from slm.scaling.tables.columns import SIZES, TARGETS
from slm.scaling.tables.files import read_rows
from slm.scaling.tables.suspicions import unread_columns
from slm.tracking import Rows

FILE = "overlay.json"
BITS = "bits_per_byte"
NAME_COLUMNS = ("model", "name", "checkpoint", "run_id")
TEXT_COLUMNS = ("eval_data", "eval_set", "evaluation_set")
WINDOW_COLUMNS = ("max_length", "context_length", "sequence_length")


@dataclass(frozen=True)
class Overlay:
    """The rows of an evaluation file: one for each checkpoint and measure (a text, evaluated in one way)."""

    table: Table
    column: str  # the column of the file that is read as bits per byte

    def file_column(self, target: str) -> str:
        """The column of the file that holds the target."""
        return self.column if target == BITS else target


def read_overlay(config: Mapping[str, Any]) -> Overlay | None:
    """Read the file that the key `overlay` names; None if the key is None. Raises `ValueError` for a missing column."""
    source, column = config["overlay"], config["overlay_column"] or BITS
    if source is None:
        return None
    try:
        rows, _ = read_rows(source, [])
        _check_columns(rows, str(source), column)
        if column != BITS:
            rows = rows.drop(columns=BITS, errors="ignore").rename(columns={column: BITS})
        return Overlay(table_from_frame(rows, name=str(source)), column)
    except ValueError as error:  # every message begins with the name of the file
        raise ValueError(f"overlay={error}") from None


def _check_columns(rows: pd.DataFrame, source: str, column: str) -> None:
    if column != BITS and column not in rows:
        names = ", ".join(str(name) for name in rows if str(name).startswith(BITS)) or "none"
        raise ValueError(f"{source} has no column {column}, which overlay_column names: its {BITS} columns are {names}")
    for preferred, accepted in ((SIZES[0], SIZES), (BITS, (column, *TARGETS))):
        if not any(name in rows for name in accepted):
            raise ValueError(f"{source} has no column {preferred}: add it, or give the results.csv of evaluate.py")


def check_overlay_of_sweep(config: Mapping[str, Any]) -> None:
    """Before the runs of a sweep are trained, raise `ValueError` for an overlay that cannot be compared with them."""
    overlay, size = read_overlay(config), config["analysis"]["size"]
    if overlay is not None:
        # The tokenizer fingerprint of the runs is unknown before training, so assume that of the checkpoints.
        target = _target(overlay, TARGETS, complete_column(overlay.table.frame, TOKENIZER[:1]))
        _usable_rows(overlay, target, SIZES[0] if size == "auto" else size)


def check_overlay(overlay: Overlay, table: Table, settings: Settings) -> None:
    """Raise `ValueError` if the checkpoints cannot be compared with the runs in `table`."""
    _usable_rows(overlay, *_target_and_size(overlay, table, settings))


def overlay_entry(overlay: Overlay, table: Table, primary_law: str, settings: Settings, seed: int) -> Entry:
    """The content of overlay.json.

    `points` has one item per checkpoint row: `name`, `N`, `value`, `tokens`, `measure`. `families` has one item per
    family from `slm.scaling.overlay.overlay_models`; the `models` of a family are in the order of `points`.
    """
    target, size = _target_and_size(overlay, table, settings)
    frame, notes = _usable_rows(overlay, target, size)
    points = [_point(row, overlay, target, size) for row in frame.to_dict("records")]
    models = [Model(point["N"], point["value"], point["tokens"]) for point in points]
    law = overlay_law(primary_law, settings.formulas, table.frame.columns)
    families = overlay_models(table, models, law, target=target, size=size, settings=settings, seed=seed)
    column = overlay.file_column(target)
    return to_json_types(
        {
            "source": overlay.table.name,
            "column": column,
            "law": law,
            "target": target,
            "size": size,
            "level": settings.level,
            "points": points,
            "families": families,
            "caveats": _caveats(frame, table.frame, points, families, column),
            "notes": [*(note for note in overlay.table.notes if "left out" in note), *notes],
        }
    )


def overlay_rows(overlay: Entry) -> Rows:
    """Columns and rows for the tracker from the content of overlay.json, with one row per checkpoint and family."""
    columns = ["model", "N", overlay["target"], "measure", "family", "law", "predicted", "low", "high", "log_ratio",
               "times_beyond"]  # fmt: skip
    rows = []
    for family in overlay["families"]:
        if family["models"]:
            for point, model in zip(overlay["points"], family["models"], strict=True):
                measured = [point[key] for key in ("name", "N", "value", "measure")]
                predicted = [model[key] for key in ("value", "low", "high", "log_ratio", "times_beyond")]
                rows.append([*measured, family["family"], overlay["law"], *predicted])
    return columns, rows


def _target_and_size(overlay: Overlay, table: Table, settings: Settings) -> tuple[str, str]:
    target = _target(overlay, table.targets, complete_column(table.frame, TOKENIZER))
    return target, table.sizes[0] if settings.size == "auto" else settings.size


def _target(overlay: Overlay, targets: Sequence[str], tokenizer: pd.Series | None) -> str:
    """The quantity to compare: bits per byte if both tables have it, else loss if both tables name the same tokenizer.

    `targets` and `tokenizer` (None: unknown) describe the runs. Raises `ValueError` if neither quantity is possible.
    """
    frame, source = overlay.table.frame, f"overlay={overlay.table.name}"
    if BITS in frame and BITS in targets:
        return BITS
    tokenizers = [values for values in (complete_column(frame, TOKENIZER), tokenizer) if values is not None]
    tokenizer_names = {str(name) for values in tokenizers for name in values}
    if len(tokenizers) == 2 and len(tokenizer_names) == 1 and "loss" in frame and "loss" in targets:
        return "loss"
    subject = f"{source} has" if BITS in targets else "the runs have"
    raise ValueError(
        f"{subject} no {BITS}, and loss per token does not compare across tokenizers, so {source} cannot be "
        f"overlaid: add {BITS} (evaluate.py and train.py write it), or the same {TOKENIZER[0]} to both tables"
    )


def _usable_rows(overlay: Overlay, target: str, size: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows with both `target` and `size`, and a note on the other rows. Raises `ValueError` if no row has both."""
    frame, source = overlay.table.frame, overlay.table.name
    if size not in frame:
        raise ValueError(f"overlay={source} has no column {size}, which is the N of this analysis: add it")
    is_usable = frame[target].notna() & frame[size].notna()
    if not is_usable.any():
        raise ValueError(f"overlay={source} has no row with both {size} and {target}: fill them in")
    left_out = [_name(row) for row in frame[~is_usable].to_dict("records")]
    note = f"Not overlaid because {target} or {size} is missing: {shortlist(left_out)}."
    absent = [name for name in (*SIZES, *TARGETS, "tokens", *TOKENIZER, *WINDOW_COLUMNS) if name not in frame]
    misspelt, _ = unread_columns([str(name) for name in frame if name not in absent], absent, source)
    return frame[is_usable], [note, *misspelt] if left_out else misspelt


def _point(row: Mapping[str, Any], overlay: Overlay, target: str, size: str) -> Entry:
    """The point of a checkpoint. `measure` is the column given, or text and protocol; None if the row has neither."""
    if overlay.file_column(target) not in (BITS, target):
        measure = overlay.column
    else:
        parts = _present_values(row, ("eval_data", "protocol", "max_length"))
        measure = " ".join(str(int(value) if isinstance(value, float) else value) for value in parts)
    tokens = next(iter(_present_values(row, ("tokens", "train_tokens"))), None)
    return {"name": _name(row), "N": row[size], "value": row[target], "tokens": tokens, "measure": measure or None}


def _name(row: Mapping[str, Any]) -> str:
    return str(_present_values(row, (*NAME_COLUMNS, "family"))[0])


def _present_values(row: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    return [row[key] for key in keys if row.get(key) is not None and not pd.isna(row[key])]


def _caveats(
    checkpoints: pd.DataFrame, runs: pd.DataFrame, points: Sequence[Entry], families: Sequence[Entry], column: str
) -> list[str]:
    """A sentence each on data, tokens, tokenizer, context, recipe and extrapolation; `column` is the one compared."""
    run_tokens = _token_range(runs["tokens"]) if "tokens" in runs else "a number that the table does not state"
    return [
        "Data: the checkpoints may have been trained on other data than the runs, and they were "
        f"{_texts(checkpoints, runs, column)}.",
        f"Tokens: the runs were trained on {run_tokens}, the checkpoints {_checkpoint_tokens(points)}; a law in N "
        "alone predicts what a model of that size would reach on as many tokens as the runs.",
        _tokenizers(checkpoints, runs, column),
        f"Context: windows of {_values_text(checkpoints, WINDOW_COLUMNS)} tokens for the checkpoints and of "
        f"{_values_text(runs, WINDOW_COLUMNS)} for the runs; a longer window alone lowers the result.",
        "Recipe: the checkpoints have their own optimizer, schedule, learning rate and choice of data, and nothing "
        "here controls for them.",
        _extrapolation(families, len(points)),
    ]


def _texts(checkpoints: pd.DataFrame, runs: pd.DataFrame, column: str) -> str:
    """The end of the sentence on data: the texts on which checkpoints and runs were scored."""
    fingerprints = [complete_column(frame, ("eval_data_fingerprint",)) for frame in (checkpoints, runs)]
    stated = [values for values in fingerprints if values is not None]
    if column == BITS and len(stated) == 2 and len(set().union(*stated)) == 1:
        return f"scored on the same text ({_values_text(checkpoints, TEXT_COLUMNS)})"
    unknown = "a text that the file does not name"
    checkpoint_text = _values_text(checkpoints, TEXT_COLUMNS, unknown) if column in (BITS, "loss") else column
    run_text = _values_text(runs, TEXT_COLUMNS, "their own validation text")
    return f"scored on {checkpoint_text}, the runs on {run_text}: one model has different results on different texts"


def _checkpoint_tokens(points: Sequence[Entry]) -> str:
    counts = [point["tokens"] for point in points if point["tokens"] is not None]
    names_without = dict.fromkeys(point["name"] for point in points if point["tokens"] is None)
    parts = [f"on {_token_range(counts)}"] if counts else []
    if names_without:
        parts.append(f"on a number that the file does not state ({', '.join(names_without)})")
    return " and ".join(parts)


def _tokenizers(checkpoints: pd.DataFrame, runs: pd.DataFrame, column: str) -> str:
    if column == "loss":
        return "Tokenizer: the same, according to both tables, so nats per token compare."
    run_sizes, checkpoint_sizes = (_values_text(frame, ("vocab_size",)) for frame in (runs, checkpoints))
    return (
        f"Tokenizer: vocabularies of {checkpoint_sizes} for the checkpoints and of {run_sizes} for the runs. Bits per "
        "byte compare across tokenizers, but where N includes embeddings it depends on the size of the vocabulary."
    )


def _extrapolation(families: Sequence[Entry], num_checkpoints: int) -> str:
    # One tuple for each checkpoint, with one item for each family.
    models_by_point = zip(*(family["models"] for family in families if family["models"]), strict=True)
    factors = [max(model["times_beyond"] for model in models) for models in models_by_point]
    num_beyond = sum(factor > 1 for factor in factors)
    largest = format_number(max(factors, default=1.0), 3)
    return (
        f"Extrapolation: {num_beyond} of {num_checkpoints} lie beyond the sizes of the runs, by a factor of up to "
        f"{largest}. There a law is a guess, and its interval assumes that the law holds."
    )


def _values_text(frame: pd.DataFrame, columns: Sequence[str], unknown: str = "unknown size") -> str:
    values = complete_column(frame, columns)
    if values is None:
        return unknown
    distinct = values.unique().tolist()
    return ", ".join(f"{value:,.0f}" if isinstance(value, (int, float)) else str(value) for value in distinct)


def _token_range(values: Any) -> str:
    low, high = float(min(values)), float(max(values))
    return f"{count(low)} tokens" if low == high else f"{count(low)} to {count(high)} tokens"
