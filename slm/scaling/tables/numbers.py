"""Rewrite numbers as people and spreadsheets write them (`125M`, `1,234,567`, `3,25`) as plain ones, with a note.

A comma or a point before three digits may be a decimal mark or separate thousands. The other numbers of its column, or
else of the table, decide. Where they do not, the number is refused.
"""

import re
from collections.abc import Collection, Iterable
from decimal import Decimal
from typing import Any, NamedTuple

import pandas as pd

from slm.runtime.settings import SUFFIXES
from slm.runtime.words import shortlist
from slm.scaling.tables.values import format_value, parse_number

SEMICOLONS = "semicolons"  # the key of `attrs` that says that a file separates columns by semicolons
_NUMBER = re.compile(rf"([+-]?)(\d[\d.,]*|[.,]\d+)(e[+-]?\d+)?(?: ?([{''.join(SUFFIXES)}]))?", re.IGNORECASE | re.ASCII)
_SPACED_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:[\s'’]\d{3})+(?!\d)", re.ASCII)
_GROUPS = r"(?:\d*|[1-9]\d{{0,2}}(?:{}\d{{3}})+)"  # the whole part of a number, perhaps with separated thousands


class _Number(NamedTuple):
    """A number with its value if the decimal mark is a point, and if it is a comma; None where that is impossible."""

    point: str | None
    comma: str | None
    has_suffix: bool

    @property
    def marks(self) -> set[str]:
        """The decimal mark of the table, as far as this number shows it."""
        if (self.point is None) == (self.comma is None):
            return set()
        return {"."} if self.comma is None else {","}


def _read(text: str, *, takes_suffix: bool) -> _Number | None:
    """The number that is written, or None for other text."""
    compact = _SPACED_THOUSANDS.sub(
        lambda match: re.sub(r"[\s'’]", "", match[0]), re.sub(r"[^\S ]", " ", text), count=1
    )
    match = _NUMBER.fullmatch(compact)
    if match is None or (match[4] and not takes_suffix):
        return None
    sign, digits, exponent, suffix = match.groups()
    values: list[str | None] = []
    for mark, separator in ((".", ","), (",", ".")):
        whole = r"\d*" if exponent else _GROUPS.format(re.escape(separator))
        is_possible = re.fullmatch(rf"{whole}(?:{re.escape(mark)}\d*)?", digits)
        plain = sign + digits.replace(separator, "").replace(mark, ".") + (exponent or "")
        if is_possible and suffix:
            plain = f"{Decimal(plain) * SUFFIXES[suffix.upper()]:f}"
            plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
        values.append(plain if is_possible else None)
    point, comma = values
    return None if point is None and comma is None else _Number(point, comma, bool(suffix))


def plain_numbers(
    rows: pd.DataFrame,
    table: str,
    notes: list[str],
    *,
    amounts: Collection[str],
    counts: Collection[str],
    with_suffix: Collection[str],
) -> pd.DataFrame:
    """The rows with plain numbers in place of what `_read` reads, and a note that names them.

    `amounts` and `counts` are columns of numbers. Counts have no decimals; columns `with_suffix` may have `125M`. Other
    columns are rewritten if all their values are numbers and the table has decimal commas. Raises `ValueError` for an
    ambiguous value of `amounts` and `counts`.
    """
    named = [column for column in rows if column in amounts or column in counts]
    is_plain = all(parse_number(value) is not None for column in named for value in rows[column])
    if is_plain and SEMICOLONS not in rows.attrs:
        return rows
    numbers: dict[str, dict[Any, _Number]] = {}
    for column in rows:
        texts = {row: value.strip() for row, value in rows[column].items() if isinstance(value, str)}
        read = ((row, _read(text, takes_suffix=column in with_suffix)) for row, text in texts.items())
        numbers[column] = {row: number for row, number in read if number is not None}
    of_table = _marks(number for column in named for number in numbers[column].values())
    is_european = of_table == {","} or (not of_table and SEMICOLONS in rows.attrs)
    changed, converted = {}, {}
    for column, found in numbers.items():
        of_column = _marks(found.values())
        chosen = {
            row: _choose(number, of_column, of_table, column in counts, is_european) for row, number in found.items()
        }
        if column not in named:
            is_text = any(parse_number(value) is None and row not in found for row, value in rows[column].items())
            if is_text or not (is_european or "," in of_table) or None in chosen.values():
                continue
        for row in (row for row, value in chosen.items() if value is None):
            place, number = f"{table}, row {row}, column {column}", found[row]
            raise ValueError(
                f"{place}: {format_value(rows.at[row, column])} may be {number.point} or {number.comma}: write the "
                "numbers of the table with a point before decimals and with nothing between thousands"
            )
        written = rows[column].to_dict()
        new = {row: value for row, value in chosen.items() if parse_number(written[row]) != float(str(value))}
        if new:
            first = next(iter(new))
            changed[column] = f"{column} (row {first}: {written[first].strip()} is {new[first]})"
            converted[column] = [new.get(row, value) for row, value in written.items()]
    if changed:
        plain = "Numbers with decimal commas, separated thousands or suffixes were converted in the columns"
        notes.append(f"{plain} {shortlist(changed.values(), 8, max_characters=90)}.")
    return rows.assign(**converted)


def _marks(numbers: Iterable[_Number]) -> set[str]:
    """The decimal marks that the numbers show."""
    return {mark for number in numbers for mark in number.marks}


def _choose(number: _Number, of_column: set[str], of_table: set[str], is_count: bool, is_european: bool) -> str | None:
    """The value of the number, given the decimal marks of its column and of its table; None if it is ambiguous."""
    point, comma, has_suffix = number
    if point is None or comma is None or point == comma:
        return comma if point is None else point
    has_comma = abs(float(point)) > abs(float(comma))  # as in 1,234
    marks = of_column or of_table
    if is_count and not has_suffix:  # a count has no decimals, so 1,234 is 1234 unless other commas are decimal marks
        is_doubtful = "," in of_column | of_table or is_european
        if has_comma or marks != {","}:
            return None if is_doubtful else point
        return comma
    if not marks:
        return point if not has_comma else comma if is_european and not has_suffix else None
    if has_comma:
        return comma if marks == {","} else None
    return point if marks == {"."} else None
