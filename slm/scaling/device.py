"""A table of measurements on one device: its columns, the checks of its values, and the runs that its rows belong to.

The table is the results.csv of evaluate.py, or a user's own, measured on a phone: one row for each measured shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from slm.runtime.words import format_number, join_names, plural, shortlist
from slm.scaling.measures import MEASURES, SPEEDS
from slm.scaling.tables import Table
from slm.scaling.tables.columns import SIZES, Columns, normalised_header
from slm.scaling.tables.files import read_rows
from slm.scaling.tables.numbers import plain_numbers
from slm.scaling.tables.suspicions import unread_columns
from slm.scaling.tables.values import is_blank, parse_number

SHAPE = ("family", "width", "depth")
NUMBERS = (*SIZES[:2], *SHAPE[1:], "vocab_size", "block_uses", "kv_bytes_per_token")
SPREADS = {"decode_tokens_per_second": ("decode_low", "decode_high"),
           "prefill_tokens_per_second": ("prefill_low", "prefill_high")}  # fmt: skip
CONDITIONS = ("device_name", "speed_dtype", "cache", "compiled", "prompt_tokens", "new_tokens")
TEXTS = ("family", "quantize", *CONDITIONS)  # all other columns hold numbers
OF_EVALUATE = {"checkpoint", "fingerprint", "evaluated_at"}  # columns of the results.csv of evaluate.py
UNSTEADY = 0.1  # standard error of the log of a speed that has a note
USUAL_REPETITIONS = 5  # of a speed, if the table does not say: the default of evaluate.py
SAME_SIZE = 1e-3  # sizes that differ by at most this share are the same, when rows are matched by size
CONSTANT_PRODUCT, MIN_GROWTH = 0.06, 2.0
"""Speed measures only depth if tokens/s times depth varies by at most this share while size grows by this factor."""


@dataclass(frozen=True)
class Device:
    """Measured shapes, one row each: family, size and shape as far as known, and the measures that any row has.

    The column `error of MEASURE` has the standard error of the log of a measure, from its spread over repetitions or
    rows; 0 if there is none.
    """

    name: str
    frame: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def measures(self) -> list[str]:
        """The keys of `MEASURES` that were measured."""
        return [key for key, measure in MEASURES.items() if measure.column in self.frame]


def read_device(source: str) -> Device:
    """Read the file that the key `device` names. Raises a `ValueError` of one sentence if it is not such a table."""
    notes: list[str] = []
    try:
        rows, _ = read_rows(source, notes)
        return _checked(rows, source, notes)
    except ValueError as error:
        raise ValueError(f"device={error}") from None


def _checked(rows: pd.DataFrame, source: str, notes: list[str]) -> Device:
    if rows.empty:
        raise ValueError(f"{source} has no rows: it needs one for each measured shape")
    columns, factors = _find_columns(rows, source)
    if OF_EVALUATE - {*rows}:  # its results.csv has many columns for other purposes
        absent = [name for name in _accepted() if _accepted()[name][0] not in columns]
        headers = [str(header) for header in rows if normalised_header(header) not in _accepted()]
        misspelt, other = unread_columns(headers, absent, source)
        notes += misspelt + other
    numbers = {columns[name] for name in columns if name not in TEXTS}
    counts = {columns[name] for name in columns if (name in NUMBERS or name.endswith("bytes")) and factors[name] == 1}
    sizes = {columns[name] for name in SIZES[:2] if name in columns}
    rows = plain_numbers(rows, source, notes, amounts=numbers, counts=counts, with_suffix=sizes)
    frame = pd.DataFrame(index=rows.index)
    for column, header in columns.items():
        if column in TEXTS:
            frame[column] = [None if is_blank(value) else str(value).strip() for value in rows[header]]
        else:
            frame[column] = _positive(rows[header], Columns(source, {column: header}), column) * factors[column]
    if "quantize" in frame and frame["quantize"].notna().any():
        notes.append(
            "Rows with rounded weights are left out: the runs' results are not theirs. evaluate.py compares them."
        )
        frame = frame[frame["quantize"].isna()]
    measured = [measure.column for measure in MEASURES.values() if measure.column in frame]
    is_measured = frame[measured].notna().any(axis=1)
    if not is_measured.all():
        notes.append(f"Left out: {plural(int((~is_measured).sum()), 'row')} of {source} without any measurement.")
        frame = frame[is_measured]
    if frame.empty:
        raise ValueError(f"{source} has no value in {join_names(measured)}: fill in what was measured")
    if "cache" in frame and (frame["cache"].str.lower() == "false").any():
        notes.append("Speeds without a KV cache compute the whole text for each token, which no phone would do.")
    if differing := [name for name in CONDITIONS if name in frame and frame[name].nunique() > 1]:
        notes.append(
            f"Rows were measured under several conditions ({join_names(differing)}), so costs may not compare."
        )
    merged = _one_row_per_shape(frame)
    return Device(source, merged, (*notes, *_unsteady(merged)))


def _accepted() -> dict[str, tuple[str, float]]:
    """Accepted header -> the column that it names, and the factor of its unit."""
    names = (*SHAPE, *NUMBERS, *TEXTS, "repetitions", *sum(SPREADS.values(), ()))
    accepted = {name: (name, 1.0) for name in names}
    for measure in MEASURES.values():
        accepted[measure.column] = (measure.column, 1.0)
        accepted |= {alias: (measure.column, factor) for alias, factor in measure.aliases}
    return accepted


def _find_columns(rows: pd.DataFrame, source: str) -> tuple[dict[str, str], dict[str, float]]:
    """Column -> its header in the file, and the factor of its unit. Raises `ValueError` if a needed one is missing."""
    accepted, normalised = _accepted(), {str(header): normalised_header(header) for header in rows}
    columns: dict[str, str] = {}
    factors: dict[str, float] = {}
    # An exact name wins over an alias: results.csv has both decode_tokens_per_second and tokens_per_second.
    for header, text in sorted(normalised.items(), key=lambda item: accepted.get(item[1], ("",))[0] != item[1]):
        column, factor = accepted.get(text, ("", 1.0))
        if column and column not in columns and not rows[header].map(is_blank).all():
            columns[column], factors[column] = header, factor
    if not any(measure.column in columns for measure in MEASURES.values()):
        names = join_names([measure.column for measure in MEASURES.values()])
        raise ValueError(f"{source} has no measurement: give it one or more of {names} (it has {shortlist(rows, 12)})")
    if not {*SHAPE[1:]} <= {*columns} and not {*SIZES[:2]} & {*columns}:
        raise ValueError(f"{source} does not say which shapes were measured: give it width and depth, or params_total")
    return columns, factors


def _positive(values: pd.Series, columns: Columns, column: str) -> pd.Series:
    numbers = []
    for row, value in values.items():
        number = parse_number(value)
        if number == 0 and column == "kv_bytes_per_token":  # of a recurrent model
            number = np.nan
        elif number is None or np.isinf(number) or number <= 0:
            raise columns.error(int(str(row)), column, value, "must be a number above 0, written as 1234.5")
        numbers.append(number)
    return pd.Series(numbers, values.index, dtype=float)


def _one_row_per_shape(frame: pd.DataFrame) -> pd.DataFrame:
    """Geometric means over rows of one shape, with the standard errors of their logs.

    The error is from the scatter between rows, pooled over shapes, or from the spread of repetitions if that is larger.
    """
    keys = [name for name in ("family", *NUMBERS) if name in frame]
    groups = frame.groupby(keys, sort=False, dropna=False)
    merged = groups.first().reset_index()
    for measure in MEASURES.values():
        if measure.column not in frame:
            continue
        logs = np.log(frame[measure.column]).groupby([frame[key] for key in keys], sort=False, dropna=False)
        merged[measure.column] = np.exp(logs.mean()).to_numpy()
        squares, df = ((logs.std(ddof=1) ** 2) * (logs.count() - 1)).sum(), (logs.count() - 1).clip(lower=0).sum()
        number = logs.count().replace(0, np.nan)  # rows of a shape with this measure; without any, it has no error
        between = np.sqrt(squares / df / number).to_numpy() if df > 0 else 0.0  # pooled over all shapes
        merged[f"error of {measure.column}"] = np.maximum(between, _spread_error(merged, measure.column))
    return merged


def median_error(low: Any, high: Any, repetitions: Any) -> Any:
    """Standard error of the log of a median, from the range of its repetitions.

    The range of n <= 10 repetitions is about sqrt(n) standard deviations, and a median's error is 1.25 of a mean's.
    """
    return 1.25 * np.log(high / low) / repetitions


def _unsteady(frame: pd.DataFrame) -> list[str]:
    """A note if speeds of one shape scatter much: the intervals of the models are then wide."""
    worst = max((float(frame[f"error of {key}"].max()) for key in SPEEDS if key in frame), default=0.0)
    if worst < UNSTEADY:
        return []
    return [f"Speeds of one shape scatter: their standard error is up to {worst:.0%}. Measure on an idle device."]


def _spread_error(frame: pd.DataFrame, column: str) -> np.ndarray:
    """`median_error` of each row; 0 where the range is unknown."""
    low, high = SPREADS.get(column, ("", ""))
    if low not in frame or high not in frame:
        return np.zeros(len(frame))
    repetitions = frame["repetitions"].fillna(USUAL_REPETITIONS) if "repetitions" in frame else USUAL_REPETITIONS
    return np.asarray(median_error(frame[low], frame[high], repetitions).fillna(0.0), float)


def match(device: Device, table: Table, size: str) -> Device:
    """Return the device with its shapes completed from the runs; `shape` is the first row of the table of that shape.

    A row belongs to the runs of its family, width and depth, or else of its family and number of parameters. Its family
    may be missing, or have another name if the table has only one family. Raises `ValueError` if no row has runs, or if
    a row does not say to which of several families it belongs.
    """
    shapes = table.frame.drop_duplicates([name for name in (*SHAPE, *SIZES) if name in table.frame])
    frame, notes = device.frame.copy(), list(device.notes)
    candidates = [_shapes_of(row, shapes) for row in frame.to_dict("records")]
    if unclear := [rows["family"].unique() for rows in candidates if rows["family"].nunique() > 1]:
        raise ValueError(
            f"device={device.name} does not say to which family of the runs its rows belong "
            f"({join_names(unclear[0])} have the same shape): add the column family"
        )
    found = [rows.index[0] if len(rows) else None for rows in candidates]
    if all(index is None for index in found):
        both = f"it has {_shapes(frame)}, and they have {_shapes(shapes)}"
        raise ValueError(f"device={device.name} has none of the shapes of the runs: {both}")
    for name in [name for name in dict.fromkeys(("family", *NUMBERS, size)) if name in shapes]:
        of_runs = [None if index is None else shapes.at[index, name] for index in found]
        # The device's own values count first, but a family has the name that the runs give it.
        known = frame[name] if name in frame and name != "family" else pd.Series(None, frame.index, dtype=object)
        frame[name] = known.where(known.notna(), pd.Series(of_runs, frame.index, dtype=object))
        if name != "family":
            frame[name] = frame[name].astype(float)
    frame["shape"] = pd.Series(found, frame.index, dtype=object)
    frame["family"] = frame["family"].where(frame["family"].notna(), device.frame.get("family", "unknown family"))
    if missing := found.count(None):
        notes.append(f"No run of the table has {plural(missing, 'measured shape')} of {device.name}.")
    return replace(device, frame=_with_features(frame, size), notes=tuple(notes))


def _shapes_of(row: Mapping[str, Any], shapes: pd.DataFrame) -> pd.DataFrame:
    """The shapes of the runs that the row may be."""
    family = row.get("family")
    if isinstance(family, str) and shapes["family"].nunique() > 1:
        shapes = shapes[shapes["family"] == family]
    size = next((name for name in SIZES[:2] if name in shapes and not np.isnan(row.get(name, np.nan))), None)
    if {*SHAPE[1:]} <= {*row} & {*shapes} and not np.isnan([row["width"], row["depth"]]).any():
        shapes = shapes[(shapes["width"] == row["width"]) & (shapes["depth"] == row["depth"])]
        if size is None or len(shapes) == 1:
            return shapes
    return shapes[:0] if size is None else shapes[abs(shapes[size] / row[size] - 1) < SAME_SIZE]


def _shapes(frame: pd.DataFrame) -> str:
    names = [name for name in (*SHAPE, SIZES[0]) if name in frame]
    texts = (" ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in row) for row in frame[names].to_numpy())
    return shortlist(dict.fromkeys(texts), 3)


def _with_features(frame: pd.DataFrame, size: str) -> pd.DataFrame:
    """Add the terms of `slm.scaling.costs` that follow from the columns, and `N`, the size of the analysis."""
    sizes = [name for name in (SIZES[1], SIZES[0], size) if name in frame]
    frame = frame.assign(N=frame[size], params_read=frame[sizes].bfill(axis=1).iloc[:, 0])
    if "depth" in frame:
        frame["block_uses"] = frame["block_uses"].fillna(frame["depth"]) if "block_uses" in frame else frame["depth"]
    if {"vocab_size", "width"} <= {*frame}:
        frame["head"] = frame["vocab_size"] * frame["width"]
    return frame.assign(cache=frame["kv_bytes_per_token"]) if "kv_bytes_per_token" in frame else frame


def measures_only_depth(device: Device) -> str | None:
    """A sentence if tokens/s times depth is constant over sizes that grow; None if not, or if depth is unknown."""
    for key in SPEEDS:
        if key not in device.frame or "depth" not in device.frame:
            continue
        rows = device.frame.dropna(subset=[key, "depth", "N"])
        products, sizes = (rows[key] * rows["depth"]).to_numpy(float), rows["N"].to_numpy(float)
        if len(rows) < 3 or max(sizes) <= MIN_GROWTH * min(sizes) or rows["depth"].nunique() < 2:
            continue
        if max(products) / min(products) - 1 <= CONSTANT_PRODUCT:
            low, high = (format_number(end, 3) for end in (min(products), max(products)))
            growth = format_number(max(sizes) / min(sizes), 2)
            return (
                f"{MEASURES[key].words} times depth is nearly constant ({low} to {high}) while N grows {growth} "
                "times, so these speeds measure depth, as without a KV cache or on a device that waits for each "
                "block, and not what a parameter costs"
            )
    return None
