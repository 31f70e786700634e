"""Shapes of a wanted size in three proportions, so that a grid of families is matched in parameters.

Width and depth set the proportion; the feed-forward takes up what is left of the target, since its width is the one
that may be any number. Proportions (hidden_size / num_layers) are those of released models:

    deep_thin   24   MobileLLM 125M to 1.5B: 19 to 30 (Liu et al. 2024, arXiv:2402.14905, table 10)
    balanced    60   GPT-2 and Pythia-160M: 768/12 = 64 (arXiv:2304.01373); OPT-350M: 1024/24 = 43
    wide       128   Pythia-1B and Llama-3.2-1B: 2048/16 = 128
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from slm.model.config import ModelConfig

ASPECTS = {"deep_thin": 24.0, "balanced": 60.0, "wide": 128.0}
# SwiGLU with 8/3 has the weights of a plain feed-forward with 4 (Shazeer 2020, arXiv:2002.05202, section 3).
USUAL_RATIO, LOWEST_RATIO, HIGHEST_RATIO = 8 / 3, 1.0, 8.0
LOWEST_ASPECT = 4.0
LEAST_CONTRAST = 1.5  # between the proportions of neighbours
FEWEST_HEADS, SMALLEST_HEAD = 3, 8
CANDIDATES = 20
MULTIPLES = (256, 128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Wanted:
    """What a shape must come to."""

    target: int
    vocab_size: int
    non_embedding: bool
    head_dim: int
    kv_group: int
    tie_embeddings: bool
    tolerance: float


def suggest_shapes(
    target_params: int,
    *,
    vocab_size: int = 32_000,
    size: Literal["params_total", "params_non_embedding"] = "params_total",
    head_dim: int = 64,
    kv_group: int = 3,
    tie_embeddings: bool = True,
    tolerance: float = 0.02,
) -> dict[str, ModelConfig]:
    """Shapes `deep_thin`, `balanced` and `wide` whose parameter counts are within `tolerance` of the target.

    `size` says which count that is, `kv_group` how many query heads share a key head (as near as the number of heads
    allows). Heads are narrower than `head_dim` where the width would not hold three. Proportions are met as nearly as
    the size allows, and neighbours differ in them by 1.5 times or more. Raises `ValueError` where that is impossible.
    """
    wanted = Wanted(
        target=_count("target_params", target_params),
        vocab_size=_count("vocab_size", vocab_size),
        non_embedding=_is_non_embedding(size),
        head_dim=_count("head_dim", head_dim),
        kv_group=_count("kv_group", kv_group),
        tie_embeddings=tie_embeddings,
        tolerance=tolerance,
    )
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim} must be even: rotary positions turn pairs of channels")
    if not 1e-4 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance} must be at least 0.0001 and below 1")
    shapes = _three(wanted)
    if shapes is None:
        raise ValueError(_impossible(wanted))
    return shapes


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or value != int(value) or value < 1:
        raise ValueError(f"{name}={value} must be a whole number of at least 1")
    return int(value)


def _is_non_embedding(size: str) -> bool:
    if size not in ("params_total", "params_non_embedding"):
        raise ValueError(f"size={size} must be params_total or params_non_embedding")
    return size == "params_non_embedding"


def _three(wanted: Wanted) -> dict[str, ModelConfig] | None:
    """The shapes nearest to the three proportions that differ by a factor in them; None if there are none."""
    shapes = list(_shapes(wanted))
    costs = {family: [_cost(shape, family, wanted) for shape in shapes] for family in ASPECTS}
    aspects = [shape.hidden_size / shape.num_layers for shape in shapes]
    found: list[tuple[float, tuple[int, int, int]]] = []
    for middle in sorted(range(len(shapes)), key=costs["balanced"].__getitem__)[:CANDIDATES]:
        deeper = [i for i, aspect in enumerate(aspects) if aspect * LEAST_CONTRAST <= aspects[middle]]
        wider = [i for i, aspect in enumerate(aspects) if aspect >= aspects[middle] * LEAST_CONTRAST]
        if deeper and wider:
            first, last = min(deeper, key=costs["deep_thin"].__getitem__), min(wider, key=costs["wide"].__getitem__)
            total = costs["deep_thin"][first] + costs["balanced"][middle] + costs["wide"][last]
            found.append((total, (first, middle, last)))
    return dict(zip(ASPECTS, (shapes[i] for i in min(found)[1]), strict=True)) if found else None


def _cost(shape: ModelConfig, family: str, wanted: Wanted) -> float:
    """How far a shape is from its proportion, from the usual feed-forward and from the wanted sharing of heads."""
    aspect = abs(math.log(shape.hidden_size / shape.num_layers / ASPECTS[family]))
    ratio = abs(math.log(shape.intermediate_size / shape.hidden_size / USUAL_RATIO))
    group = abs(math.log(shape.num_heads / shape.kv_heads / wanted.kv_group))
    return aspect + ratio + 0.1 * group


def _shapes(wanted: Wanted) -> Iterator[ModelConfig]:
    """All shapes within tolerance whose feed-forward is of a sensible width."""
    for hidden, head_dim in _widths(wanted):
        tables = 0 if wanted.non_embedding else wanted.vocab_size * hidden * (1 if wanted.tie_embeddings else 2)
        body = wanted.target - tables - hidden
        heads = hidden // head_dim
        kv_heads = _kv_heads(heads, wanted.kv_group)
        fixed = 2 * hidden * head_dim * (heads + kv_heads) + 2 * hidden  # attention and norms of a block
        least, most = (fixed + 3 * hidden * hidden * ratio for ratio in (LOWEST_RATIO, HIGHEST_RATIO))
        highest = min(int(body / least), int(hidden / LOWEST_ASPECT))
        for layers in range(max(1, math.ceil(body / most)), highest + 1):
            exact = (body / layers - fixed) / (3 * hidden)
            shape = _rounded(wanted, exact, layers, hidden, head_dim, kv_heads)
            if shape is not None:
                yield shape


def _widths(wanted: Wanted) -> Iterator[tuple[int, int]]:
    """Hidden sizes with their head_dim: the wanted one, or half, a quarter ... of it with three to five heads."""
    # One block with the narrowest feed-forward has about 5 x width^2 weights.
    widest = int(math.sqrt(wanted.target / 5)) + wanted.head_dim
    head_dim = wanted.head_dim
    yield from ((hidden, head_dim) for hidden in range(FEWEST_HEADS * head_dim, widest, head_dim))
    while head_dim % 4 == 0 and head_dim > SMALLEST_HEAD:
        head_dim //= 2
        yield from ((heads * head_dim, head_dim) for heads in range(FEWEST_HEADS, 2 * FEWEST_HEADS))


def _kv_heads(heads: int, group: int) -> int:
    """The divisor of `heads` nearest to heads / group."""
    return min((k for k in range(1, heads + 1) if heads % k == 0), key=lambda k: abs(math.log(heads / k / group)))


def _rounded(
    wanted: Wanted, exact: float, layers: int, hidden: int, head_dim: int, kv_heads: int
) -> ModelConfig | None:
    """The shape with the roundest feed-forward that is within a quarter of the tolerance, or else within all of it."""
    for multiple in MULTIPLES:
        inner = max(1, round(exact / multiple)) * multiple
        off = abs(inner - exact) * 3 * hidden * layers / wanted.target
        if off <= wanted.tolerance / (4 if multiple > 1 else 1):
            break
    else:
        return None
    if not LOWEST_RATIO <= inner / hidden <= HIGHEST_RATIO:
        return None
    return ModelConfig(
        vocab_size=wanted.vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=hidden // head_dim,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=inner,
        tie_embeddings=wanted.tie_embeddings,
    )


def _impossible(wanted: Wanted) -> str:
    said = f"no three shapes have {wanted.target:,} parameters to {wanted.tolerance:.2%}"
    if wanted.non_embedding:
        return f"{said}: give a larger target or tolerance"
    vocab = wanted.vocab_size // 2
    while vocab >= 64:
        if _three(dataclasses.replace(wanted, vocab_size=vocab)) is not None:
            return f"{said} with vocab_size={wanted.vocab_size}, whose table leaves too little: {vocab} would fit"
        vocab //= 2
    return f"{said}: give a larger target or tolerance"
