"""Refuse tables that cannot hold training runs, and note units that are suspicious.

Tables may have tiny models, and early checkpoints with losses up to 9. So a unit is called wrong only if no training
can explain the value: for example, if the loss would fall faster with size and tokens than any loss does.
"""

import math

import numpy as np
import pandas as pd

from slm.runtime.words import shortlist
from slm.scaling.tables.columns import QUANTITIES, SIZES, TARGETS, WITH_SUFFIX, Columns, first_complete, is_complete
from slm.scaling.tables.values import as_operand, format_value, is_blank, parse_number

MAX_LOSS = 11.5  # without `vocab_size`: a uniform guess among 100,000 tokens has ln 100,000
MAX_ABOVE_GUESS = 0.5  # with `vocab_size`: an untrained model is slightly worse than a uniform guess
MAX_BITS_PER_BYTE = 16  # a uniform guess among 256 bytes has 8
REMEDY = "put perplexities in a column named perplexity, and mark diverged runs with true in a column named diverged"
MIN_PARAMS = 1000  # the embedding of 260 tokens (bytes) with a width of 8 has 2,080 parameters
MIN_LARGEST_COUNT = 10_000  # if all counts are lower, they are in thousands, millions or billions
MAX_COUNT_RATIO = 300  # a larger jump in sorted counts is a change of units, unless losses below it are far higher
MIN_LOSS_RATIO = 1.8  # of a perplexity in a column of losses to the highest loss below it (docs/tables.md)
STEEPEST_N, STEEPEST_D = 0.5, 1.0  # no loss falls faster (Hoffmann et al. 2022: N^-0.34 and D^-0.28 above a floor)
# FLOPs / (N D) is 6, and up to 20 with attention. It is several times higher if blocks are repeated or N excludes
# embeddings, and lower if only some experts are active.
USUAL_FLOPS_RATIO = (1.0, 60.0)
POSSIBLE_FLOPS_RATIO = (1e-4, 1e6)
MAX_FLOPS_DEVIATION = 5.0  # factor between FLOPs / (N D) of a row and the median of similar rows
PF_DAY = 8.64e19
USUAL_TOKENS_PER_PARAM = (0.1, 1e6)  # first checkpoints are below 1, and SmolLM2 135M reached 15,000
_WRITE_IN_FULL = "write all values in full, as in 1.2e8"


def check_columns(raw: pd.DataFrame, columns: Columns, target: str | None = None) -> None:
    """Raise `ValueError` if the table has no column with sizes, or none with results (`target` is one too)."""
    for kind, names in (("size", SIZES), ("result", TARGETS)):
        is_given = kind == "result" and target in raw
        if not is_given and not any(name in raw for name in names):
            raise ValueError(
                f"{columns.table} has no column of the {kind} ({', '.join(names)}): name one of its columns, as in "
                f"columns.{names[0]}=NAME; it has {shortlist(raw.columns.drop(list(columns.original)), 12)}"
            )


def check_values(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns) -> None:
    """Raise `ValueError` for the first value that is missing, impossible or not a number; `raw` has it as written."""
    for name in (name for name in QUANTITIES if name in raw):
        for row, value in raw[name].items():
            parsed = parse_number(value)
            if parsed is None:
                examples = "124635456, 1.2e8 or 125M" if name in WITH_SUFFIX else "3.25"
                raise columns.error(row, name, value, f"is not a number: write it as in {examples}")
            if math.isinf(parsed) or parsed <= 0:
                problem = "must be a finite number above 0: correct the row or leave it out"
                raise columns.error(row, name, value, problem)
    if "family" in frame:
        for row in frame.index[frame["family"].isna()]:
            written = raw.at[row, "family"]
            if isinstance(written, str) and written.strip():
                raise columns.error(row, "family", written, "counts as an empty cell: give the family another name")
            raise columns.error(row, "family", "the cell", "is empty: name the family of the run")
    _check_gaps(frame, columns)
    _check_results(frame, columns)
    _check_agreement(raw, frame, columns)
    if "params_total" in frame and "params_non_embedding" in frame:
        for row in frame.index[frame["params_non_embedding"] > frame["params_total"]]:
            problem = f"is more than params_total={format_value(float(frame.at[row, 'params_total']))}: swap them?"
            raise columns.error(row, "params_non_embedding", float(frame.at[row, "params_non_embedding"]), problem)


