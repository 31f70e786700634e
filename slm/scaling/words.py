"""Lists and values in sentences, short enough to be read however long they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MOST_LISTED = 6
LONGEST_VALUE = 60


def shortlist(
    items: Iterable[Any], most: int = MOST_LISTED, separator: str = ", ", longest: int = LONGEST_VALUE
) -> str:
    """The first `most` items and how many more there are: `1, 2, 3 and 37 more`; none is longer than `longest`."""
    text = [shortened(item, longest) for item in items]
    if len(text) <= most + 1:
        return separator.join(text)
    return f"{separator.join(text[:most])} and {len(text) - most} more"


def shortened(value: Any, longest: int = LONGEST_VALUE) -> str:
    """The text of a value on one line, its middle left out where it is longer than `longest`."""
    text = " ".join(str(value).split())
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]}...{text[-(longest // 3 - 3) :]}"


def were(count: int, what: str) -> str:
    """`1 row was` or `3 rows were`."""
    return f"{count} {what} was" if count == 1 else f"{count} {what}s were"
