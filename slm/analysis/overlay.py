"""Released checkpoints over the laws of a sweep: the rows of an evaluation, laid over, with what they do not share.

Notable: a loss a token of another tokenizer is another quantity, so what is laid over is bits per byte; nats a token
only where both tables name one and the same tokenizer. What else differs (text, tokens, windows, recipe) cannot be
corrected for, so it is said beside every point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from slm.analysis.audit import TOKENIZER
from slm.analysis.matching import values_of
from slm.runtime.words import shortlist
from slm.scaling.analysis import Analysis
from slm.scaling.entries import plain
from slm.scaling.overlay import Model, law_to_lay_over, lay_over
from slm.scaling.settings import Settings
from slm.scaling.tables import Table, table_from_frame
from slm.scaling.tables.columns import SIZES, TARGETS
from slm.scaling.tables.files import read_rows
from slm.tracking import Rows

Entry = dict[str, Any]

FILE = "overlay.json"
NAMES = ("model", "name", "checkpoint", "run_id")


@dataclass(frozen=True)
class Overlay:
    """Rows of an evaluation."""

    table: Table
    source: str
    column: str
    """What the file calls the bits per byte that are laid over."""

    @property
    def frame(self) -> pd.DataFrame:
        """The rows, one a checkpoint and measure."""
        return self.table.frame


def read_overlay(config: Mapping[str, Any]) -> Overlay | None:
    """The rows that `overlay` and `overlay_column` name, if any. Raises `ValueError` for a file that has none."""
    source, column = config["overlay"], config["overlay_column"] or BITS
    if source is None:
        return None
    try:
        rows, _ = read_rows(source, [])
        _check_columns(rows, str(source), column)
        if column != BITS:
            rows = rows.drop(columns=BITS, errors="ignore").rename(columns={column: BITS})
        table = table_from_frame(rows, name=str(source))
    except ValueError as error:  # all of which begin with the name of the file
        raise ValueError(f"overlay={error}") from None
    return Overlay(table, str(source), column)


def _check_columns(rows: pd.DataFrame, source: str, column: str) -> None:
    there = [name for name in rows if str(name).startswith(BITS)]
    if column != BITS and column not in rows:
        raise ValueError(
            f"{source} has no column {column}, which overlay_column names: of bits per byte it has {listed(there)}"
        )
    for names in (SIZES, (column, *TARGETS)):
        if not {*names} & {*rows}:
            wanted = SIZES[0] if names is SIZES else BITS
            raise ValueError(
                f"{source} has no column {wanted}: give the results.csv of evaluate.py, or add that column"
            )


def check_overlay_of_sweep(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for rows that could not be laid over runs that are still to be trained."""
    overlay, size = read_overlay(config), config["analysis"]["size"]
    if overlay is not None:
        # Fingerprints are what runs to come will have; whether they are the same is seen then.
        target = _target(overlay, TARGETS, values_of(overlay.frame, TOKENIZER[:1]))
        _rows(overlay, target, SIZES[0] if size == "auto" else size)


def check_overlay(overlay: Overlay, table: Table, settings: Settings) -> None:
    """Raise `ValueError` for rows that cannot be laid over `table`."""
    _rows(overlay, _target(overlay, table.targets, values_of(table.frame, TOKENIZER)), _size(table, settings))


def laid_over(overlay: Overlay, table: Table, found: Analysis, settings: Settings, seed: int) -> Entry:
    """What overlay.json holds: `law`, `target`, `size`, `points`, `families`, `caveats`, `notes`.

    A point is a checkpoint (`name`, `N`, `value`, `tokens`, `measure`); `families` are those of
    `slm.scaling.overlay.lay_over`, with a list over points each.
    """
    target, size = _target(overlay, table.targets, values_of(table.frame, TOKENIZER)), _size(table, settings)
    frame, notes = _rows(overlay, target, size)
    points = [_point(row, overlay, target, size) for row in frame.to_dict("records")]
    models = [Model(point["N"], point["value"], point["tokens"]) for point in points]
    law = law_to_lay_over(found.comparison["primary"]["law"], settings.formulas, table.frame.columns)
    families = lay_over(table, models, law, target=target, size=size, settings=settings, seed=seed)
    return plain(
        {
            "source": overlay.source,
            "column": overlay.column if target == BITS else target,
            "law": law,
            "target": target,
            "size": size,
            "level": settings.level,
            "points": points,
            "families": families,
            "caveats": caveats(
                frame, table.frame, points, families, measured=overlay.column if target == BITS else target
            ),
            "notes": [*(note for note in overlay.table.notes if "left out" in note), *notes],
        }
    )


