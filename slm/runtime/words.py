"""Write numbers and names for people. A number that could not be computed becomes a dash, never `None` or `nan`."""

import math
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

NO_VALUE = "–"
TARGET_NAMES = {"loss": "loss", "perplexity": "perplexity", "bits_per_byte": "bits per byte"}
TARGET_UNITS = {"loss": "loss (nats per token)", "perplexity": "perplexity per token", "bits_per_byte": "bits per byte"}
LOSS_NAMES = {"least_squares": "least squares", "huber": "Huber's loss", "linear": "least squares, not in logs"}
SIZE_IN_LABELS = {
    "params_total": "all parameters",
    "params_non_embedding": "without embeddings",
    "N": "as counted in the results table",
}
SIZE_IN_SENTENCES = SIZE_IN_LABELS | {
    "params_non_embedding": "parameters without embeddings",
    "N": "parameters as counted in the results table",
}
VARIABLE_NAMES = {"D": "D (training tokens)", "C": "C (training FLOPs)", "w": "width", "d": "depth (layers)"}
_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN_DIGITS = {high: plain for plain, high in SUPERSCRIPTS.items()}
MAX_ITEMS = 6  # maximum number of items of a list that a sentence names
MAX_CHARACTERS = 60  # maximum number of characters of a value that a sentence quotes
MAX_DECIMALS = 6


def target_name(target: str) -> str:
    """Return the target of a law as used in sentences; a column of the user's own has its own name."""
    return TARGET_NAMES.get(target, target)


def target_label(target: str) -> str:
    """Return the target of a law with its unit, as the label of an axis."""
    return TARGET_UNITS.get(target, target)


def with_article(noun: str) -> str:
    """Write `a loss` or `an error of piqa`."""
    return f"{'an' if noun[:1].lower() in 'aeio' and noun else 'a'} {noun}"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; False for a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def format_number(value: Any, digits: int = 4) -> str:
    """Write a number to `digits` significant digits: `1,152`; below 1e-4 and from 1e6 on with a power: `4.87×10⁻⁶`."""
    if not is_number(value):
        return NO_VALUE
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)  # of the rounded number: 9.9999 becomes 10.00
    if not -4 <= power < 6:
        return f"{mantissa}×10{str(power).translate(SUPERSCRIPTS)}"
    return f"{value:,.{max(0, digits - 1 - power)}f}"


def read_number(text: str) -> float:
    """Return the number that `format_number` wrote; a percent sign is ignored."""
    return float(text.rstrip("%").replace(",", "").replace("×10", "e").translate(_PLAIN_DIGITS))


def interval(ends: Sequence[Any] | None, digits: int = 4) -> str:
    """Write `[low, high]`; an end that is not a finite number is `open`."""
    texts = [format_number(end, digits) if is_number(end) else "open" for end in ends or (None, None)]
    return f"[{', '.join(texts)}]"


def with_interval(value: Any, ends: Sequence[Any] | None, digits: int = 4) -> str:
    """Write `value [low, high]`."""
    return f"{format_number(value, digits)} {interval(ends, digits)}" if is_number(value) else NO_VALUE


def count(value: Any) -> str:
    """Write a number of parameters or tokens: `125M`, `1.01B`."""
    if not is_number(value):
        return NO_VALUE
    for step, letter in _SUFFIXES:
        if 0.9995 * step <= value < 1e15:  # from 999.5k up, three digits round to 1M
            return f"{value / step:.3g}{letter}"
    return f"{value:.3g}" if abs(value) < 999.5 else format_number(value, 3)


def exact_count(value: Any) -> str:
    """Write a whole number with all digits: `335,688`."""
    return f"{value:,}" if is_number(value) else NO_VALUE


def amount(variable: str, value: Any) -> str:
    """Write a value of a law's variable: FLOPs with a power of ten, others as counts."""
    return format_number(value, 3) if variable == "C" else count(value)


def percent(log_ratio: Any, *, with_sign: bool = False, digits: int = 2) -> str:
    """Write a log ratio times 100, with a percent sign; with `with_sign`, also a plus sign."""
    if not is_number(log_ratio):
        return NO_VALUE
    return f"{100 * log_ratio:+.{digits}f}%" if with_sign else f"{100 * log_ratio:.{digits}f}%"


