"""Refuse what cannot be a table of runs: values that are none, and units that do not go together.

Tables of early checkpoints (losses from 9 to 3) and of tiny models are real, so units are judged by what training can
do: a value is called a unit's mistake only if no loss falls that fast with size and tokens.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from slm.scaling.tables.columns import QUANTITIES, SIZES, TARGETS, Columns, complete, is_blank, number, shown

# ln 100,000 = 11.5: a guess among the words of a large vocabulary. Fresh weights lie a little above a guess.
HIGHEST_LOSS = 11.5
ABOVE_GUESSING = 0.5
# A table of 260 bytes and a width of 8 has 2,080 parameters.
FEWEST_PARAMS, ALL_TOO_FEW = 1000, 10_000
WIDEST_GAP = 300
# No loss falls faster than N^-0.5 D^-1 (Hoffmann et al. 2022 find N^-0.34 and D^-0.28 above a floor).
STEEPEST_N, STEEPEST_D = 0.5, 1.0


def check_columns(raw: pd.DataFrame, columns: Columns) -> None:
    """Raise if there is no column of a size or none of a target."""
    there = ", ".join(str(column) for column in raw.columns)
    for what, names in (("size", SIZES), ("result", TARGETS)):
        if not any(name in raw for name in names):
            raise ValueError(
                f"{columns.table} has no column of the {what} ({', '.join(names)}): "
                f"name one of its columns, as in columns.{names[0]}=NAME; it has {there}"
            )


def check_values(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns) -> None:
    """Raise for the first value that is missing, no number, or impossible. `raw` holds what was written."""
    for name in (name for name in QUANTITIES if name in raw):
        for row, value in raw[name].items():
            _check_number(value, row, name, columns)
    if "family" in frame:
        for row in frame.index[frame["family"].isna()]:
            raise columns.error(row, "family", "nothing", "is there: name the family of the run")
    _check_gaps(frame, columns)
    for row, value in frame.get("perplexity", pd.Series(dtype=float)).items():
        if value <= 1:
            raise columns.error(row, "perplexity", value, "is impossible: a perplexity is above 1; is it a loss?")
    _check_losses(frame, columns)
    _check_agreement(raw, frame, columns)
    if "params_total" in frame and "params_non_embedding" in frame:
        for row in frame.index[frame["params_non_embedding"] > frame["params_total"]]:
            total = shown(float(frame.at[row, "params_total"]))
            value = float(frame.at[row, "params_non_embedding"])
            raise columns.error(row, "params_non_embedding", value, f"is more than params_total={total}: swap them?")


def _check_number(value: object, row: int, name: str, columns: Columns) -> None:
    got = number(value)
    if got is None:
        raise columns.error(row, name, value, "is not a number: write it plainly, as in 124635456 or 1.2e8")
    if math.isinf(got) or got <= 0:
        raise columns.error(row, name, value, "must be a finite number above 0: correct the row or leave it out")


def _check_gaps(frame: pd.DataFrame, columns: Columns) -> None:
    """Every row needs one size that all rows have, its tokens if any has them, and a result."""
    sizes = [name for name in SIZES if name in frame]
    results = [name for name in ("loss", "perplexity") if name in frame] or ["bits_per_byte"]
    needed = [] if any(complete(frame, name) for name in sizes) else [sizes[:1]]
    for names in [*needed, ["tokens"] if "tokens" in frame else [], results]:
        for row in frame.index[frame[names].isna().all(axis=1)] if names else []:
            raise columns.error(row, names[0], "nothing", "is there: fill it in or leave the row out")


def _check_losses(frame: pd.DataFrame, columns: Columns) -> None:
    vocabulary = frame["vocab_size"].map(number) if "vocab_size" in frame else pd.Series(math.nan, frame.index)
    for row, loss in frame.get("loss", pd.Series(dtype=float)).items():
        words = vocabulary[row]
        guess = math.log(words) if words is not None and words > 1 else math.nan
        highest = HIGHEST_LOSS if math.isnan(guess) else guess + ABOVE_GUESSING
        if loss > highest:
            known = "" if math.isnan(guess) else f", where guessing has ln {words:.0f} = {guess:.2f}"
            raise columns.error(
                row, "loss", loss, f"cannot be nats a token{known}: if it is a perplexity, name the column perplexity"
            )
    for row, bits in frame.get("bits_per_byte", pd.Series(dtype=float)).items():
        if bits > 16:  # guessing among 256 bytes is 8
            raise columns.error(row, "bits_per_byte", bits, "cannot be bits a byte: guessing among bytes has 8")


def _check_agreement(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns) -> None:
    """`loss` and `perplexity` are of one evaluation: equal to 1%, and to the digits that were written."""
    if "loss" not in frame or "perplexity" not in frame:
        return
    for row in frame.index[frame["loss"].notna() & frame["perplexity"].notna()]:
        loss, perplexity = float(frame.at[row, "loss"]), float(frame.at[row, "perplexity"])
        allowed = 0.01 + _half_a_digit(raw.at[row, "loss"]) + _half_a_digit(raw.at[row, "perplexity"]) / perplexity
        if abs(math.exp(loss) / perplexity - 1) > allowed:
            says = f"is not the logarithm of its perplexity {shown(perplexity)} (ln is {math.log(perplexity):.4g}): "
            raise columns.error(row, "loss", loss, says + "remove the column that is of another evaluation")


def _half_a_digit(written: object) -> float:
    """Half a unit of the last decimal place of a number as written."""
    text = str(written).strip().lower()
    return 0.0 if "e" in text or is_blank(written) else 0.5 * 10.0 ** -len(text.partition(".")[2])


def check_units(frame: pd.DataFrame, columns: Columns, *, loss_was_given: bool) -> None:
    """Raise for a column in which units are mixed, or in which counts are written in millions or billions."""
    target = next(name for name in TARGETS if complete(frame, name))
    for name in (*SIZES, "tokens"):
        if name in frame and frame[name].notna().any():
            _check_counts(frame, name, frame[target], columns)
    if loss_was_given:
        _check_loss_units(frame, columns)


def _check_counts(frame: pd.DataFrame, name: str, results: pd.Series, columns: Columns) -> None:
    """Counts that no language model has, or a gap of 300 times below which results are those of the runs above it."""
    counts = frame[name].dropna().sort_values(kind="stable")
    row, value = counts.index[0], float(counts.iloc[0])
    if counts.iloc[-1] < ALL_TOO_FEW:
        raise columns.error(row, name, value, f"is too small for {name}, as are all others: {_UNITS}")
    ratios = counts.to_numpy()[1:] / counts.to_numpy()[:-1]
    place = int(ratios.argmax()) + 1 if len(ratios) and ratios.max() >= WIDEST_GAP else 0
    # The first step of a long run is real, and has a far higher loss.
    usual = 1.5 * float(results[counts.index[place:]].median())
    mixed = [row for row, value in counts.iloc[:place].items() if value < 1e5 and results[row] < usual]
    if mixed or (name in SIZES and value < FEWEST_PARAMS):
        row = mixed[0] if mixed else row
        other = f"{shown(float(counts.iloc[place]))} in row {counts.index[place]}" if mixed else "a count of parameters"
        raise columns.error(row, name, frame.at[row, name], f"is in other units than {other}: {_UNITS}")


def _check_loss_units(frame: pd.DataFrame, columns: Columns) -> None:
    """Perplexities among losses: values that no training explains, and whose logarithms are in line with the rest."""
    losses = frame["loss"].sort_values(kind="stable")
    ratios = losses.to_numpy()[1:] / losses.to_numpy()[:-1]
    if not len(ratios) or ratios.max() < 1.8:
        return
    place = int(ratios.argmax()) + 1
    low, high = losses.iloc[:place], losses.iloc[place:]
    lowest, highest = 0.8 * float(low.min()), 1.25 * float(low.max())
    for row, value in high.items():
        if lowest <= math.log(value) <= highest and _too_steep(frame, row, low):
            if len(high) > len(low):
                says = f"is a loss among what look like perplexities ({shown(float(high.iloc[0]))} and more)"
                raise columns.error(low.index[0], "loss", float(low.iloc[0]), f"{says}: {_REMEDY}")
            says = (
                f"is far above the rest (up to {shown(float(low.max()))}), its logarithm {math.log(value):.3g} is not"
            )
            raise columns.error(row, "loss", value, f"{says}, so it looks like a perplexity: {_REMEDY}")


_UNITS = "write all in units, as in 1.2e8"
_REMEDY = "write nats a token in every row, or leave the row out"


def _too_steep(frame: pd.DataFrame, row: int, low: pd.Series) -> bool:
    """Whether the fall from this row to one of `low` is steeper than size and tokens can explain.

    Families may have tokenizers of their own (bytes: about 1 nat, words: about 3), so they are compared with each
    other only where a loss is above 6, which is hardly trained.
    """
    value = float(frame.at[row, "loss"])
    others = frame.loc[low.index]
    others = others[(others["family"] == frame.at[row, "family"]) | (value > 6)]
    size = next(name for name in SIZES if complete(frame, name))
    fall = np.log(value / others["loss"])
    growth = STEEPEST_N * np.log(others[size] / frame.at[row, size]).clip(lower=0)
    if "tokens" in frame:
        growth += STEEPEST_D * np.log(others["tokens"] / frame.at[row, "tokens"]).clip(lower=0)
    return bool((fall > growth).any())