def _check_gaps(frame: pd.DataFrame, columns: Columns) -> None:
    """Every row needs a result, and tokens if the table has them. One column of sizes must have values in all rows."""
    required = []  # each entry is a list of columns: every row must have a value in at least one of them
    sizes = [name for name in SIZES if name in frame]
    if not any(is_complete(frame, name) for name in sizes):
        required.append(sizes[:1])
    if "tokens" in frame:
        required.append(["tokens"])
    if any(name in frame for name in TARGETS):
        required.append([name for name in ("loss", "perplexity") if name in frame] or ["bits_per_byte"])
    for names in required:
        for row in frame.index[frame[names].isna().all(axis=1)]:
            raise columns.error(row, names[0], "the cell", "is empty: fill it in or leave the row out")


def _check_results(frame: pd.DataFrame, columns: Columns) -> None:
    results = {name: frame.get(name, pd.Series(dtype=float)) for name in TARGETS}
    for row, value in results["perplexity"].items():
        if value <= 1:
            raise columns.error(row, "perplexity", value, "is impossible: a perplexity is above 1; is it a loss?")
    for row, loss in results["loss"].items():
        vocab_size = parse_number(frame.at[row, "vocab_size"]) if "vocab_size" in frame else None
        max_loss, guess_text = MAX_LOSS, ""
        if vocab_size is not None and vocab_size > 1:
            guess = math.log(vocab_size)
            max_loss, guess_text = guess + MAX_ABOVE_GUESS, f" (a uniform guess has ln {vocab_size:.0f} = {guess:.2f})"
        if loss > max_loss:
            raise columns.error(row, "loss", loss, f"cannot be nats per token{guess_text}: {REMEDY}")
    for row, bits in results["bits_per_byte"].items():
        if bits > MAX_BITS_PER_BYTE:
            raise columns.error(row, "bits_per_byte", bits, "cannot be bits per byte: a uniform guess of a byte has 8")


def _check_agreement(raw: pd.DataFrame, frame: pd.DataFrame, columns: Columns) -> None:
    """`perplexity` must equal exp(`loss`), to within 1% and the rounding of both numbers in the file."""
    if "loss" not in frame or "perplexity" not in frame:
        return
    for row in frame.index[frame["loss"].notna() & frame["perplexity"].notna()]:
        loss, perplexity = float(frame.at[row, "loss"]), float(frame.at[row, "perplexity"])
        allowed = 0.01 + _rounding_error(raw.at[row, "loss"]) + _rounding_error(raw.at[row, "perplexity"]) / perplexity
        if abs(math.exp(loss) / perplexity - 1) > allowed:
            perplexity_text = f"its perplexity {format_value(perplexity)} (ln is {math.log(perplexity):.4g})"
            problem = f"is not the logarithm of {perplexity_text}: remove the column that comes from another evaluation"
            raise columns.error(row, "loss", loss, problem)


def _rounding_error(written: object) -> float:
    """Half a unit of the last decimal place of a number as written in the file; 0 if it is blank or like 1e9."""
    text = str(written).strip().lower()
    if "e" in text or is_blank(written):
        return 0.0
    return 0.5 * 10.0 ** -len(text.partition(".")[2])  # the length is the number of decimals


def check_units(frame: pd.DataFrame, columns: Columns, *, loss_was_given: bool, flops_were_given: bool) -> None:
    """Raise `ValueError` for a column that mixes units, or whose counts are in millions or billions."""
    flops_ratio = _flops_ratio(frame) if flops_were_given and is_complete(frame, "tokens") else None
    # If FLOPs are about 6 N D, then N and D are plain counts, however small they are.
    are_plain_counts = flops_ratio is not None and _is_within(flops_ratio.median(), USUAL_FLOPS_RATIO)
    min_largest = 0 if are_plain_counts else MIN_LARGEST_COUNT
    for name in (*SIZES, "tokens"):
        if name in frame and frame[name].notna().any():
            _check_counts(frame, name, columns, min_largest)
    if loss_was_given:
        _check_losses(frame, columns)
    if flops_ratio is not None and len(flops_ratio):
        _check_flops(frame, flops_ratio, columns)


