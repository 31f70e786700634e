"""Numbers with as many digits as their standard errors carry."""

from __future__ import annotations

import math
from typing import Any

from slm.scaling.report.wording import NOTHING, is_number, sig

MOST_PLACES = 6


def measured(value: Any, se: Any, digits: int = 4) -> str:
    """`3.283 ± 0.012`: two digits of the error, and the value to the same place; without an error `digits` digits."""
    if not is_number(value):
        return NOTHING
    if not is_number(se) or se <= 0:
        return sig(value, digits)
    power = math.floor(math.log10(float(f"{se:.1e}")))
    places = min(MOST_PLACES, max(0, 1 - power))
    return f"{value:.{places}f} ± {se:.{places}f}"


def megabytes(size: Any) -> str:
    """Bytes in units of 10^6."""
    return sig(size / 1e6) if is_number(size) else NOTHING


def seconds(value: Any) -> str:
    """Seconds to three digits."""
    return f"{sig(value, 3)} s" if is_number(value) else NOTHING
