"""Released checkpoints overlaid on the laws of a sweep, and how they differ from the runs.

Notable: loss per token is another quantity under another tokenizer, so bits per byte are compared, or loss only if both
tables name the same tokenizer. Other differences (text, tokens, windows, recipe) cannot be corrected for, so they are
stated as caveats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from slm.analysis.agreement import values_of
from slm.analysis.audit import TOKENIZER
from slm.runtime.words import shortlist
from slm.scaling.entries import plain
from slm.scaling.overlay import Model, law_to_lay_over, lay_over
from slm.scaling.settings import Settings
from slm.scaling.tables import Table, table_from_frame
from slm.scaling.tables.columns import SIZES, TARGETS
from slm.scaling.tables.files import read_rows
from slm.tracking import Rows

Entry = dict[str, Any]

FILE = "overlay.json"
BITS = "bits_per_byte"
NAMES = ("model", "name", "checkpoint", "run_id")
TEXTS = ("eval_data", "eval_set", "evaluation_set")
WINDOWS = ("max_length", "context_length", "sequence_length")


@dataclass(frozen=True)
class Overlay:
    """Rows of an evaluation, one for each checkpoint and measure."""

    frame: pd.DataFrame
    notes: list[str]
    source: str
    column: str
    """The file's column of bits per byte."""

    def measured(self, target: str) -> str:
        """The file's column whose values are compared."""
        return self.column if target == BITS else target


def read_overlay(config: Mapping[str, Any]) -> Overlay | None:
    """The rows that keys `overlay` and `overlay_column` name, or None. Raises `ValueError` for a file without them."""
    source, column = config["overlay"], config["overlay_column"] or BITS
    if source is None:
        return None
    try:
        rows, _ = read_rows(source, [])
        _check_columns(rows, str(source), column)
        if column != BITS:
            rows = rows.drop(columns=BITS, errors="ignore").rename(columns={column: BITS})
        table = table_from_frame(rows, name=str(source))
    except ValueError as error:  # every message begins with the name of the file
        raise ValueError(f"overlay={error}") from None
    return Overlay(table.frame, list(table.notes), str(source), column)


def _check_columns(rows: pd.DataFrame, source: str, column: str) -> None:
    if column != BITS and column not in rows:
        names = _joined(name for name in rows if str(name).startswith(BITS))
        raise ValueError(
            f"{source} has no column {column}, which overlay_column names: its columns of bits per byte are {names}"
        )
    for preferred, accepted in ((SIZES[0], SIZES), (BITS, (column, *TARGETS))):
        if not {*accepted} & {*rows}:
            raise ValueError(
                f"{source} has no column {preferred}: give the results.csv of evaluate.py, or add that column"
            )