def overlay_rows(laid: Entry) -> Rows:
    """One row a checkpoint and family, for the tracker."""
    columns = ["model", "N", laid["target"], "measure", "family", "law", "predicted", "low", "high"]
    columns += ["log_ratio", "times_beyond"]
    rows = [
        [
            *(point[key] for key in ("name", "N", "value", "measure")),
            *(family["family"], laid["law"]),
            *(one[key] for key in ("value", "low", "high", "log_ratio", "times_beyond")),
        ]
        for family in laid["families"]
        for point, one in zip(laid["points"] if family["models"] else [], family["models"], strict=True)
    ]
    return columns, rows


def _size(table: Table, settings: Settings) -> str:
    return table.sizes[0] if settings.size == "auto" else settings.size


def _target(overlay: Overlay, targets: Sequence[str], tokenizer: pd.Series | None) -> str:
    """Bits per byte, or loss where both sides have one tokenizer, the same; `ValueError` where neither compares.

    `targets` and `tokenizer` (None: not known) are of the runs.
    """
    if BITS in overlay.frame and BITS in targets:
        return BITS
    own = values_of(overlay.frame, TOKENIZER)
    same = own is not None and tokenizer is not None and len({*map(str, own), *map(str, tokenizer)}) == 1
    if same and "loss" in overlay.frame and "loss" in targets:
        return "loss"
    who = f"overlay={overlay.source} has" if BITS in targets else "the runs have"
    raise ValueError(
        f"{who} no {BITS}, and loss a token does not compare across tokenizers, so overlay={overlay.source} cannot be "
        f"laid over: add {BITS} (evaluate.py and train.py write it), or the same {TOKENIZER[0]} to both tables"
    )


