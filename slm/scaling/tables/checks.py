"""Refuse what cannot be a table of runs: columns that are missing, and values that are impossible."""

from __future__ import annotations

import math

import pandas as pd

from slm.runtime.words import shortlist
from slm.scaling.tables.columns import QUANTITIES, SIZES, TARGETS, Columns, complete
from slm.scaling.tables.values import is_blank, number, shown

# ln 100,000 = 11.5: a guess among the words of a large vocabulary. Fresh weights lie a little above a guess.
HIGHEST_LOSS = 11.5
ABOVE_GUESSING = 0.5
HIGHEST_BITS_PER_BYTE = 16  # guessing among 256 bytes is 8
REMEDY = "write a perplexity in a column perplexity, and say true in a column diverged of a run that diverged"


def check_columns(raw: pd.DataFrame, columns: Columns) -> None:
    """Raise if there is no column of a size or none of a target."""
    for what, names in (("size", SIZES), ("result", TARGETS)):
        if not any(name in raw for name in names):
            raise ValueError(
                f"{columns.table} has no column of the {what} ({', '.join(names)}): name one of its columns, as in "
                f"columns.{names[0]}=NAME; it has {shortlist(raw.columns, 12)}"
            )


def check_values(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns) -> None:
    """Raise for the first value that is missing, no number, or impossible. `raw` holds what was written."""
    for name in (name for name in QUANTITIES if name in raw):
        for row, value in raw[name].items():
            parsed = number(value)
            if parsed is None:
                raise columns.error(row, name, value, "is not a number: write it plainly, as in 124635456 or 1.2e8")
            if math.isinf(parsed) or parsed <= 0:
                raise columns.error(
                    row, name, value, "must be a finite number above 0: correct the row or leave it out"
                )
    if "family" in frame:
        for row in frame.index[frame["family"].isna()]:
            raise columns.error(row, "family", "nothing", "is there: name the family of the run")
    _check_gaps(frame, columns)
    _check_results(frame, columns)
    _check_agreement(raw, frame, columns)
    if "params_total" in frame and "params_non_embedding" in frame:
        for row in frame.index[frame["params_non_embedding"] > frame["params_total"]]:
            total, inner = (float(frame.at[row, name]) for name in ("params_total", "params_non_embedding"))
            raise columns.error(
                row, "params_non_embedding", inner, f"is more than params_total={shown(total)}: swap them?"
            )


def _check_gaps(frame: pd.DataFrame, columns: Columns) -> None:
    """Every row needs one size that all rows have, its tokens if any has them, and a result."""
    sizes = [name for name in SIZES if name in frame]
    results = [name for name in ("loss", "perplexity") if name in frame] or ["bits_per_byte"]
    needed = [] if any(complete(frame, name) for name in sizes) else [sizes[:1]]
    for names in [*needed, *([["tokens"]] if "tokens" in frame else []), results]:
        for row in frame.index[frame[names].isna().all(axis=1)]:
            raise columns.error(row, names[0], "nothing", "is there: fill it in or leave the row out")


def _check_results(frame: pd.DataFrame, columns: Columns) -> None:
    for row, value in frame.get("perplexity", pd.Series(dtype=float)).items():
        if value <= 1:
            raise columns.error(row, "perplexity", value, "is impossible: a perplexity is above 1; is it a loss?")
    for row, loss in frame.get("loss", pd.Series(dtype=float)).items():
        words = number(frame.at[row, "vocab_size"]) if "vocab_size" in frame else None
        is_known = words is not None and words > 1
        guess = math.log(words) if words is not None and is_known else math.nan
        if loss > (guess + ABOVE_GUESSING if is_known else HIGHEST_LOSS):
            limit = f", where guessing has ln {words:.0f} = {guess:.2f}" if is_known else ""
            raise columns.error(row, "loss", loss, f"cannot be nats a token{limit}: {REMEDY}")
    for row, bits in frame.get("bits_per_byte", pd.Series(dtype=float)).items():
        if bits > HIGHEST_BITS_PER_BYTE:
            raise columns.error(row, "bits_per_byte", bits, "cannot be bits a byte: guessing among bytes has 8")


def _check_agreement(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns) -> None:
    """`loss` and `perplexity` are of one evaluation: equal to 1%, and to the digits that were written."""
    if "loss" not in frame or "perplexity" not in frame:
        return
    for row in frame.index[frame["loss"].notna() & frame["perplexity"].notna()]:
        loss, perplexity = float(frame.at[row, "loss"]), float(frame.at[row, "perplexity"])
        allowed = 0.01 + _half_a_digit(raw.at[row, "loss"]) + _half_a_digit(raw.at[row, "perplexity"]) / perplexity
        if abs(math.exp(loss) / perplexity - 1) > allowed:
            problem = f"is not the logarithm of its perplexity {shown(perplexity)} (ln is {math.log(perplexity):.4g})"
            raise columns.error(row, "loss", loss, f"{problem}: remove the column that is of another evaluation")


def _half_a_digit(written: object) -> float:
    """Half a unit of the last decimal place of a number as written."""
    text = str(written).strip().lower()
    return 0.0 if "e" in text or is_blank(written) else 0.5 * 10.0 ** -len(text.partition(".")[2])
