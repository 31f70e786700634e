"""Refuse units that do not go together, and note those that are suspicious.

Tables of early checkpoints (losses from 9 to 3) and of tiny models are real, so units are judged by what training can
do: a value is called a unit's mistake only if no loss falls that fast with size and tokens.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from slm.runtime.words import shortlist
from slm.scaling.tables.checks import REMEDY
from slm.scaling.tables.columns import SIZES, TARGETS, Columns, complete
from slm.scaling.tables.computed import operand
from slm.scaling.tables.values import shown

# A table of 260 bytes and a width of 8 has 2,080 parameters.
FEWEST_PARAMS, ALL_TOO_FEW = 1000, 10_000
WIDEST_GAP = 300
# No loss falls faster than N^-0.5 D^-1 (Hoffmann et al. 2022 find N^-0.34 and D^-0.28 above a floor).
STEEPEST_N, STEEPEST_D = 0.5, 1.0
# FLOPs over N times tokens are 6 and up to 20 with attention; a few times that where blocks are repeated or N leaves
# embeddings out, less where experts are idle.
USUAL_FLOPS, POSSIBLE_FLOPS = (1.0, 60.0), (1e-4, 1e6)
SIMILAR_FLOPS = 5.0
PF_DAY = 8.64e19
# Tokens a parameter: over-trained small models reach 15,000 (SmolLM2 135M), and the first checkpoints are below 1.
USUAL_TOKENS = (0.1, 1e6)
_UNITS = "write all in units, as in 1.2e8"


def check_units(frame: pd.DataFrame, columns: Columns, *, loss_was_given: bool, flops_were_given: bool) -> None:
    """Raise for a column in which units are mixed, or in which counts are written in millions or billions."""
    ratio = _flops_ratio(frame) if flops_were_given and complete(frame, "tokens") else None
    # FLOPs of 6 N D say that N and D are in units, however few.
    fewest = 0 if ratio is not None and _is_within(ratio.median(), USUAL_FLOPS) else ALL_TOO_FEW
    for name in (*SIZES, "tokens"):
        if name in frame and frame[name].notna().any():
            _check_counts(frame, name, columns, fewest)
    if loss_was_given:
        _check_losses(frame, columns)
    if ratio is not None and len(ratio):
        _check_flops(frame, ratio, columns)


def note_units(frame: pd.DataFrame, columns: Columns, *, flops_were_given: bool) -> list[str]:
    """Sentences on units that are possible and suspicious: tokens a parameter, and FLOPs beside 6 N D."""
    if not complete(frame, "tokens"):
        return []
    notes = []
    tokens = frame["tokens"] / frame[_size(frame)]
    if not _is_within(tokens.median(), USUAL_TOKENS):
        own = operand(columns.own.get("tokens", "tokens"))
        remedy = f": if tokens are in other units, such as millions, give columns.tokens='{own}*1e6'"
        remedy = remedy if tokens.median() < USUAL_TOKENS[0] else ""
        notes.append(f"Suspicious: runs saw {_range(tokens)} tokens a parameter{remedy}.")
    if flops_were_given:
        ratio = _flops_ratio(frame)
        if not _is_within(ratio.median(), USUAL_FLOPS):
            notes.append(f"Suspicious: flops are {_range(ratio)} times N D, and 6 N D is usual.")
        if len(off := _unlike_similar_rows(frame, ratio)):
            rows = shortlist(f"{row} ({_plain(ratio[row])} N D)" for row in off.index)
            notes.append(
                f"Suspicious: flops of {len(off)} rows are another multiple of N D than those of rows alike, and "
                f"6 N D is usual: {rows}."
            )
    return notes


def _is_within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _size(frame: pd.DataFrame) -> str:
    return next(name for name in SIZES if complete(frame, name))


def _plain(value: float) -> str:
    """To three digits, as people write it: 6000, 1e18."""
    return f"{value:.0f}" if 1000 <= value < 1e6 else f"{value:.3g}".replace("e+", "e")


def _range(values: pd.Series) -> str:
    return " to ".join(dict.fromkeys(_plain(value) for value in (values.min(), values.max())))


def _flops_ratio(frame: pd.DataFrame) -> pd.Series:
    """FLOPs as a multiple of N D."""
    return (frame["flops"] / frame[_size(frame)] / frame["tokens"]).dropna()


def _unlike_similar_rows(frame: pd.DataFrame, ratio: pd.Series) -> pd.Series:
    """How many times the median of rows of a family and about their size, where that is more than `SIMILAR_FLOPS`."""
    similar = frame["family"].astype(str) + np.floor(np.log2(frame[_size(frame)])).astype(str)
    times = ratio / ratio.groupby(similar[ratio.index]).transform("median")
    return times[np.abs(np.log(times)) > math.log(SIMILAR_FLOPS)]


def _check_flops(frame: pd.DataFrame, ratio: pd.Series, columns: Columns) -> None:
    """FLOPs in other units than 1 in all rows, or by a power of 1,000 in some."""
    own, tokens = (operand(columns.own.get(name, name)) for name in ("flops", "tokens"))
    usual, row = float(ratio.median()), ratio.index[0]
    if not _is_within(usual, POSSIBLE_FLOPS):
        remedy = "write the FLOPs of the whole training"
        units = {"in PF-days": PF_DAY} | {f"in units of 1e{power}": 10.0**power for power in range(-24, 25, 3)}
        for unit, factor in reversed(units.items()):
            if _is_within(usual * factor, USUAL_FLOPS):
                remedy = f"if it is {unit}, give columns.flops='{own}*{_plain(factor)}'"
        if _is_within((ratio * frame["tokens"]).median(), USUAL_FLOPS):
            remedy = f"if it is of one token, give columns.flops='{own}*{tokens}'"
        problem = f"is {_plain(ratio[row])} N D, where training takes about 6 N D: {remedy}"
        raise columns.error(row, "flops", float(frame.at[row, "flops"]), problem)
    for row, times in _unlike_similar_rows(frame, ratio).items():
        power = round(math.log(times, 1000))
        if power and abs(math.log(times) - power * math.log(1000)) < math.log(1.3):
            others = f"that of rows alike {_plain(ratio[row] / times)} N D"
            problem = f"is {_plain(ratio[row])} N D and {others}: units disagree, so write all as in 1e19"
            raise columns.error(row, "flops", float(frame.at[row, "flops"]), problem)


def _check_counts(frame: pd.DataFrame, name: str, columns: Columns, fewest: float) -> None:
    """Counts that are all below `fewest`, and a gap of 300 times below which results are those of the runs above."""
    counts = frame[name].dropna().sort_values(kind="stable")
    row, value = counts.index[0], float(counts.iloc[0])
    if counts.iloc[-1] < fewest:
        own = operand(columns.own.get(name, name))
        remedy = f"{_UNITS}, or give columns.{name}='{own}*1e6' of millions or '{own}*1e9' of billions"
        raise columns.error(row, name, value, f"is too small for {name}, as are all others: {remedy}")
    ratios = counts.to_numpy()[1:] / counts.to_numpy()[:-1]
    place = int(ratios.argmax()) + 1 if len(ratios) and ratios.max() >= WIDEST_GAP else 0
    # The first step of a long run is real, and has a far higher loss.
    results = frame[next(target for target in TARGETS if complete(frame, target))]
    usual = 1.5 * float(results[counts.index[place:]].median())
    mixed = [row for row, value in counts.iloc[:place].items() if value < 1e5 and results[row] < usual]
    if mixed or (name in SIZES and value < FEWEST_PARAMS):
        row = mixed[0] if mixed else row
        other = f"{shown(float(counts.iloc[place]))} in row {counts.index[place]}" if mixed else "a count of parameters"
        raise columns.error(row, name, frame.at[row, name], f"is in other units than {other}: {_UNITS}")


def _check_losses(frame: pd.DataFrame, columns: Columns) -> None:
    """Perplexities among losses: values that no training explains, and whose logarithms are in line with the rest."""
    losses = frame["loss"].sort_values(kind="stable")
    ratios = losses.to_numpy()[1:] / losses.to_numpy()[:-1]
    if not len(ratios) or ratios.max() < 1.8:
        return
    place = int(ratios.argmax()) + 1
    low, high = losses.iloc[:place], losses.iloc[place:]
    for row, value in high.items():
        if not (0.8 * low.min() <= math.log(value) <= 1.25 * low.max() and _is_too_steep(frame, row, low)):
            continue
        if len(high) > len(low):
            problem = f"is a loss among what look like perplexities ({shown(float(high.iloc[0]))} and more): {REMEDY}"
            raise columns.error(low.index[0], "loss", float(low.iloc[0]), problem)
        logarithm = f"its logarithm {math.log(value):.3g} is not, so it looks like a perplexity"
        problem = f"is far above the rest (up to {shown(float(low.max()))}), {logarithm}: {REMEDY}"
        raise columns.error(row, "loss", value, problem)


def _is_too_steep(frame: pd.DataFrame, row: int, low: pd.Series) -> bool:
    """Whether the fall from this row to one of `low` is steeper than size and tokens can explain.

    Families may have tokenizers of their own (bytes: about 1 nat, words: about 3), so they are compared with each
    other only where a loss is above 6, which is hardly trained.
    """
    value, size = float(frame.at[row, "loss"]), _size(frame)
    others = frame.loc[low.index]
    others = others[(others["family"] == frame.at[row, "family"]) | (value > 6)]
    growth = STEEPEST_N * np.log(others[size] / frame.at[row, size]).clip(lower=0)
    if "tokens" in frame:
        growth += STEEPEST_D * np.log(others["tokens"] / frame.at[row, "tokens"]).clip(lower=0)
    return bool((np.log(value / others["loss"]) > growth).any())