def _rows(overlay: Overlay, target: str, size: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows with a value and an N, and a sentence on the others; `ValueError` if there are none."""
    frame = overlay.frame
    if size not in frame:
        raise ValueError(f"overlay={overlay.source} has no column {size}, which is the N of this analysis: add it")
    good = frame[target].notna() & frame[size].notna()
    if not good.any():
        raise ValueError(f"overlay={overlay.source} has no row with both {size} and {target}: fill them in")
    lost = [_name(row) for row in frame[~good].to_dict("records")]
    return frame[good], [f"Not laid over, without {target} or {size}: {shortlist(lost)}."] if lost else []


def _point(row: Mapping[str, Any], overlay: Overlay, target: str, size: str) -> Entry:
    """A checkpoint; `measure` says on what and how it was scored, as far as its row does."""
    if target == BITS and overlay.column != BITS:
        measure = overlay.column
    else:
        told = [row.get(key) for key in ("eval_data", "protocol", "max_length")]
        measure = " ".join(str(int(one) if isinstance(one, float) else one) for one in told if _is_known(one))
    tokens = next((row[key] for key in ("tokens", "train_tokens") if _is_known(row.get(key))), None)
    return {"name": _name(row), "N": row[size], "value": row[target], "tokens": tokens, "measure": measure or None}


def _name(row: Mapping[str, Any]) -> str:
    return next((str(row[key]) for key in NAMES if _is_known(row.get(key))), str(row["family"]))


def _is_known(value: Any) -> bool:
    return value is not None and not pd.isna(value)


BITS = "bits_per_byte"
TEXTS = ("eval_data", "eval_set", "evaluation_set")
WINDOWS = ("max_length", "context_length", "sequence_length")


def caveats(
    theirs: pd.DataFrame, runs: pd.DataFrame, points: Sequence[Entry], families: Sequence[Entry], *, measured: str
) -> list[str]:
    """A sentence each on data, tokens, tokenizer, context, recipe and extrapolation.

    `theirs` are the rows of the checkpoints, `points` and `families` as in overlay.json, `measured` the column that is
    laid over.
    """
    return [
        f"Data: nothing says that the checkpoints were trained on the data of these runs, and they were "
        f"{_texts(theirs, runs, measured)}.",
        f"Tokens: the runs were trained {_budgets(runs)}, the checkpoints {_budgets_of(points)}; a law in N alone says "
        "what a run of that size would reach on the tokens of these runs.",
        _tokenizers(theirs, runs, measured),
        f"Context: windows of {_values(theirs, WINDOWS)} tokens for the checkpoints and of {_values(runs, WINDOWS)} "
        "for the runs; a longer window lowers the result by itself.",
        "Recipe: optimizer, schedule, learning rate and choice of data are the checkpoints' own, and nothing here "
        "controls for them.",
        _extrapolation(families, len(points)),
    ]


def listed(names: Sequence[Any]) -> str:
    """Names with commas, or `none`."""
    return ", ".join(map(str, names)) or "none"


def _texts(theirs: pd.DataFrame, runs: pd.DataFrame, measured: str) -> str:
    """Whether both were scored on one text, as far as the tables say."""
    prints = [values_of(frame, ("eval_data_fingerprint",)) for frame in (theirs, runs)]
    if measured == BITS and all(one is not None for one in prints) and len({*prints[0], *prints[1]}) == 1:  # type: ignore[misc]
        return f"scored on the same text ({_values(theirs, TEXTS)})"
    where = _values(theirs, TEXTS, "a text that the file does not name") if measured in (BITS, "loss") else measured
    return (
        f"scored on {where}, the runs on {_values(runs, TEXTS, 'their own validation text')}: results on different "
        "texts differ whatever the model"
    )


def _budgets(runs: pd.DataFrame) -> str:
    return "on a number that the table does not say" if "tokens" not in runs else f"on {_span(runs['tokens'])}"


def _budgets_of(points: Sequence[Entry]) -> str:
    known = [point["tokens"] for point in points if point["tokens"] is not None]
    unknown = list(dict.fromkeys(point["name"] for point in points if point["tokens"] is None))
    said = [f"on {_span(known)}"] if known else []
    return " and ".join([*said, *([f"on a number that the file does not say ({listed(unknown)})"] if unknown else [])])


def _tokenizers(theirs: pd.DataFrame, runs: pd.DataFrame, measured: str) -> str:
    if measured == "loss":
        return "Tokenizer: the same, by what both tables say, so nats a token compare."
    own, other = (_values(frame, ("vocab_size",)) for frame in (runs, theirs))
    return (
        f"Tokenizer: vocabularies of {other} for the checkpoints and of {own} for the runs; bits per byte compare "
        "across tokenizers, and N counts the embeddings of each where it counts them."
    )


def _extrapolation(families: Sequence[Entry], count: int) -> str:
    of_each = zip(*(family["models"] for family in families if family["models"]), strict=True)
    beyond = [max(one["times_beyond"] for one in of_one) for of_one in of_each]
    return (
        f"Extrapolation: {sum(one > 1 for one in beyond)} of {count} lie beyond the sizes of the runs, by a factor of "
        f"up to {max(beyond, default=1.0):.3g}; there a law is a guess, and its interval takes the law for true."
    )


def _values(frame: pd.DataFrame, columns: Sequence[str], otherwise: str = "unknown size") -> str:
    values = values_of(frame, columns)
    if values is None:
        return otherwise
    return listed([f"{one:,.0f}" if isinstance(one, (int, float)) else one for one in values.unique().tolist()])


def _span(values: Any) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g} tokens" if low == high else f"{low:.3g} to {high:.3g} tokens"