def note_units(frame: pd.DataFrame, columns: Columns, *, flops_were_given: bool) -> list[str]:
    """Sentences on suspicious units: an unusual number of tokens per parameter, or FLOPs far from 6 N D."""
    if not is_complete(frame, "tokens"):
        return []
    notes = []
    tokens_per_param = frame["tokens"] / frame[first_complete(frame, SIZES)]
    if not _is_within(tokens_per_param.median(), USUAL_TOKENS_PER_PARAM):
        remedy = ""
        if tokens_per_param.median() < USUAL_TOKENS_PER_PARAM[0]:
            original = as_operand(columns.original_name("tokens"))
            remedy = f": if tokens are in other units, such as millions, give columns.tokens='{original}*1e6'"
        notes.append(f"Suspicious: runs saw {_range(tokens_per_param)} tokens per parameter{remedy}.")
    if flops_were_given:
        flops_ratio = _flops_ratio(frame)
        if not _is_within(flops_ratio.median(), USUAL_FLOPS_RATIO):
            notes.append(f"Suspicious: flops are {_range(flops_ratio)} times N D, and 6 N D is usual.")
        if len(outliers := _flops_outliers(frame, flops_ratio)):
            rows = shortlist(f"{row} ({_short_number(flops_ratio[row])} N D)" for row in outliers.index)
            differs = f"flops / (N D) of {len(outliers)} rows differs from similar rows"
            notes.append(f"Suspicious: {differs} (6 is usual): {rows}.")
    return notes


def _is_within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _short_number(value: float) -> str:
    """The number as people write it: 6000, 1e18."""
    return f"{value:.0f}" if 1000 <= value < 1e6 else f"{value:.3g}".replace("e+", "e")


def _range(values: pd.Series) -> str:
    low, high = _short_number(values.min()), _short_number(values.max())
    return low if low == high else f"{low} to {high}"


def _flops_ratio(frame: pd.DataFrame) -> pd.Series:
    """FLOPs / (N D) of each row that has both numbers."""
    return (frame["flops"] / frame[first_complete(frame, SIZES)] / frame["tokens"]).dropna()


def _flops_outliers(frame: pd.DataFrame, flops_ratio: pd.Series) -> pd.Series:
    """The outliers of `flops_ratio`, divided by the median of similar rows (same family, N within a factor of 2)."""
    power_of_2 = np.floor(np.log2(frame[first_complete(frame, SIZES)]))
    group = frame["family"].astype(str) + power_of_2.astype(str)
    multiples = flops_ratio / flops_ratio.groupby(group[flops_ratio.index]).transform("median")
    return multiples[np.abs(np.log(multiples)) > math.log(MAX_FLOPS_DEVIATION)]


def _check_flops(frame: pd.DataFrame, flops_ratio: pd.Series, columns: Columns) -> None:
    """Refuse FLOPs in wrong units: in all rows, or in some rows that differ from similar rows by a power of 1,000."""
    flops, tokens = as_operand(columns.original_name("flops")), as_operand(columns.original_name("tokens"))
    median, first_row = float(flops_ratio.median()), flops_ratio.index[0]
    if not _is_within(median, POSSIBLE_FLOPS_RATIO):
        remedy = "write the FLOPs of the whole training"
        units = {"in PF-days": PF_DAY} | {f"in units of 1e{power}": 10.0**power for power in range(-24, 25, 3)}
        for unit, factor in reversed(units.items()):  # reversed, so that the first unit that fits is suggested
            if _is_within(median * factor, USUAL_FLOPS_RATIO):
                remedy = f"if it is {unit}, give columns.flops='{flops}*{_short_number(factor)}'"
        if _is_within((flops_ratio * frame["tokens"]).median(), USUAL_FLOPS_RATIO):
            remedy = f"if it is per token, give columns.flops='{flops}*{tokens}'"
        problem = f"is {_short_number(flops_ratio[first_row])} N D, but training takes about 6 N D: {remedy}"
        raise columns.error(first_row, "flops", float(frame.at[first_row, "flops"]), problem)
    for row, multiple in _flops_outliers(frame, flops_ratio).items():
        power = round(math.log(multiple, 1000))
        is_near_power_of_1000 = abs(math.log(multiple) - power * math.log(1000)) < math.log(1.3)
        if power != 0 and is_near_power_of_1000:
            own, similar = _short_number(flops_ratio[row]), _short_number(flops_ratio[row] / multiple)
            problem = f"is {own} N D and that of similar rows {similar} N D: units differ, so write all as in 1e19"
            raise columns.error(row, "flops", float(frame.at[row, "flops"]), problem)