def p_value(p: Any, replicates: int | None = None, *, with_equals: bool = False) -> str:
    """Write a p-value: `0.012` (`= 0.012` if `with_equals`), or `< 0.001`.

    A p-value of `replicates` simulations is at least 1/(replicates + 1), and is shown with `≤` at that bound.
    """
    if not is_number(p):
        return NO_VALUE
    smallest = 1 / (replicates + 1) if replicates else 0.0
    if replicates and p <= smallest * 1.000001:
        return f"≤ {format_number(smallest, 1)}"
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.3f}" if with_equals else f"{p:.3f}"


def p_text(p: float) -> str:
    """Write a p-value in a sentence: `p = 0.012`, or `p < 0.001`."""
    return f"p {p_value(p, with_equals=True)}"


def escape_markdown(text: Any) -> str:
    """Return Markdown that shows a user's text literally, on one line."""
    escaped = " ".join(str(text).split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|*`$":
        escaped = escaped.replace(mark, "\\" + mark)
    return escaped.replace("](", "]\\(").replace("![", "!\\[")


def join_names(names: Sequence[str]) -> str:
    """Write `a, b and c`; empty without names."""
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def plural(num_things: int, thing: str, things: str = "") -> str:
    """Write `1 family` or `2 families`; without `things`, the plural of `thing` ends in s."""
    return f"{num_things} {thing if num_things == 1 else things or thing + 's'}"


def yes_or_no(value: Any) -> str:
    """Write `yes` or `no`; a dash for None."""
    if value is None:
        return NO_VALUE
    return "yes" if value else "no"


def size_words(size: Any) -> str:
    """Return what N counts, such as `all parameters`; `size` is the column from which N was read."""
    return SIZE_IN_SENTENCES.get(str(size), "parameters")


def axis_name(variable: str, size: Any) -> str:
    """Return the axis label for a law's variable; `size` is the column from which N was read."""
    if variable == "N":
        return f"N ({SIZE_IN_LABELS[size]})" if size in SIZE_IN_LABELS else "N"
    return VARIABLE_NAMES.get(variable, variable)


def shortlist(
    items: Iterable[Any], max_items: int = MAX_ITEMS, separator: str = ", ", max_characters: int = MAX_CHARACTERS
) -> str:
    """Write `1, 2, 3 and 37 more`: the first `max_items`, each cut to `max_characters`, and how many are left."""
    texts = [shortened(item, max_characters) for item in items]
    if len(texts) <= max_items + 1:
        return separator.join(texts)
    return f"{separator.join(texts[:max_items])} and {len(texts) - max_items} more"


def shortened(value: Any, max_characters: int = MAX_CHARACTERS) -> str:
    """Write a value on one line; if it has more than `max_characters`, `...` replaces its middle."""
    text = " ".join(str(value).split())
    if len(text) <= max_characters:
        return text
    num_start = max_characters * 2 // 3  # characters kept at the start
    num_end = max_characters // 3 - 3
    return f"{text[:num_start]}...{text[-num_end:]}"


def with_error(value: Any, se: Any, digits: int = 4) -> str:
    """Write `3.283 ± 0.012`: the error to two digits, the value to as many decimals. Without an error: `3.283`."""
    if not is_number(value):
        return NO_VALUE
    if not is_number(se) or se <= 0:
        return format_number(value, digits)
    power = int(f"{se:.1e}".split("e")[1])  # power of ten of the rounded error
    decimals = min(MAX_DECIMALS, max(0, 1 - power))
    return f"{value:,.{decimals}f} ± {se:,.{decimals}f}"


def megabytes(size: Any) -> str:
    """Write a number of bytes in megabytes (10^6), without the unit."""
    return format_number(size / 1e6) if is_number(size) else NO_VALUE


def seconds(value: Any) -> str:
    """Write seconds to three digits: `12.3 s`."""
    return f"{format_number(value, 3)} s" if is_number(value) else NO_VALUE


def duration(seconds: float) -> str:
    """Write a duration: `0.42 s`, `4.2 s`, `42 s`, `3:07 min`, `5:12:00 h`, `12.3 days`."""
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"
    if seconds < 48 * 3600:
        return f"{timedelta(seconds=int(seconds))} h"
    return f"{seconds / 86400:,.1f} days"


def shape_text(width: Any, depth: Any) -> str:
    """Write the shape of a model, width x depth: `144x9`."""
    return f"{width:.0f}x{depth:.0f}" if is_number(width) and is_number(depth) else NO_VALUE
