"""Rules that derive a full shape from a family's width and depth; `conf/family/*.yaml` call them by name.

Notable: if a rule cannot use a width or depth, its error names the nearest values that it can use.
"""

from collections.abc import Callable
from fractions import Fraction
from math import ceil
from typing import Any


def heads(family: str, width: Any, head_dim: Any, expand: Any = 1) -> int:
    """Return the number of heads of `head_dim` channels that together are `expand` times as wide as the model.

    Raises `ValueError` if `width` is not a multiple of `head_dim`. Rounding would make families differ in width.
    """
    _require_multiple("width", width, head_dim, f"model.head_dim={head_dim} of family={family}")
    return int(expand) * width // head_dim


def kv_heads(num_heads: int, group: int) -> int:
    """Return the largest divisor of `num_heads` that is at most `num_heads` / `group`, or at most 2 if that is larger.

    A group of 3 gives the key/value heads of all five MobileLLMs (9/3, 15/5, 18/6, 20/5 and 25/5 heads).
    """
    max_count = min(max(2, num_heads // group), num_heads)
    return max(count for count in range(1, max_count + 1) if num_heads % count == 0)


def ffn(width: int, ratio: str, multiple: int = 64) -> int:
    """Return the inner width of a feed-forward: `ratio` (such as "8/3") times the width, rounded up to `multiple`.

    With 8/3 and 64 these are the published widths of MobileLLM 125M, 350M and 600M; 1B and 1.5B need the multiple 256.
    """
    return ceil(Fraction(str(ratio)) * width / multiple) * multiple


def blocks(family: str, depth: Any, period: int = 1) -> int:
    """Return the number of distinct blocks, `depth`. Raises `ValueError` if the depth is not a multiple of `period`.

    The period is the length of the family's mixer pattern. A partial pattern would change the share of each mixer.
    """
    _require_multiple("depth", depth, period, f"the {period} blocks of the pattern of family={family}")
    return int(depth)


def _require_multiple(key: str, value: Any, unit: int, unit_in_words: str) -> None:
    for name, number in ((key, value), ("model.head_dim", unit)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name}={number} must be a whole number of at least 1")
    if value % unit:
        near = [n for n in (value // unit * unit, (value // unit + 1) * unit) if n > 0]
        raise ValueError(f"{key}={value} is not a multiple of {unit_in_words}: {' or '.join(map(str, near))} would be")


RULES: dict[str, Callable[..., int]] = {"heads": heads, "kv_heads": kv_heads, "ffn": ffn, "blocks": blocks}
"""The rules by the names with which `conf/family` calls them, as in ${heads:ssd,${width},32}."""