def _check_counts(frame: pd.DataFrame, name: str, columns: Columns, min_largest: float) -> None:
    """Refuse counts if all are below `min_largest`, or if some are below a jump and their losses are not far higher."""
    counts = frame[name].dropna().sort_values(kind="stable")
    smallest_row, smallest = counts.index[0], float(counts.iloc[0])
    if counts.iloc[-1] < min_largest:
        source = as_operand(columns.original_name(name))
        remedy = f"{_WRITE_IN_FULL}, or give columns.{name}='{source}*1e6' for millions or '{source}*1e9' for billions"
        raise columns.error(smallest_row, name, smallest, f"is too small for {name}, as are all others: {remedy}")
    ratios = counts.to_numpy()[1:] / counts.to_numpy()[:-1]
    has_jump = len(ratios) > 0 and ratios.max() >= MAX_COUNT_RATIO
    num_below = int(ratios.argmax()) + 1 if has_jump else 0  # counts below the jump
    # A first checkpoint really has so few tokens, but its loss is far higher.
    complete_targets = [name for name in TARGETS if is_complete(frame, name)]
    num_checked = num_below if complete_targets else 0  # nothing is known here of a column of the user's own
    results = frame[complete_targets[0]] if complete_targets else counts
    max_result = 1.5 * float(results[counts.index[num_below:]].median())
    for row, count in counts.iloc[:num_checked].items():
        if count < 1e5 and results[row] < max_result:
            count_above = f"{format_value(float(counts.iloc[num_below]))} in row {counts.index[num_below]}"
            problem = f"is in other units than {count_above}: {_WRITE_IN_FULL}"
            raise columns.error(row, name, frame.at[row, name], problem)
    if name in SIZES and smallest < MIN_PARAMS:
        raise columns.error(smallest_row, name, smallest, f"is too small for a number of parameters: {_WRITE_IN_FULL}")


def _check_losses(frame: pd.DataFrame, columns: Columns) -> None:
    """Refuse perplexities among losses: values that no training explains, but whose logarithm is like the others."""
    losses = frame["loss"].sort_values(kind="stable")
    ratios = losses.to_numpy()[1:] / losses.to_numpy()[:-1]
    if not len(ratios) or ratios.max() < MIN_LOSS_RATIO:
        return
    num_low = int(ratios.argmax()) + 1  # losses below the largest jump
    low_losses, high_losses = losses.iloc[:num_low], losses.iloc[num_low:]
    for row, value in high_losses.items():
        is_log_near_low = 0.8 * low_losses.min() <= math.log(value) <= 1.25 * low_losses.max()
        if not (is_log_near_low and _is_too_steep(frame, row, low_losses)):
            continue
        if len(high_losses) > len(low_losses):  # most rows have perplexities, so the error is about a loss
            perplexities = f"values that look like perplexities ({format_value(float(high_losses.iloc[0]))} and more)"
            problem = f"is a loss among {perplexities}: {REMEDY}"
            raise columns.error(low_losses.index[0], "loss", float(low_losses.iloc[0]), problem)
        logarithm = f"but its logarithm {math.log(value):.3g} is not, so it looks like a perplexity"
        problem = f"is far above the rest (up to {format_value(float(low_losses.max()))}), {logarithm}: {REMEDY}"
        raise columns.error(row, "loss", value, problem)


def _is_too_steep(frame: pd.DataFrame, row: int, low_losses: pd.Series) -> bool:
    """Whether the loss falls faster, from this row to a row of `low_losses`, than size and tokens can explain.

    The row is compared with its own family, because tokenizers differ (bytes: about 1 nat, words: about 3). A loss
    above 6, like that of a barely trained model, is compared with all families.
    """
    value, size = float(frame.at[row, "loss"]), first_complete(frame, SIZES)
    others = frame.loc[low_losses.index]
    others = others[(others["family"] == frame.at[row, "family"]) | (value > 6)]
    max_fall = STEEPEST_N * np.log(others[size] / frame.at[row, size]).clip(lower=0)
    if "tokens" in frame:
        max_fall += STEEPEST_D * np.log(others["tokens"] / frame.at[row, "tokens"]).clip(lower=0)
    return bool((np.log(value / others["loss"]) > max_fall).any())