def check_overlay_of_sweep(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for rows that cannot be compared with the runs of a sweep, before the runs are trained."""
    overlay, size = read_overlay(config), config["analysis"]["size"]
    if overlay is not None:
        # The runs' tokenizer fingerprint is not known before training, so it is taken to equal the checkpoints'.
        target = _target(overlay, TARGETS, values_of(overlay.frame, TOKENIZER[:1]))
        _usable_rows(overlay, target, SIZES[0] if size == "auto" else size)


def check_overlay(overlay: Overlay, table: Table, settings: Settings) -> None:
    """Raise `ValueError` for rows that cannot be compared with those of `table`."""
    _usable_rows(overlay, _target(overlay, table.targets, values_of(table.frame, TOKENIZER)), _size(table, settings))


def laid_over(overlay: Overlay, table: Table, primary_law: str, settings: Settings, seed: int) -> Entry:
    """The content of overlay.json: among others `law`, `target`, `size`, `points`, `families`, `caveats`, `notes`.

    A point is a checkpoint (`name`, `N`, `value`, `tokens`, `measure`). `families` are the entries of
    `slm.scaling.overlay.lay_over`, whose `models` follow the order of `points`.
    """
    target, size = _target(overlay, table.targets, values_of(table.frame, TOKENIZER)), _size(table, settings)
    frame, notes = _usable_rows(overlay, target, size)
    points = [_point(row, overlay, target, size) for row in frame.to_dict("records")]
    models = [Model(point["N"], point["value"], point["tokens"]) for point in points]
    law = law_to_lay_over(primary_law, settings.formulas, table.frame.columns)
    families = lay_over(table, models, law, target=target, size=size, settings=settings, seed=seed)
    return plain(
        {
            "source": overlay.source,
            "column": overlay.measured(target),
            "law": law,
            "target": target,
            "size": size,
            "level": settings.level,
            "points": points,
            "families": families,
            "caveats": _caveats(frame, table.frame, points, families, overlay.measured(target)),
            "notes": [*(note for note in overlay.notes if "left out" in note), *notes],
        }
    )


def overlay_rows(laid: Entry) -> Rows:
    """Columns and rows for the tracker, one row for each checkpoint and family."""
    columns = ["model", "N", laid["target"], "measure", "family", "law", "predicted", "low", "high"]
    columns += ["log_ratio", "times_beyond"]
    rows = [
        [
            *(point[key] for key in ("name", "N", "value", "measure")),
            *(family["family"], laid["law"]),
            *(model[key] for key in ("value", "low", "high", "log_ratio", "times_beyond")),
        ]
        for family in laid["families"]
        for point, model in zip(laid["points"] if family["models"] else [], family["models"], strict=True)
    ]
    return columns, rows


def _size(table: Table, settings: Settings) -> str:
    return table.sizes[0] if settings.size == "auto" else settings.size


def _target(overlay: Overlay, targets: Sequence[str], tokenizer: pd.Series | None) -> str:
    """The quantity to compare: bits per byte, or loss if both tables name one and the same tokenizer.

    Raises `ValueError` if neither is possible. `targets` and `tokenizer` (None: unknown) are those of the runs.
    """
    if BITS in overlay.frame and BITS in targets:
        return BITS
    checkpoints = values_of(overlay.frame, TOKENIZER)
    is_same = (
        checkpoints is not None and tokenizer is not None and len({*map(str, checkpoints), *map(str, tokenizer)}) == 1
    )
    if is_same and "loss" in overlay.frame and "loss" in targets:
        return "loss"
    subject = f"overlay={overlay.source} has" if BITS in targets else "the runs have"
    raise ValueError(
        f"{subject} no {BITS}, and loss per token does not compare across tokenizers, so overlay={overlay.source} "
        f"cannot be laid over: add {BITS} (evaluate.py and train.py write it), or the same {TOKENIZER[0]} to both "
        "tables"
    )


def _usable_rows(overlay: Overlay, target: str, size: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows with both a value and N, and a note that names the others. Raises `ValueError` if no row has both."""
    frame = overlay.frame
    if size not in frame:
        raise ValueError(f"overlay={overlay.source} has no column {size}, which is the N of this analysis: add it")
    is_usable = frame[target].notna() & frame[size].notna()
    if not is_usable.any():
        raise ValueError(f"overlay={overlay.source} has no row with both {size} and {target}: fill them in")
    left_out = [_name(row) for row in frame[~is_usable].to_dict("records")]
    return frame[is_usable], [f"Not laid over, without {target} or {size}: {shortlist(left_out)}."] if left_out else []


def _point(row: Mapping[str, Any], overlay: Overlay, target: str, size: str) -> Entry:
    """The point of a checkpoint; `measure` names the text and protocol of its value, None if the row names none."""
    if overlay.measured(target) not in (BITS, target):
        measure = overlay.column
    else:
        parts = _present_values(row, ("eval_data", "protocol", "max_length"))
        measure = " ".join(str(int(value) if isinstance(value, float) else value) for value in parts)
    tokens = next(iter(_present_values(row, ("tokens", "train_tokens"))), None)
    return {"name": _name(row), "N": row[size], "value": row[target], "tokens": tokens, "measure": measure or None}


def _name(row: Mapping[str, Any]) -> str:
    return str(_present_values(row, (*NAMES, "family"))[0])


def _present_values(row: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    """The values of a row under these keys, without missing ones."""
    return [row[key] for key in keys if row.get(key) is not None and not pd.isna(row[key])]


def _caveats(
    checkpoints: pd.DataFrame, runs: pd.DataFrame, points: Sequence[Entry], families: Sequence[Entry], measured: str
) -> list[str]:
    """One sentence each on data, tokens, tokenizer, context, recipe and extrapolation.

    `checkpoints` are rows of the overlay, `measured` is its column that is compared.
    """
    return [
        "Data: nothing says that the checkpoints were trained on the data of these runs, and they were "
        f"{_texts(checkpoints, runs, measured)}.",
        f"Tokens: the runs were trained {_run_tokens(runs)}, the checkpoints {_checkpoint_tokens(points)}; a law in N "
        "alone predicts what a run of that size would reach on the tokens of these runs.",
        _tokenizers(checkpoints, runs, measured),
        f"Context: windows of {_values_text(checkpoints, WINDOWS)} tokens for the checkpoints and of "
        f"{_values_text(runs, WINDOWS)} for the runs; a longer window lowers the result by itself.",
        "Recipe: optimizer, schedule, learning rate and choice of data are the checkpoints' own, and nothing here "
        "controls for them.",
        _extrapolation(families, len(points)),
    ]


def _joined(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"


def _texts(checkpoints: pd.DataFrame, runs: pd.DataFrame, measured: str) -> str:
    """What the two were scored on, as the end of the sentence on data."""
    fingerprints = [values_of(frame, ("eval_data_fingerprint",)) for frame in (checkpoints, runs)]
    available = [values for values in fingerprints if values is not None]
    if measured == BITS and len(available) == 2 and len(set().union(*available)) == 1:
        return f"scored on the same text ({_values_text(checkpoints, TEXTS)})"
    text = "a text that the file does not name"
    where = _values_text(checkpoints, TEXTS, text) if measured in (BITS, "loss") else measured
    return (
        f"scored on {where}, the runs on {_values_text(runs, TEXTS, 'their own validation text')}: results on "
        "different texts differ whatever the model"
    )


def _run_tokens(runs: pd.DataFrame) -> str:
    return f"on {_token_range(runs['tokens'])}" if "tokens" in runs else "on a number that the table does not state"


def _checkpoint_tokens(points: Sequence[Entry]) -> str:
    counts = [point["tokens"] for point in points if point["tokens"] is not None]
    names_without = dict.fromkeys(point["name"] for point in points if point["tokens"] is None)
    parts = [f"on {_token_range(counts)}"] if counts else []
    parts += [f"on a number that the file does not state ({_joined(names_without)})"] if names_without else []
    return " and ".join(parts)


def _tokenizers(checkpoints: pd.DataFrame, runs: pd.DataFrame, measured: str) -> str:
    if measured == "loss":
        return "Tokenizer: the same, according to both tables, so nats per token compare."
    run_sizes, checkpoint_sizes = (_values_text(frame, ("vocab_size",)) for frame in (runs, checkpoints))
    return (
        f"Tokenizer: vocabularies of {checkpoint_sizes} for the checkpoints and of {run_sizes} for the runs; bits per "
        "byte compare across tokenizers, and N counts the embeddings of each where it counts them."
    )


def _extrapolation(families: Sequence[Entry], count: int) -> str:
    models_by_point = zip(*(family["models"] for family in families if family["models"]), strict=True)
    factors = [max(model["times_beyond"] for model in models) for models in models_by_point]
    return (
        f"Extrapolation: {sum(factor > 1 for factor in factors)} of {count} lie beyond the sizes of the runs, by a "
        f"factor of up to {max(factors, default=1.0):.3g}; there a law is a guess, and its interval assumes the law."
    )


def _values_text(frame: pd.DataFrame, columns: Sequence[str], otherwise: str = "unknown size") -> str:
    values = values_of(frame, columns)
    if values is None:
        return otherwise
    return _joined(f"{value:,.0f}" if isinstance(value, (int, float)) else value for value in values.unique().tolist())


def _token_range(values: Any) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g} tokens" if low == high else f"{low:.3g} to {high:.3g} tokens"
